"""The benchmark on real text: its question set, its commands, and its table by hand."""

import math
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.arms import CHANGES, family_means, train_arm
from benchmarks.method import Settings as MethodSettings
from benchmarks.method import jobs_of, run_side_by_side, take_warm_start
from benchmarks.real import (
    ARMS,
    Settings,
    against_recipe,
    bars_of,
    commands,
    folder_of,
    gains_of,
    scores,
    steps_of,
    table_of,
    values_of,
)
from grpo_ao.answer import Answer
from grpo_ao.files import append_jsonl
from grpo_ao.measuring.metrics import STATED
from grpo_ao.measuring.reading import CONTROLS
from grpo_ao.probe import Positions, Probe


def answer(number, confidence, right, family="sst2", probability=0.5):
    probe = Probe(f"text {number}", "Is it?", "closed", (2,), Positions(1), "Yes", family)
    tag = "" if confidence is None else f"[epistemic status: {confidence}] "
    read = Answer.read(probe, f"{tag}Yes")
    return replace(read, informativeness=float(right), answer_probability=probability)


def settings(folder, **changes) -> Settings:
    given = {"arms": ("recipe", "lr 1e-4"), "seeds": (0, 1), "output_dir": folder} | changes
    return Settings(
        oracle="oracle", model="base", data_dir=Path("data"), questions=Path("q.jsonl"), **given
    )


def test_runs_that_share_a_warm_start_wait_for_it_and_take_it(tmp_path):
    chosen = settings(tmp_path)
    first = commands(chosen, first=True)
    assert set(first) == {folder_of(chosen, "recipe", seed) for seed in (0, 1)}
    (folder_of(chosen, "recipe", 1) / "warm_start").mkdir(parents=True)
    second = commands(chosen, first=False)
    assert set(second) == {folder_of(chosen, "lr 1e-4", seed) for seed in (0, 1)}
    assert (folder_of(chosen, "lr 1e-4", 1) / "warm_start").exists()
    assert not (folder_of(chosen, "lr 1e-4", 0) / "warm_start").exists()


def test_a_run_that_is_finished_is_not_started_again(tmp_path):
    chosen = settings(tmp_path)
    done = folder_of(chosen, "recipe", 0)
    done.mkdir(parents=True)
    (done / "summary.json").write_text("{}")
    assert set(commands(chosen, first=True)) == {folder_of(chosen, "recipe", 1)}


