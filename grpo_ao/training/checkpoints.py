"""Checkpoints of a run, and the adapter that is trained."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import TrainerCallback

from grpo_ao.files import as_umask_says, mark_whole, why_not_whole
from grpo_ao.oracle.layers import decoder_of, unwrap
from grpo_ao.oracle.merging import ADAPTER
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.spec import SPEC_FILE, save_spec
from grpo_ao.processes import Processes

COMPLETE = "complete.json"


class CheckpointCallback(TrainerCallback):
    """Completes TRL's checkpoints with ``ao_config.json`` and, last, a mark that they are whole.

    ``on_whole`` is called behind each.
    """

    def __init__(
        self, oracle: Oracle, processes: Processes, on_whole: Callable[[], None] = lambda: None
    ) -> None:
        self._oracle = oracle
        self._processes = processes
        self._on_whole = on_whole

    def on_save(self, args, state, control, **kwargs):
        """Mark the checkpoint that was just written, when every process has written its part."""
        self._processes.wait()
        if self._processes.is_main:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            for name in (COMPLETE, "README.md"):  # PEFT's card holds nothing but headings
                (folder / name).unlink(missing_ok=True)
            save_spec(self._oracle.spec, folder)
            files = [path for path in folder.rglob("*") if path.is_file()]
            for path in files:
                as_umask_says(path)
            mark_whole(folder / COMPLETE, files, step=state.global_step)
        self._on_whole()


def mark_adapter(folder: Path, **values: Any) -> None:
    """Write the mark that the adapter in ``folder`` is whole."""
    mark_whole(folder / COMPLETE, [*folder.glob("adapter_*"), folder / SPEC_FILE], **values)


class StopCallback(TrainerCallback):
    """Ends training behind the step in which a signal came to any process, with a checkpoint."""

    def __init__(self, come: Sequence[int], processes: Processes) -> None:
        self._come = come
        self._processes = processes

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint and the end."""
        if any(self._processes.gathered([len(self._come)])):
            control.should_save = control.should_training_stop = True


def last_checkpoint(folder: Path, report: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint that holds; ``report`` is told of each newer one and its fault.

    One that a kill left without its mark is no fault.
    """
    marks = {step_of(mark.parent): mark for mark in folder.glob(f"checkpoint-*/{COMPLETE}")}
    for step in sorted(marks, reverse=True):
        fault = why_not_whole(marks[step])
        if fault is None:
            return marks[step].parent
        report(f"{marks[step].parent} is passed over, for {fault}.")
    return None


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def make_trainable(oracle: Oracle) -> None:
    """Let gradients reach the weights of the oracle's adapter that a text passes through.

    An adapter of a multimodal model may have weights in the vision tower: no text reaches them.
    """
    base = unwrap(oracle.model)
    parts = [decoder_of(base), base.get_output_embeddings()]
    reached = {id(p) for part in parts if part is not None for p in part.parameters()}
    for name, parameter in oracle.model.named_parameters():
        own = f".{ADAPTER}." in name or name.endswith(f".{ADAPTER}")
        parameter.requires_grad_(own and id(parameter) in reached)


def load_adapter(oracle: Oracle, folder: Path) -> None:
    """Put the weights of a saved adapter into the oracle's adapter."""
    device = next(oracle.model.parameters()).device
    weights = load_peft_weights(str(folder), device=str(device))
    set_peft_model_state_dict(oracle.model, weights, adapter_name=ADAPTER)
