"""Everything that a run folder holds, read back; what a run has not made yet is empty."""

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grpo_ao.errors import UserError
from grpo_ao.files import read_jsonl

Status = Literal["finished", "running", "stopped"]
WHEN = ("before", "after")
MODES = ("sampled", "greedy")


@dataclass(frozen=True)
class Evaluation:
    """One benchmark evaluation: its name, what ``metrics.json`` holds, its figures."""

    name: str
    metrics: dict[str, Any]
    figures: list[Path]


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds.

    ``steps`` are the rows of metrics, ``alerts`` the alerts among them; ``heldout`` holds the
    rows of each measurement by its name (``after sampled``); ``baselines`` are summaries
    of other ways to be sure of the greedy answers after training. ``summary``, ``warm_start`` and
    ``baselines`` are empty until the run has written them.
    """

    folder: Path
    run: dict[str, Any]
    status: Status
    summary: dict[str, Any]
    steps: list[dict[str, Any]]
    alerts: list[dict[str, Any]]
    heldout: dict[str, list[dict[str, Any]]]
    rollouts: list[dict[str, Any]]
    warm_start: dict[str, Any]
    evaluations: list[Evaluation]
    baselines: dict[str, dict[str, float]]

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration."""
        return self.run["config"]

    @property
    def last_step(self) -> int:
        """The last step that was recorded, 0 before the first."""
        return self.steps[-1]["step"] if self.steps else 0


def read_run(folder: Path) -> RunRecord:
    """Read a run, whether it is finished, under way or was killed.

    Raises UserError if ``folder`` holds no run.
    """
    if not (folder / "run.json").is_file():
        raise UserError(f"there is no run in {folder}: it holds no run.json.")
    rows = read_jsonl(folder / "metrics.jsonl")
    names = [(when, mode) for when in WHEN for mode in MODES]
    heldout = {f"{w} {m}": read_jsonl(folder / f"heldout_{w}_{m}.jsonl") for w, m in names}
    return RunRecord(
        folder=folder,
        run=_read_json(folder / "run.json"),
        status=_status(folder),
        summary=_read_json(folder / "summary.json"),
        steps=[row for row in rows if "alert" not in row],
        alerts=[row for row in rows if "alert" in row],
        heldout={name: answers for name, answers in heldout.items() if answers},
        rollouts=read_jsonl(folder / "rollouts.jsonl"),
        warm_start=_read_json(folder / "warm_start" / "summary.json"),
        evaluations=_evaluations(folder / "eval"),
        baselines=_read_json(folder / "heldout_baselines.json"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _status(folder: Path) -> Status:
    if (folder / "summary.json").exists():
        return "finished"
    lock = folder / ".lock"
    if not lock.exists():
        return "stopped"
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return "running"
    return "stopped"


def _evaluations(folder: Path) -> list[Evaluation]:
    """Read the evaluations in the order in which a run makes them."""
    paths = sorted(folder.glob("*/metrics.json"), key=lambda path: _order(path.parent.name))
    return [
        Evaluation(path.parent.name, _read_json(path), sorted(path.parent.glob("*.svg")))
        for path in paths
    ]


def _order(name: str) -> tuple[int, str]:
    return ({"before": 0, "after": 2}.get(name, 1), name)
