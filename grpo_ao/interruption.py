"""SIGTERM and Ctrl-C: a command ends with one sentence, training after the step that it is in."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """A signal ended the command; ``done`` says what it left behind."""

    def __init__(self, number: int, done: str = "") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}{done}")
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted inside the block, at once, where a signal comes."""

    def interrupt(number: int, _frame: object) -> None:
        raise Interrupted(number)

    with _handled(interrupt):
        yield


@contextmanager
def held_back() -> Iterator[list[int]]:
    """Note a signal in the list that is given; raise Interrupted at the second one."""
    come: list[int] = []

    def note(number: int, _frame: object) -> None:
        if come:
            raise Interrupted(number)
        come.append(number)

    with _handled(note):
        yield come


@contextmanager
def _handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
