from io import StringIO

import pytest
from rich.console import Console
from transformers import TrainerControl, TrainerState, TrainingArguments

from grpo_ao.tracking import PhaseProgress, ProgressCallback


@pytest.fixture
def console():
    return Console(file=StringIO(), force_terminal=True, width=100)


def shown(console) -> str:
    return console.file.getvalue()


def test_a_phase_shows_its_name_its_count_and_the_time_left(console):
    progress = PhaseProgress(console)
    with progress.phase("warm start", 3) as bar:
        bar.advance(1)
        bar.advance(1)
    assert "warm start" in shown(console)
    assert "2/3" in shown(console)
    assert "left" in shown(console)


def test_a_count_can_be_set(console):
    with PhaseProgress(console).phase("measuring", 200) as bar:
        bar.to(64)
        bar.to(128)
    assert "128/200" in shown(console)


def test_phases_follow_one_another_and_an_error_ends_one(console):
    progress = PhaseProgress(console)
    with pytest.raises(ValueError, match="no"), progress.phase("first", 1):
        raise ValueError("no")
    progress.advance(1)  # between phases there is nothing to count
    progress.to(1)
    with progress.phase("second", 2) as bar:
        bar.to(2)
    assert shown(console).index("first") < shown(console).index("second")
    assert "2/2" in shown(console)


def test_a_step_of_training_is_a_unit(console):
    progress = PhaseProgress(console)
    callback = ProgressCallback(progress)
    with progress.phase("GRPO", 5):
        for _ in range(3):
            callback.on_step_end(TrainingArguments(), TrainerState(), TrainerControl())
    assert "3/5" in shown(console)


def test_a_log_file_gets_each_phase_once():
    console = Console(file=StringIO(), force_terminal=False, width=100)
    progress = PhaseProgress(console)
    with progress.phase("GRPO", 50) as bar:
        for _ in range(50):
            bar.advance(1)
    assert shown(console).count("GRPO") == 1
    assert "50/50" in shown(console)


def test_the_seconds_of_a_phase_are_the_sum_of_its_times_and_of_now(console):
    progress, first = PhaseProgress(console), 0.0
    for _ in range(2):
        with progress.phase("GRPO", 1):
            first = progress.seconds()["GRPO"]
    second = progress.seconds()["GRPO"]
    assert 0 < first < second
    with progress.phase("measuring", 1):
        assert list(progress.seconds()) == ["GRPO", "measuring"]
    assert progress.seconds()["GRPO"] == second
