"""Tables of a run's benchmark evaluations, laid out from their ``metrics.json``."""

from collections.abc import Sequence
from typing import Any

from grpo_ao.report.run_record import Evaluation

COLUMNS = {
    "accuracy": "Accuracy",
    "ece10": "ECE",
    "auroc": "AUROC",
    "brier": "Brier",
    "parse_rate": "Parsed",
}
_OF_BASELINES = ("ece10", "auroc", "brier")
_PUBLISHED = "published, Qwen3-8B (arXiv 2605.26045)"
_GROUPS = {
    "all": "All benchmarks",
    "in_distribution": "In distribution",
    "out_of_distribution": "Out of distribution",
}
_WHEN = {"before": "before training", "after": "after training"}

Metrics = dict[str, Any]


def benchmark_tables(evaluations: Sequence[Evaluation]) -> dict[str, Any] | None:
    """Return what the report shows of the evaluations, or None if there are none.

    ``rows`` are the pooled groups and the benchmarks, each with its metrics in the first and in
    the last evaluation, and of groups the paired ``change``; ``baselines`` those of the last;
    ``course`` the pooled metrics of each.
    """
    if not evaluations:
        return None
    first, last = _oracle(evaluations[0]), _oracle(evaluations[-1])
    # The last evaluation compares itself with the first, by pooled groups.
    changes = next(iter(evaluations[-1].metrics["differences"].values()), {})
    rows = [
        {"name": _GROUPS.get(name, name), "pooled": part == "groups"}
        | {"first": first[part].get(name), "last": metrics}
        | {"change": changes.get(name) if part == "groups" else None}
        for part in ("groups", "benchmarks")
        for name, metrics in last[part].items()
    ]
    return {
        "columns": COLUMNS,
        "compared": len(evaluations) > 1,
        "first": when(evaluations[0].name),
        "last": when(evaluations[-1].name),
        "rows": rows,
        "baseline_columns": {name: COLUMNS[name] for name in _OF_BASELINES},
        "baselines": _baselines(evaluations[-1]),
        "course": [(when(e.name), _oracle(e)["groups"]["all"]) for e in evaluations],
    }


def _baselines(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return each source of confidence with its metrics and its cost in tokens an item.

    A recalibrated source (``agreement of 20 + isotonic``) costs what the source costs.
    """
    oracle = _oracle(evaluation)
    costs = oracle.get("generated_tokens", {})
    rows = [
        {"name": name, "tokens": costs.get(name.split(" + ")[0]), "metrics": metrics}
        for name, metrics in oracle.get("baselines", {}).items()
    ]
    published = evaluation.metrics.get("published", {}) if rows else {}
    for name, values in published.items():
        metrics = {
            key: {"value": value, "low": None, "high": None} for key, value in values.items()
        }
        rows.append({"name": f"{_PUBLISHED}: {name}", "tokens": None, "metrics": metrics})
    return rows


def _exact(value: float) -> dict[str, float | None]:
    return {"value": value, "low": None, "high": None}


def when(name: str) -> str:
    """Say when an evaluation was made, from its folder's name: ``step_000100`` is step 100."""
    if name.startswith("step_"):
        return f"step {int(name.removeprefix('step_'))}"
    return _WHEN.get(name, name)


def _oracle(evaluation: Evaluation) -> dict[str, Any]:
    """Return the metrics of the run's own oracle, which comes first."""
    return next(iter(evaluation.metrics["oracles"].values()))
