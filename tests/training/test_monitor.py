import json
import math
from dataclasses import replace

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from grpo_ao.answer import Answer
from grpo_ao.files import mark_whole, read_jsonl
from grpo_ao.probe import Positions, Probe
from grpo_ao.tracking import Reporter
from grpo_ao.training.monitor import BenchmarkCallback, Monitor, step_metrics

PROBE = Probe("A text.", "Is it?", "closed", (18,), Positions(20), "Yes", "topic")


def answer(completion, informativeness=None, reward=None, tokens=12):
    read = Answer.read(PROBE, completion, range(tokens))
    return replace(read, informativeness=informativeness, reward=reward)


RIGHT = answer("[epistemic status: 90] Yes it is", 1.0, 0.995)
WRONG = answer("[epistemic status: 40] No", 0.0, -0.08, tokens=10)
UNPARSED = answer("some words without tag", None, -1.5, tokens=9)
UNGRADED = answer("[epistemic status: 80] So so", tokens=11)
ALL = [RIGHT, WRONG, UNPARSED, UNGRADED]


class RecordingReporter(Reporter):
    """Keeps what it is told."""

    def __init__(self):
        self.scalar_rows, self.images, self.tables, self.alerts = [], [], [], []

    def scalars(self, step, values):
        self.scalar_rows.append((step, values))

    def image(self, step, name, path):
        self.images.append((step, name, path))

    def table(self, step, name, rows):
        self.tables.append((step, name, rows))

    def alert(self, title, text):
        self.alerts.append((title, text))


def record(monitor, step, rollouts=ALL, **changes):
    settings = {
        "truncated": 0.125,
        "advantages_std": 0.2,
        "kl": 0.01,
        "seconds": {"generate": 2.0, "score": 0.5, "step": 1.0},
    }
    return monitor.record(step, rollouts, **(settings | changes))


def monitor_at(folder, plot_every=1000, resume_at=0, reporter=None):
    return Monitor(folder, reporter or Reporter(), plot_every, resume_at)


# Metrics of a step


def test_metrics_of_a_step_by_hand():
    assert step_metrics(ALL) == {
        "reward": pytest.approx(-0.195),  # (.995 - .08 - 1.5) / 3: the ungraded one has none
        "brier": pytest.approx(0.085),  # (.01 + .16) / 2
        "informativeness": pytest.approx(1 / 3),  # 1, 0 and 0 for the unparsed one
        "confidence": pytest.approx(0.7),  # .9, .4, .8: stated, whether graded or not
        "confidence_std": pytest.approx(math.sqrt(0.14 / 3)),
        "auroc": 1.0,
        "parse_rate": 0.75,
        "unscored": 0.25,
        "answer_length": 2.5,  # 3, 1, 4 and 2 words
    }


def test_a_half_graded_answer_counts_as_half_and_as_right():
    half = replace(RIGHT, informativeness=0.5)
    metrics = step_metrics([half, WRONG])
    assert metrics["informativeness"] == 0.25
    assert metrics["auroc"] == 1.0


def test_a_step_of_unparsed_completions_is_informative_0_and_knows_no_confidence():
    metrics = step_metrics([UNPARSED, UNPARSED])
    known = {name for name, value in metrics.items() if value is not None and value == value}
    assert known == {"reward", "informativeness", "parse_rate", "unscored", "answer_length"}
    assert (metrics["informativeness"], metrics["parse_rate"], metrics["unscored"]) == (0, 0, 0)
    assert metrics["reward"] == -1.5


def test_a_step_that_the_judge_left_ungraded_knows_no_informativeness():
    metrics = step_metrics([UNGRADED, UNGRADED])
    unknown = {name for name, value in metrics.items() if value != value}
    assert unknown == {"reward", "brier", "informativeness", "auroc"}
    assert (metrics["confidence"], metrics["unscored"], metrics["parse_rate"]) == (0.8, 1, 1)


# What is written and reported


