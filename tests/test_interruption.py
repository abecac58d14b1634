"""Signals to this very process."""

import os
import signal
import sys
import threading

import pytest

from grpo_ao import cli
from grpo_ao.interruption import Interrupted, held_back, interruptible

SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_block_and_the_old_handler_comes_back(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped by {number.name}"), interruptible():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_held_back_is_noted_and_the_second_ends_the_block(number):
    with interruptible(), pytest.raises(Interrupted), held_back() as come:
        os.kill(os.getpid(), number)
        assert come == [number]
        os.kill(os.getpid(), signal.SIGTERM)
    assert come == [number]


def test_in_another_thread_no_handler_is_set():
    entered = []

    def work():
        with interruptible(), held_back() as come:
            entered.append(come)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [[]]


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A working directory: the runs ``runs/qwen3-8b`` and ``mine``, and a set, have begun."""
    for folder in ("runs/qwen3-8b", "mine"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "run.json").touch()
    (tmp_path / "mine" / "set.jsonl.log.jsonl").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("begun")
@pytest.mark.parametrize(
    ("argv", "again"),
    [
        (["train.py", "--seed", "1"], "python train.py --seed 1 --resume"),
        (["train.py", "--resume"], "python train.py --resume"),
        (["/usr/bin/grpo-ao", "train", "--seed=1"], "grpo-ao train --seed=1 --resume"),
        (["train.py", "--output_dir", "mine"], "python train.py --output_dir mine --resume"),
        # There is nothing to resume before the run has begun its folder.
        (["train.py", "--output_dir", "other"], "python train.py --output_dir other"),
        (
            ["/usr/bin/grpo-ao", "make-oracle", "--model", "m", "--output_dir", "mine"],
            "grpo-ao make-oracle --model m --output_dir mine --resume",
        ),
        (
            ["fetch_wildchat_questions.py", "--output", "mine/set.jsonl"],
            "python fetch_wildchat_questions.py --output mine/set.jsonl --resume",
        ),
        (
            ["/usr/bin/grpo-ao", "questions", "--output", "other.jsonl"],
            "grpo-ao questions --output other.jsonl",
        ),
        (
            ["/usr/bin/grpo-ao", "evaluate", "--data_dir", "a b"],
            "grpo-ao evaluate --data_dir 'a b'",
        ),
    ],
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_stopped_says_how_to_go_on(
    monkeypatch, capsys, argv, again, number, code
):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setitem(cli.COMMANDS, "ask", lambda _: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as caught:
        cli.main(["ask"])
    assert caught.value.code == code
    assert capsys.readouterr().err == f"stopped by {number.name}. Go on with: {again}\n"
