"""A run's folder, made by hand: as a run leaves it when it is finished, under way or killed."""

import json
import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from grpo_ao.answer import Agreement, Answer
from grpo_ao.probe import Positions, Probe
from grpo_ao.report.formats import TITLES
from grpo_ao.report.plots import risk_coverage_diagram, save

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><b>bold</b> & 'quoted'"
PROBES = 60

_CONFIG = {
    "model": "Qwen/Qwen3-8B",
    "oracle_lora_path": "someone/oracle",
    "questions": "someone/questions",
    "judge": "api",
    "max_steps": 40,
    "temperature": 1.0,
    "calibration_lambda": 0.5,
    "layers": [],
    "layer_percents": [],
    "positions": "last:20",
    "warm_start": "measured",
    "warm_start_probes": 2000,
    "warm_start_batch": 32,
    "warm_start_steps": 30,
    "questions_per_step": 8,
    "num_generations": 8,
    "lr": 1e-6,
    "kl_penalty": 0.05,
    "credit": "split",
}


def make_run(folder: Path, finished: bool = True, evaluations: bool = False) -> Path:
    """Write what a run of 40 steps leaves behind; an unfinished one stopped at step 20."""
    folder.mkdir(parents=True)
    write_json(folder / "run.json", _record())
    write_json(folder / "warm_start" / "summary.json", _warm_start())
    for mode in ("sampled", "greedy"):
        write_rows(
            folder / f"heldout_before_{mode}.jsonl", rows_of(heldout_answers(seed=1, knows=False))
        )
        if finished:
            write_rows(
                folder / f"heldout_after_{mode}.jsonl", rows_of(heldout_answers(seed=2, knows=True))
            )
    if finished:
        noise = rows_of(heldout_answers(seed=3, knows=False))
        write_rows(folder / "controls.jsonl", [row | {"control": "noise"} for row in noise])
    write_rows(folder / "metrics.jsonl", metrics_rows(40 if finished else 20))
    kept = [{"step": step, **answer.to_row()} for step, answer in rollouts()]
    write_rows(folder / "rollouts.jsonl", kept)
    if finished:
        values = {"n": 59, "ece10": 0.0625, "auroc": 0.875, "brier": 0.125}
        summary = {"after": {"greedy": values}, "seconds": 90.0}
        write_json(folder / "summary.json", summary)
        write_json(folder / "adapter" / "adapter_config.json", {})
        write_json(folder / "adapter" / "ao_config.json", {})
        (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
        (folder / "reliability.png").write_bytes(b"png")
    if evaluations:
        for name, accuracy in (("before", 0.5), ("step_000020", 0.6), ("after", 0.75)):
            write_json(folder / "eval" / name / "metrics.json", benchmark_metrics(accuracy))
            curves = {"after": (np.array([0.5, 1.0]), np.array([0.0, 0.5]))}
            save(risk_coverage_diagram(curves), folder / "eval" / name / "risk_coverage.png")
    return folder


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _record() -> dict:
    return {
        "command": ["train.py", "--preset", "mini"],
        "config": _CONFIG,
        "data": {"train": "0123456789abcdef", "heldout": "fedcba9876543210"},
        "judge": {"judge": "api", "model": "some/judge", "rubric": "v1"},
        "seed": 7,
        "git_commit": "c0ffee",
        "versions": {"torch": "2.13.0", "trl": "1.16.0"},
        "python": "3.11.7",
        "started": "2026-01-02T03:04:05+0000",
    }


def _warm_start() -> dict:
    metrics = {"n": 400, "informativeness": 0.6, "ece10": 0.3, "parse_rate": 0.5}
    return {
        "before": metrics,
        "after": metrics | {"parse_rate": 0.99},
        "losses": [1 / step for step in range(1, 31)],
    }


def heldout_answers(seed: int, knows: bool) -> list[Answer]:
    """Three questions a text; the first is hostile, the second malformed, the third ungraded."""
    rng = random.Random(seed)
    answers = []
    for number in range(PROBES):
        right = number % 3 != 0
        confidence = (80 if right else 30) + rng.randint(-20, 19) if knows else rng.randint(0, 100)
        probe = Probe(
            HOSTILE if number == 0 else f"Text {number // 3}.",
            HOSTILE if number == 0 else f"Question {number}?",
            ("open", "closed")[number % 2],
            ((9,), (18,), (27,))[number % 3],
            Positions.parse("last:20"),
            "Rome",
            ("topic", "city")[number % 2],
        )
        said = HOSTILE if number == 0 else "Rome" if right else "Oslo"
        answer = Answer.read(
            probe, "Rome" if number == 1 else f"[epistemic status: {confidence}] {said}"
        )
        answers.append(
            replace(
                answer,
                informativeness=None if number == 2 else float(right and number != 1),
                answer_probability=0.5,
                agreement=Agreement(15, 20, 180) if number < 40 else None,
                reason="the reply is no grade" if number == 2 else None,
                characters_read=(10, 19) if number == 0 else None,
                judge_reply="perhaps <b>A</b>" if number == 2 else '{"grade": "A"}',
            )
        )
    return answers


def metrics_rows(steps: int) -> list[dict]:
    """Metrics of each step, and two alerts: a known one, and one that no curve is named for."""
    rows: list[dict] = [
        {
            "step": step,
            "reward": step / 100,
            "confidence_std": 0.3 if step < 10 else 0.05,
            "auroc": None if step == 1 else 0.7,
            "kl": None,
            "seconds_generate": 1.5,
        }
        for step in range(1, steps + 1)
    ]
    rows.insert(10, {"step": 10, "alert": "confidence_collapse", "message": "all alike"})
    rows.append({"step": 15, "alert": "new_alert", "message": f"see {HOSTILE}"})
    return rows


def rollouts() -> list[tuple[int, Answer]]:
    """Two steps with two questions each, four completions a question."""
    kept = []
    for step, question, sample in product((10, 20), (1, 2), range(4)):
        asked = f"Rollout question {question} of step {step}?"
        probe = Probe(HOSTILE, asked, "open", (18,), Positions.parse("last:20"), None, "city")
        said = HOSTILE if sample == 0 else "Rome"
        answer = Answer.read(probe, f"[epistemic status: {20 * sample + 10}] {said}")
        kept.append((step, replace(answer, informativeness=float(sample % 2), reward=0.25)))
    return kept


def rows_of(answers: list[Answer]) -> list[dict]:
    return [answer.to_row() for answer in answers]


def benchmark_metrics(accuracy: float) -> dict:
    """A ``metrics.json`` as an evaluation writes it."""
    entry = {"value": accuracy, "low": accuracy - 0.125, "high": accuracy + 0.125}
    size = {"n": 250, "contexts": 250}
    values: dict = dict.fromkeys(TITLES, entry) | size
    without = {"value": None, "low": None, "high": None}
    oracle = {
        "oracle": "after",
        "kind": "closed",
        "groups": {"all": values, "in_distribution": values},
        "benchmarks": {"sst2": values, "tense": values},
        "baselines": {
            "stated confidence": values,
            "stated confidence + isotonic": values | {"n": 125},
            "constant": values | {"auroc": without},
        },
        "generated_tokens": {"stated confidence": 8.5},
    }
    change = {"value": -0.5, "low": -0.75, "high": -0.25}
    return {
        "settings": {},
        "oracles": {"after": oracle, "before": oracle | {"oracle": "before"}},
        "differences": {"after - before": {"all": dict.fromkeys(TITLES, change) | size}},
        "seconds": 1.0,
    }