def test_each_of_the_runs_beside_each_other_sees_one_gpu_of_those_that_are_visible(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    said = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    folders = [tmp_path / str(number) for number in range(3)]
    for count, expected in ((2, ["4", "7", "4"]), (1, ["4,7"] * 3)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=count: n)
        run_side_by_side(dict.fromkeys(folders, said), 3)
        consoles = [folder / "console.txt" for folder in folders]
        assert [console.read_text().strip() for console in consoles] == expected
        for console in consoles:
            console.unlink()


def test_a_half_copied_warm_start_is_copied_again(tmp_path, monkeypatch):
    source, folder = tmp_path / "source", tmp_path / "run"
    (source / "warm_start").mkdir(parents=True)
    (source / "warm_start" / "weights").write_text("weights")
    copytree = shutil.copytree

    def killed(given, target, **kwargs):
        copytree(given, target, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copytree", killed)
    with pytest.raises(KeyboardInterrupt):
        take_warm_start(source, folder)
    assert not (folder / "warm_start").exists()
    monkeypatch.setattr(shutil, "copytree", copytree)
    take_warm_start(source, folder)
    assert (folder / "warm_start" / "weights").read_text() == "weights"


def test_a_run_that_fails_ends_those_beside_it(tmp_path):
    sleeps = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    console = tmp_path / "sleeping" / "console.txt"
    fails = f"import pathlib\nwhile not pathlib.Path({str(console)!r}).read_text(): pass\n1 / 0"
    said = {"sleeping": sleeps, "failing": fails}
    commands = {tmp_path / name: [sys.executable, "-c", code] for name, code in said.items()}
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        run_side_by_side(commands, 2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(console.read_text()), 0)


def test_an_arm_that_nothing_is_known_of_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="knows no arm 'no ancor'"):
        train_arm("no ancor", 1, [])
    chosen = settings(tmp_path, arms=tuple(ARMS), seeds=(0,))
    codes = [c[-1] for first in (True, False) for c in commands(chosen, first).values()]
    for code in codes:
        name = re.search(r"train_arm\(('.*?'),", code)
        assert name is not None
        assert name[1] == "''" or name[1].strip("'") in CHANGES
    assert len(codes) == len(ARMS)
    arms = {job.arm for job in jobs_of(MethodSettings(tmp_path))[1]}
    assert arms - {""} <= set(CHANGES)


def test_every_arms_warm_start_is_an_arm():
    assert {arm.warm for arm in ARMS.values()} <= set(ARMS)


def test_scores_by_hand_and_none_where_nothing_is_stated():
    found = scores([answer(0, 80, 1), answer(1, 40, 0)], STATED)
    assert found["brier"] == pytest.approx((0.04 + 0.16) / 2)
    assert found["ece10"] == pytest.approx((0.2 + 0.4) / 2)
    assert found["within"] == 1.0
    assert found["surplus"] == pytest.approx(0.1)
    assert math.isnan(scores([answer(0, None, 1)], STATED)["brier"])


def test_out_of_distribution_is_apart():
    own = [answer(0, 80, 1), answer(1, 40, 0), answer(2, 100, 0, "ag_news")]
    row = values_of(own, {"noise": [answer(3, 90, 0), answer(4, 90, 1)]})
    assert row["accuracy"] == pytest.approx(1 / 3)
    assert row["Brier"] == pytest.approx(0.1)
    assert row["Brier less P(answer)'s"] == pytest.approx(0.1 - 0.25)
    assert row["Brier out"] == 1.0
    assert row["confidence less accuracy, noise of the same norms"] == pytest.approx(0.4)


def test_the_table_pairs_what_ships_with_its_warm_start_by_seed():
    answers = {}
    names = {"recipe, warm start/0": 60, "recipe, warm start/1": 70}
    names |= {"recipe, shipped/0": 80, "recipe, shipped/1": 80}
    for name, confidence in names.items():
        for activations in ("own", *CONTROLS):
            answers[name, activations] = [answer(n, confidence, 1) for n in range(4)]
    lines = table_of(answers).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| recipe, warm start",
        "| recipe, shipped",
        "| recipe, shipped less warm start",
    ]
    # ECE10 falls from .4 and .3 to .2: by .15 in the mean.
    assert "-0.150 [" in lines[-1]


def test_what_grpo_adds_is_paired_by_question_and_averaged_over_seeds():
    answers = {}
    for seed, sure in enumerate((90, 70)):
        start = [answer(0, 50, 1), answer(1, 50, 0, "ag_news")]
        shipped = [answer(0, sure, 1), answer(1, None, 0, "ag_news")]
        answers[f"recipe, warm start/{seed}", "own"] = start
        answers[f"recipe, shipped/{seed}", "own"] = shipped
    lines = gains_of(answers).splitlines()
    # (.01 + .09) / 2 less .25 inside; outside nothing is stated, which counts as 50 %.
    assert lines[2].startswith("| recipe, all | 2 | -0.1000 [")
    assert lines[3].startswith("| recipe, in | 1 | -0.2000 [-0.2000, -0.2000] | +0.0000 [")
    # Half of the squared error counts in the reward.
    assert "| +0.1000 [+0.1000, +0.1000] |" in lines[3]
    # Without a tag the reward is the floor of -1.5, where it was -1/8.
    assert lines[4].startswith("| recipe, out | 1 | +0.0000 [")
    assert "| -1.3750 [-1.3750, -1.3750] |" in lines[4]
    # Both answers have a probability of one half, whatever they are worth.
    assert all(line.endswith("| +0.0000 [+0.0000, +0.0000] |") for line in lines[2:])


