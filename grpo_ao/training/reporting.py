"""Where metrics go besides the run's own files: wandb, TensorBoard, trackio."""

import importlib
import os
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

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
    """Raise ImportError with what to install where a destination's package is absent."""
    if destination == "none":
        return
    try:
        importlib.import_module(destination)
    except ImportError as error:
        raise ImportError(
            f"--report_to {destination} needs its package: pip install {destination}."
        ) from error


def make_reporter(destination: Destination, folder: Path, config: dict) -> Reporter:
    """Open a destination; ImportError with what to install where its package is absent."""
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
