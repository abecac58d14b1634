"""The progress bar of a run: one line a phase, with the time left."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback


class PhaseProgress:
    """Shows the phases of a run one after the other, each with its own count and time left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = None

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator["PhaseProgress"]:
        """Show one phase of ``total`` units while the block runs."""
        self._task = self._progress.add_task(name, total=total)
        self._progress.start()
        try:
            yield self
        finally:
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None

    def advance(self, units: int) -> None:
        """Count ``units`` more as done."""
        if self._task is not None:
            self._progress.advance(self._task, units)

    def to(self, units: int) -> None:
        """Set the count to ``units``."""
        if self._task is not None:
            self._progress.update(self._task, completed=units)


class ProgressCallback(TrainerCallback):
    """Moves the progress bar on after each step."""

    def __init__(self, progress: PhaseProgress) -> None:
        self._progress = progress

    def on_step_end(self, args, state, control, **kwargs):
        """Advance by one step."""
        self._progress.advance(1)