def test_a_step_is_a_row_of_metrics_and_is_reported(tmp_path):
    reporter = RecordingReporter()
    monitor = monitor_at(tmp_path, reporter=reporter)
    metrics = record(monitor, 1)
    expected = {"step": 1, **step_metrics(ALL)} | {
        "ece_window": pytest.approx(0.25),  # (|.9 - 1| + |.4 - 0|) / 2
        "advantage_std": 0.2,
        "auroc_within_window": 1.0,
        "truncated": 0.125,
        "kl": 0.01,
        "tokens_per_second": 21.0,
        "seconds_generate": 2.0,
        "seconds_score": 0.5,
        "seconds_step": 1.0,
    }
    assert metrics == expected
    assert monitor.history == [expected]
    assert read_jsonl(tmp_path / "metrics.jsonl")[0] == expected
    ((step, values),) = reporter.scalar_rows
    assert (step, values) == (1, {k: v for k, v in expected.items() if k != "step"})


def test_what_is_not_known_is_null_in_the_file_and_none_is_not_reported(tmp_path):
    reporter = RecordingReporter()
    record(monitor_at(tmp_path, reporter=reporter), 1, [UNPARSED], kl=None)
    (row, *_) = read_jsonl(tmp_path / "metrics.jsonl")
    assert (row["confidence"], row["ece_window"], row["kl"]) == (None, None, None)
    ((_, values),) = reporter.scalar_rows
    assert "kl" not in values
    assert all(isinstance(value, float) for value in values.values())


def test_the_windows_ece_is_over_the_steps_so_far(tmp_path):
    monitor = monitor_at(tmp_path)
    assert record(monitor, 1, [RIGHT, UNGRADED])["ece_window"] == pytest.approx(0.1)
    assert record(monitor, 2, [WRONG, UNPARSED])["ece_window"] == pytest.approx(0.25)
    # At .9 now one right and one wrong answer: (2 * |.9 - .5| + .4) / 3
    wrong = replace(WRONG, confidence=0.9)
    assert record(monitor, 3, [wrong])["ece_window"] == pytest.approx(0.4)


def test_the_window_forgets_what_is_older_than_2000_completions(tmp_path):
    monitor = monitor_at(tmp_path)
    record(monitor, 1, [WRONG] * 100)
    found = record(monitor, 2, [RIGHT] * 1900)["ece_window"]
    assert found == pytest.approx((100 * 0.4 + 1900 * 0.1) / 2000)
    assert record(monitor, 3, [RIGHT] * 100)["ece_window"] == pytest.approx(0.1)


def test_plots_and_rollouts_come_every_n_steps(tmp_path):
    reporter = RecordingReporter()
    monitor = monitor_at(tmp_path, plot_every=2, reporter=reporter)
    for step in range(1, 6):
        record(monitor, step, [replace(RIGHT, token_ids=(step,)), *ALL])
    plots = [f"reliability_{step:06d}{suffix}" for step in (2, 4) for suffix in (".png", ".svg")]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == plots
    assert [(step, name, path.name) for step, name, path in reporter.images] == [
        (2, "reliability", "reliability_000002.png"),
        (4, "reliability", "reliability_000004.png"),
    ]
    rows = read_jsonl(tmp_path / "rollouts.jsonl")
    assert [row["step"] for row in rows] == [2] * 5 + [4] * 5
    assert rows[1] == {"step": 2, **RIGHT.to_row()}
    assert rows[5] == {"step": 4, **RIGHT.to_row(), "token_ids": [4]}
    assert [(step, name) for step, name, _ in reporter.tables] == [(2, "rollouts"), (4, "rollouts")]
    assert reporter.tables[0][2] == rows[:5]


def test_a_plot_is_not_missed_where_only_every_third_step_makes_answers(tmp_path):
    monitor = monitor_at(tmp_path, plot_every=4)
    for step in (1, 4, 7, 10, 13):
        record(monitor, step)
    # The first at or behind 4, 8 and 12.
    assert sorted({row["step"] for row in read_jsonl(tmp_path / "rollouts.jsonl")}) == [4, 10, 13]


def test_a_table_has_sixteen_rollouts(tmp_path):
    record(monitor_at(tmp_path, plot_every=1), 1, ALL * 8)
    assert len(read_jsonl(tmp_path / "rollouts.jsonl")) == 16


def test_without_a_grade_there_is_no_plot(tmp_path):
    reporter = RecordingReporter()
    record(monitor_at(tmp_path, plot_every=1, reporter=reporter), 1, [UNGRADED, UNPARSED])
    assert len(reporter.tables) == 1
    assert (reporter.images, (tmp_path / "plots").exists()) == ([], False)


