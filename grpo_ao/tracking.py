"""What a user sees of a run under way: progress, and the loggers (wandb, TensorBoard, trackio)."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback

from grpo_ao.errors import UserError

Destination = Literal["none", "wandb", "tensorboard", "trackio"]


@runtime_checkable
class Reporter(Protocol):
    """One destination of a run's metrics."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers of a step."""

    def image(self, step: int, name: str, path: Path) -> None:
        """Log a PNG file."""

    def table(self, step: int, name: str, rows: list[dict[str, Any]]) -> None:
        """Log rows with equal keys."""

    def alert(self, title: str, text: str) -> None:
        """Notify the user."""


class NoReporter:
    """Report nowhere: ``metrics.jsonl`` has it all."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Do nothing."""

    def image(self, step: int, name: str, path: Path) -> None:
        """Do nothing."""

    def table(self, step: int, name: str, rows: list[dict[str, Any]]) -> None:
        """Do nothing."""

    def alert(self, title: str, text: str) -> None:
        """Do nothing."""


class ModuleReporter:
    """wandb, or trackio, which has the same calls; wandb runs offline where it has no key."""

    def __init__(self, module: Any, folder: Path, config: dict) -> None:
        self._module = module
        self._run = module.init(project="grpo_ao", name=folder.name, config=config)

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


class TensorBoardReporter:
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


def check_destination(destination: Destination) -> None:
    """Raise UserError with what to install where a destination's package is absent."""
    if destination == "none":
        return
    try:
        importlib.import_module(destination)
    except ImportError as error:
        raise UserError(
            f"--report_to {destination} needs its package: pip install {destination}."
        ) from error


def make_reporter(destination: Destination, folder: Path, config: dict) -> Reporter:
    """Open a destination; UserError with what to install where its package is absent."""
    check_destination(destination)
    if destination == "none":
        return NoReporter()
    if destination == "tensorboard":
        return TensorBoardReporter(folder)
    if destination == "wandb" and not os.environ.get("WANDB_API_KEY"):
        netrc = Path.home() / ".netrc"
        if not (netrc.exists() and "api.wandb.ai" in netrc.read_text()):
            os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_DIR", str(folder))
    return ModuleReporter(importlib.import_module(destination), folder, config)


class PhaseProgress:
    """Shows the phases of a run one after the other, each with its own count and time left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = None

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator["PhaseProgress"]:
        """Show one phase of ``total`` units while the block runs."""
        self._task = self._progress.add_task(name, total=total)
        self._progress.start()
        try:
            yield self
        finally:
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None

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
