import json
import os
import stat
from pathlib import Path

import pytest

from grpo_ao import run
from grpo_ao.cli import main
from grpo_ao.config import TrainConfig
from grpo_ao.report import tables

RUN = "--preset mini --max_steps 2 --questions_per_step 2 --num_generations 2 --eval_probes 6"
RUN += " --warm_start_probes 2 --warm_start random --warm_start_steps 1 --save_steps 1"
RUN += " --validation_probes 4"


@pytest.fixture
def quick(monkeypatch):
    """Few draws and no figures: what intervals are worth is tested elsewhere."""
    measure, difference = tables.measure, tables.measure_difference
    monkeypatch.setattr(tables, "measure", lambda columns, **_: measure(columns, draws=3))
    monkeypatch.setattr(tables, "measure_difference", lambda a, b: difference(a, b, draws=3))
    monkeypatch.setattr(tables, "draw_figures", lambda *_: None)
    monkeypatch.setattr(run, "SAMPLED_PROBES", 2)


def metrics(folder: Path, name: str) -> dict:
    return json.loads((folder / "eval" / name / "metrics.json").read_text())


@pytest.fixture
def umask():
    """Another umask than most machines have."""
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def test_a_run_asks_its_benchmarks_before_during_and_after(tmp_path, quick, umask):
    folder = tmp_path / "run"
    flags = f"--benchmarks ner tense --eval_contexts 2 --eval_steps 1 --output_dir {folder}"
    main(f"train {RUN} {flags}".split())
    asked = ["after", "before", "step_000001", "warm_start"]
    assert sorted(p.name for p in (folder / "eval").iterdir()) == asked
    assert list(metrics(folder, "before")["oracles"]) == ["before"]
    after = metrics(folder, "after")
    assert list(after["oracles"]) == ["after", "before", "warm_start"]
    assert list(after["differences"]) == ["after - before", "after - warm_start"]
    assert list(metrics(folder, "warm_start")["differences"]) == ["warm_start - before"]
    assert after["oracles"]["after"]["groups"]["all"]["n"] == 4
    rows = [json.loads(line) for line in (folder / "eval/after/rows.jsonl").open()]
    assert {row["oracle"] for row in rows} == {"after"}
    assert {row["family"] for row in rows} == {"ner", "tense"}
    assert rows[0]["agreement"] is None
    # And beside the held-out measurement, what else could be had.
    baselines = json.loads((folder / "summary.json").read_text())["baselines"]
    asked = {
        name: sum(found[name]["n"] for found in baselines.values() if name in found)
        for name in ("answer probability", "agreement of 20")
    }
    assert asked == {"answer probability": 6, "agreement of 20": 2}
    # The validation probes keep their answers' probability, at the start and after each step.
    steps = sorted((folder / "validation").iterdir())
    assert [path.stem for path in steps] == ["step_000000", "step_000001", "step_000002"]
    validated = [json.loads(line) for path in steps for line in path.open()]
    assert all(0 <= row["answer_probability"] <= 1 for row in validated)
    # One card, none of TRL's and PEFT's beside checkpoints, and files that the group can read.
    assert [path.parent.name for path in folder.rglob("README.md")] == ["adapter"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def test_bad_settings_are_one_sentence():
    with pytest.raises(ValueError, match="no benchmark 'sst3'"):
        TrainConfig(benchmarks=("sst3",))
    with pytest.raises(ValueError, match="--eval_contexts must be at least 2"):
        TrainConfig(eval_contexts=1)
    with pytest.raises(ValueError, match="--eval_steps must be above 0"):
        TrainConfig(eval_steps=0)
