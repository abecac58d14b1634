"""What a user sees of a run under way: progress, and the loggers (wandb, TensorBoard, trackio)."""

import importlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rich.console import Console
from transformers import TrainerCallback

from grpo_ao.errors import UserError, first_line
from grpo_ao.files import read_json
from grpo_ao.terminal import progress_bar

T = TypeVar("T")


class Reporter:
    """Where a run's metrics go besides ``metrics.jsonl``: several destinations, one, or none."""

    def __init__(self, each: Sequence["Reporter"] = ()) -> None:
        self._each = each

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers of a step."""
        for reporter in self._each:
            reporter.scalars(step, values)

    def image(self, step: int, name: str, path: Path) -> None:
        """Log a PNG file."""
        for reporter in self._each:
            reporter.image(step, name, path)

    def table(self, step: int, name: str, rows: list[dict[str, Any]]) -> None:
        """Log rows with equal keys."""
        for reporter in self._each:
            reporter.table(step, name, rows)

    def alert(self, title: str, text: str) -> None:
        """Notify the user."""
        for reporter in self._each:
            reporter.alert(title, text)


class ModuleReporter(Reporter):
    """wandb, or trackio, which has the same calls; ``settings`` are for their ``init``."""

    def __init__(self, module: Any, **settings: Any) -> None:
        self._module = module
        self._run = module.init(**settings)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers of a step."""
        self._module.log(values, step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Log a PNG file."""
        self._module.log({name: self._module.Image(str(path))}, step=step)

    def table(self, step: int, name: str, rows: list[dict[str, Any]]) -> None:
        """Log rows as a table."""
        from pandas import DataFrame

        self._module.log({name: self._module.Table(dataframe=DataFrame(rows))}, step=step)

    def alert(self, title: str, text: str) -> None:
        """Send an alert."""
        self._module.alert(title=title, text=text)


class TensorBoardReporter(Reporter):
    """Event files in the run's folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers of a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def image(self, step: int, name: str, path: Path) -> None:
        """Log a PNG file."""
        from matplotlib.image import imread

        self._writer.add_image(name, imread(path), step, dataformats="HWC")

    def table(self, step: int, name: str, rows: list[dict[str, Any]]) -> None:
        """Log rows as text."""
        self._writer.add_text(name, "\n\n".join(map(str, rows)), step)

    def alert(self, title: str, text: str) -> None:
        """Log the alert as text."""
        self._writer.add_text(f"alert/{title}", text)


def check_destinations(destinations: Sequence[str]) -> str | None:
    """Return what the user should know of the destinations before a run, if there is anything.

    Raises UserError where a package is absent or what it logs in with cannot be read.
    """
    for destination in destinations:
        try:
            if destination != "none":
                importlib.import_module(destination)
        except ImportError as error:
            raise UserError(
                f"--report_to {destination} needs its package: pip install {destination}."
            ) from error
    if "wandb" in destinations and not _logs_in():
        return (
            f"wandb has no key for {_wandb_host()}, so the run is logged offline in its folder: "
            "`wandb login` before a run, or `wandb sync` after it, sends it there."
        )
    return None


def _logs_in() -> bool:
    return "WANDB_MODE" in os.environ or _has_wandb_key()


def _wandb_host() -> str:
    return urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""


def _has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return path.exists() and netrc(path).authenticators(_wandb_host()) is not None
    except (NetrcParseError, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"wandb cannot read its key from {path} ({error}): mend it, or set WANDB_API_KEY."
        ) from error


def make_reporter(destinations: Sequence[str], folder: Path, config: dict) -> Reporter:
    """Open the destinations of the run in ``folder``, which goes on in its wandb run if resumed.

    WANDB_PROJECT names another project than grpo_ao, WANDB_RUN_ID another run. Raises UserError as
    ``check_destinations``.
    """
    check_destinations(destinations)
    reporters = []
    for destination in destinations:
        try:
            if destination != "none":
                reporters.append(_opened(destination, folder, config))
        except Exception as error:  # each has errors of its own: a wrong key, no network, ...
            raise UserError(
                f"--report_to {destination} cannot be opened ({first_line(error)}): mend that, or "
                "leave it out."
            ) from error
    return Reporter(reporters)


def _opened(destination: str, folder: Path, config: dict) -> Reporter:
    if destination == "tensorboard":
        return TensorBoardReporter(folder)
    settings: dict[str, Any] = {"name": folder.name, "config": config}
    settings["project"] = os.environ.get("WANDB_PROJECT", "grpo_ao")
    if destination == "wandb":
        if not _logs_in():
            os.environ["WANDB_MODE"] = "offline"
        os.environ.setdefault("WANDB_DIR", str(folder))
        record = folder / "run.json"
        if record.exists():
            own = read_json(record).get("id")
            settings |= {"id": os.environ.get("WANDB_RUN_ID", own), "resume": "allow"}
    return ModuleReporter(importlib.import_module(destination), **settings)


class PhaseProgress:
    """Shows the phases of a run one after the other, each with its own count and time left."""

    def __init__(self, console: Console) -> None:
        self._progress = progress_bar(console, "{task.description}")
        self._task = None
        self._past: dict[str, float] = {}
        self._now: tuple[str, float] | None = None

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator["PhaseProgress"]:
        """Show one phase of ``total`` units while the block runs."""
        self._task = self._progress.add_task(name, total=total)
        self._progress.start()
        self._now = name, time.perf_counter()
        try:
            yield self
        finally:
            self._past, self._now = self.seconds(), None
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None

    def track(self, name: str, items: Sequence[T]) -> Iterator[T]:
        """Yield the items of a phase; one is done when the next is asked for."""
        with self.phase(name, len(items)):
            for item in items:
                yield item
                self.advance(1)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase so far, the one under way included."""
        if self._now is None:
            return dict(self._past)
        name, began = self._now
        return self._past | {name: self._past.get(name, 0.0) + time.perf_counter() - began}

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