def test_an_arm_is_paired_with_the_recipe_by_seed_warm_start_with_warm_start():
    measured = {("before", "own"): [answer(0, None, True)]}
    for state, sure in (("warm start", 90), ("shipped", 50)):
        measured["recipe, " + state + "/0", "own"] = [answer(0, sure, True)]
        measured["kl 0.2 on tags, too, " + state + "/0", "own"] = [answer(0, 100, True)]
    measured["kl 0.2 on tags, too, shipped/0", "noise"] = []
    rows = dict(line[2:].split(" | ", 1) for line in against_recipe(measured).splitlines()[2:])
    assert len(rows) == 6
    assert rows["kl 0.2 on tags, too, warm start, in"].startswith("1 | -0.0100 [")
    assert rows["kl 0.2 on tags, too, shipped, in"].startswith("1 | -0.2500 [")


def test_accuracy_is_paired_with_before_and_the_number_with_the_answers_probability():
    own = [answer(0, 90, True, probability=0.8), answer(1, 50, False, "ag_news", 0.5)]
    other = [answer(0, 70, True, probability=1.0), answer(1, 50, True, "ag_news", 0.5)]
    before = [answer(0, None, False), answer(1, None, True, "ag_news")]
    measured = {("before", "own"): before, ("recipe, shipped/0", "own"): own}
    measured |= {("recipe, shipped/1", "own"): other, ("recipe, shipped/1", "noise"): before}
    rows = dict(line[2:].split(" | ", 1) for line in bars_of(measured).splitlines()[2:])
    # Right before: no, yes. Of the seeds: yes and no, yes and yes.
    assert rows["recipe, shipped, in"].startswith("1 | +1.0000 [")
    assert rows["recipe, shipped, out"].startswith("1 | -0.5000 [")
    assert rows["recipe, shipped, all"].startswith("2 | +0.2500 [")
    # (.1^2 - .2^2 + .3^2 - 0) / 2
    assert "| +0.0300 [" in rows["recipe, shipped, in"]
    assert "| +0.0000 [" in rows["recipe, shipped, out"]


def test_grpos_steps_are_compared_on_validation_texts(tmp_path):
    chosen = settings(tmp_path, arms=("recipe",))
    assert len(steps_of(chosen).splitlines()) == 2
    for seed in (0, 1):
        folder = folder_of(chosen, "recipe", seed) / "validation"
        folder.mkdir(parents=True)
        for step, right in ((0, 0), (20, seed)):
            rows = [answer(0, 50, right), answer(1, 50, 1, "snli")]
            path = folder / f"step_{step:06d}.jsonl"
            append_jsonl(path, [row.to_row() for row in rows])
    (folder / "step_000040.jsonl").touch()  # of one seed alone
    step, low, others = steps_of(chosen).splitlines()[2:]
    assert step.startswith("| recipe, step_000020 | 2 | +0.0000 [")
    assert "| +0.2500 [" in step
    assert "families below a guess | 1 | +0.0000 [" in low
    assert "| +0.5000 [+0.5000, +0.5000] | +0.5000 [+0.5000, +0.5000] |" in low
    assert "| +0.0000 [+0.0000, +0.0000] | +0.0000 [+0.0000, +0.0000] |" in others


# Targets of the family


def test_a_familys_mean_is_that_of_what_is_graded():
    probes = [answer(n, 50, 1, family).probe for n, family in enumerate(["sst2"] * 3 + ["snli"])]
    found = family_means(probes, np.zeros(4), np.array([1.0, 0.5, math.nan, 0.25]))
    assert found.tolist() == [0.75, 0.75, 0.75, 0.25]
