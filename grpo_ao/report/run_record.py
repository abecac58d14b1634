"""Everything that a run folder holds, read back; what a run has not made yet is empty."""

import fcntl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from grpo_ao.answer import Answer, read_answer_rows
from grpo_ao.errors import UserError
from grpo_ao.files import holds_run, read_faults, read_json, read_jsonl, read_run_json
from grpo_ao.measuring.confidences import baselines
from grpo_ao.measuring.metrics import by_kind, summary
from grpo_ao.measuring.reading import CONTROLS

Status = Literal["finished", "running", "stopped"]
WHEN = ("before", "warm start", "after")
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
    answers of each finished measurement by its name (``after sampled``), ``controls`` the trained
    oracle's from other activations, ``rollouts`` those that were kept of training, each with its
    step. ``summary`` and ``warm_start`` are empty until the run has written them.
    """

    folder: Path
    run: dict[str, Any]
    status: Status
    summary: dict[str, Any]
    steps: list[dict[str, Any]]
    alerts: list[dict[str, Any]]
    heldout: dict[str, list[Answer]]
    controls: dict[str, list[Answer]]
    rollouts: list[tuple[int, Answer]]
    warm_start: dict[str, Any]
    evaluations: list[Evaluation]

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration."""
        return self.run["config"]

    @cached_property
    def baselines(self) -> dict[str, dict[str, dict[str, float]]]:
        """Summaries of each way to be sure of the greedy answers after training, by kind."""
        return {
            kind: {name: summary(columns) for name, columns in baselines(answers).items()}
            for kind, answers in by_kind(self.heldout.get("after greedy", [])).items()
        }

    def of_mode(self, mode: str) -> dict[str, list[Answer]]:
        """Return the held-out answers of each measurement that was made in a mode, in order."""
        names = {when: f"{when} {mode}" for when in WHEN}
        return {w: self.heldout[name] for w, name in names.items() if name in self.heldout}

    @property
    def last_step(self) -> int:
        """The last step that was recorded, 0 before the first."""
        return self.steps[-1]["step"] if self.steps else 0


def read_run(folder: Path) -> RunRecord:
    """Read a run, whether it is finished, under way or was killed.

    Raises UserError if ``folder`` holds no run, and for the folder of another command.
    """
    if not holds_run(folder):
        raise UserError(f"there is no run in {folder}: it holds no run.json.")
    run = read_run_json(folder)
    _check_command(folder, run["config"])
    rows = read_jsonl(folder / "metrics.jsonl")
    names = [(when, mode) for when in WHEN for mode in MODES]
    heldout = {f"{w} {m}": read_answers(heldout_path(folder, w, m)) for w, m in names}
    # A measurement that is under way has fewer answers than those before it.
    whole = max(map(len, heldout.values()))
    return RunRecord(
        folder=folder,
        run=run,
        status=_status(folder),
        summary=_read_json(folder / "summary.json"),
        steps=[row for row in rows if "alert" not in row],
        alerts=[row for row in rows if "alert" in row],
        heldout={n: answers for n, answers in heldout.items() if answers and len(answers) == whole},
        controls=_controls(folder / "controls.jsonl"),
        rollouts=_rollouts(folder / "rollouts.jsonl"),
        warm_start=_read_json(folder / "warm_start" / "summary.json"),
        evaluations=_evaluations(folder / "eval"),
    )


def _check_command(folder: Path, config: dict[str, Any]) -> None:
    """Raise UserError where it was not ``train`` that wrote the folder's settings."""
    if "max_steps" in config:
        return
    what = "make-oracle, of which there is no report"
    if "num_contexts" in config:
        what = "an evaluation, of which `grpo-ao report` makes tables once it has ended"
    raise UserError(f"{folder} is the folder of {what}: name that of a run of `grpo-ao train`.")


def heldout_path(folder: Path, when: str, mode: str) -> Path:
    """Return the file of a held-out measurement's answers."""
    return folder / f"heldout_{when.replace(' ', '_')}_{mode}.jsonl"


def _controls(path: Path) -> dict[str, list[Answer]]:
    """Read the answers from other activations, by the control's title."""
    found: dict[str, list[Answer]] = {}
    with read_faults(path):
        for row, answer in read_answer_rows(path):
            found.setdefault(CONTROLS[row["control"]], []).append(answer)
    return found


def _rollouts(path: Path) -> list[tuple[int, Answer]]:
    with read_faults(path):
        return [(row["step"], answer) for row, answer in read_answer_rows(path)]


def read_answers(path: Path) -> list[Answer]:
    """Read the answers in a file; none where there is no file."""
    return [answer for _, answer in read_answer_rows(path)]


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


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
    return ({"before": 0, "warm_start": 1, "after": 3}.get(name, 2), name)