# Alerts


def alert_rows(folder):
    rows = read_jsonl(folder / "metrics.jsonl")
    return [(row["step"], row["alert"]) for row in rows if "alert" in row]


GOOD = [RIGHT, WRONG] * 2
LOOSE = [RIGHT, WRONG, UNPARSED]  # two of three parsed


def test_an_alert_is_said_once_while_it_lasts_and_again_after_it_ended(tmp_path, capsys):
    reporter = RecordingReporter()
    monitor = monitor_at(tmp_path, reporter=reporter)
    for step, rollouts in enumerate([GOOD, LOOSE, LOOSE, GOOD, LOOSE], start=1):
        record(monitor, step, rollouts)
    assert alert_rows(tmp_path) == [(2, "parse_rate"), (5, "parse_rate")]
    assert [title for title, _ in reporter.alerts] == ["parse_rate", "parse_rate"]
    said = capsys.readouterr().err
    assert "alert at step 2: completions lack a well-formed tag" in said
    assert "alert at step 3" not in said and "alert at step 4" not in said


def test_an_alert_says_what_to_do(tmp_path):
    reporter = RecordingReporter()
    record(monitor_at(tmp_path, reporter=reporter), 1, LOOSE)
    ((title, text),) = reporter.alerts
    assert title == "parse_rate"
    assert text == (
        "completions lack a well-formed tag: parse_rate is 0.667, below 0.9. "
        "What to do: lower --lr, or lengthen the warm start."
    )
    row = read_jsonl(tmp_path / "metrics.jsonl")[1]
    assert row == {"step": 1, "alert": "parse_rate", "message": text}


def test_a_second_alert_is_said_while_the_first_lasts(tmp_path):
    monitor = monitor_at(tmp_path)
    record(monitor, 1, LOOSE)
    record(monitor, 2, LOOSE, advantages_std=0.0)
    assert alert_rows(tmp_path) == [(1, "parse_rate"), (2, "no_advantage")]
    assert len(monitor.history) == 2  # alerts are no steps


# Resuming


def steps(folder, name):
    return [row["step"] for row in read_jsonl(folder / name)]


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    monitor = monitor_at(tmp_path, plot_every=1)
    for step in (1, 2, 3):
        record(monitor, step, [RIGHT] if step == 1 else LOOSE)
    resumed = monitor_at(tmp_path, resume_at=2)
    # The completion of step 2 is unparsed.
    assert alert_rows(tmp_path) == [(2, "parse_rate")]
    assert steps(tmp_path, "metrics.jsonl") == [1, 2, 2]
    assert steps(tmp_path, "window.jsonl") == [1, 2]
    assert steps(tmp_path, "rollouts.jsonl") == [1, 2, 2, 2]
    assert [row["step"] for row in resumed.history] == [1, 2]


def test_a_resumed_run_writes_what_the_unbroken_one_would_have(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    # The alert of step 2 lasts over the resume; step 4 has values that are NaN.
    batches = [GOOD, LOOSE, LOOSE, [UNGRADED], LOOSE]
    for folder in (whole, broken):
        folder.mkdir()
        monitor = monitor_at(folder)
        for step, rollouts in enumerate(batches, start=1):
            record(monitor, step, rollouts)
    resumed = monitor_at(broken, resume_at=2)
    for step in (3, 4, 5):
        record(resumed, step, batches[step - 1])
    for name in ("metrics.jsonl", "window.jsonl"):
        assert (broken / name).read_text() == (whole / name).read_text()


def test_half_a_line_of_a_killed_run_is_dropped_before_going_on(tmp_path):
    record(monitor_at(tmp_path), 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    resumed = monitor_at(tmp_path, resume_at=2)
    record(resumed, 2)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "alert" not in line] == [1, 2]


def test_a_run_that_starts_anew_keeps_nothing(tmp_path):
    record(monitor_at(tmp_path, plot_every=1), 1)
    monitor = monitor_at(tmp_path)
    assert monitor.history == []
    for name in ("metrics.jsonl", "window.jsonl", "rollouts.jsonl"):
        assert (tmp_path / name).read_text() == ""
    assert record(monitor, 1, [RIGHT])["ece_window"] == pytest.approx(0.1)


def test_greedy_numbers_that_are_all_alike_are_said(tmp_path):
    reporter = RecordingReporter()
    monitor = monitor_at(tmp_path, reporter=reporter)
    for step, answers in enumerate(([RIGHT, WRONG], [RIGHT] * 3)):
        monitor.validated(50 * step, [*answers, UNPARSED])
    ((name, text),) = reporter.alerts
    assert (name, "is 0, below 0.05" in text) == ("greedy_collapse", True)
    monitor_at(tmp_path, resume_at=50, reporter=reporter).validated(50, [RIGHT] * 3)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [50]


def test_what_trl_logs_of_a_step_is_among_its_metrics(tmp_path):
    logs = {"loss": 0.5, "clip_ratio/region_mean": 0.25, "completions/mean_length": 9.0}
    found = record(monitor_at(tmp_path), 1, logs=logs)
    assert (found["loss"], found["clip_ratio"]) == (0.5, 0.25)
    assert "completions/mean_length" not in found


def test_the_windows_auroc_compares_answers_of_one_family(tmp_path):
    other = replace(PROBE, family="other")
    monitor = monitor_at(tmp_path)
    # Between the families the number is right; inside of each it is wrong.
    low = [replace(a, probe=other) for a in (RIGHT, replace(RIGHT, informativeness=0.0))]
    record(monitor, 1, low)
    metrics = record(monitor, 2, [replace(WRONG, confidence=0.95), RIGHT])
    assert metrics["auroc_within_window"] == pytest.approx(0.25)  # .5 and 0
    resumed = monitor_at(tmp_path, resume_at=1)
    assert record(resumed, 2, [WRONG, RIGHT])["auroc_within_window"] == pytest.approx(0.75)


def test_a_line_tells_the_mean_of_the_steps_since_the_last_one(tmp_path, capsys):
    monitor = Monitor(tmp_path, Reporter(), 1000, log_every=2, seconds_left=lambda step: 100 - step)
    for step, rollouts in enumerate([ALL, [RIGHT, WRONG], [RIGHT]], start=1):
        record(monitor, step, rollouts)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(
        "step 2  reward 0.131  informativeness 0.417  AUROC within families 1.000"
    )
    assert line.endswith("1.00 s/step  0:01:38 left of the run")
    assert (tmp_path / "run.log").read_text().splitlines()[-1].endswith(line)


def test_an_alert_is_in_the_log(tmp_path):
    monitor_at(tmp_path).say(7, "unscored", "The judge is away.")
    assert "alert at step 7: The judge is away." in (tmp_path / "run.log").read_text()


@pytest.mark.parametrize("best", [2, 4])
def test_what_later_steps_left_is_dropped_where_a_run_goes_on_before_them(tmp_path, best):
    for step in (0, 2, 4):
        for path in (f"validation/step_{step:06d}.jsonl", f"eval/step_{step:06d}/rows.jsonl"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
    (tmp_path / "eval" / "before").mkdir()
    (tmp_path / "best").mkdir()
    mark_whole(tmp_path / "best" / "complete.json", [], step=best)
    monitor_at(tmp_path, resume_at=3)
    kept = {
        part: sorted(path.stem for path in (tmp_path / part).iterdir())
        for part in ("validation", "eval")
    }
    assert kept["validation"] == ["step_000000", "step_000002"]
    assert kept["eval"] == ["before", "step_000000", "step_000002"]
    assert (tmp_path / "best").exists() == (best == 2)


def test_benchmarks_are_asked_behind_the_checkpoint_where_there_is_one():
    measured = []
    callback = BenchmarkCallback(measured.append, eval_steps=2)

    def go(event, step, saves=False):
        of = (TrainingArguments(), TrainerState(global_step=step, max_steps=6))
        getattr(callback, event)(*of, TrainerControl(should_save=saves))
        return [*measured]

    assert go("on_train_begin", 0) == go("on_step_end", 1) == []
    assert go("on_step_end", 2, saves=True) == []
    assert go("on_save", 2, saves=True) == ["step_000002"]
    assert go("on_save", 3, saves=True) == ["step_000002"]
    assert go("on_step_end", 4) == ["step_000002", "step_000004"]
    assert len(go("on_step_end", 6) + go("on_save", 6)) == 4
    # What a run goes on from may have been left unmeasured.
    assert go("on_train_begin", 4)[2:] == ["step_000004"]
