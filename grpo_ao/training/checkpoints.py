"""Checkpoints of a run, and the adapter that is trained."""

import json
from pathlib import Path

from peft import set_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import TrainerCallback

from grpo_ao.files import atomic_write_json
from grpo_ao.oracle.layers import decoder_of, unwrap
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.spec import save_spec
from grpo_ao.processes import Processes

COMPLETE = "complete.json"


class CheckpointCallback(TrainerCallback):
    """Completes TRL's checkpoints with ``ao_config.json`` and, last, a mark that they are whole."""

    def __init__(self, oracle: Oracle, processes: Processes) -> None:
        self._oracle = oracle
        self._processes = processes

    def on_save(self, args, state, control, **kwargs):
        """Mark the checkpoint that was just written, when every process has written its part."""
        self._processes.wait()
        if not self._processes.is_main:
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        save_spec(self._oracle.spec, folder)
        atomic_write_json(folder / COMPLETE, {"step": state.global_step})


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint that was written whole."""
    marks = folder.glob(f"checkpoint-*/{COMPLETE}")
    whole = sorted((json.loads(mark.read_text())["step"], mark.parent) for mark in marks)
    return whole[-1][1] if whole else None


def make_trainable(oracle: Oracle) -> None:
    """Let gradients reach the weights of the adapter ``default`` that a text passes through.

    An adapter of a multimodal model may have weights in the vision tower: no text reaches them.
    """
    base = unwrap(oracle.model)
    parts = [decoder_of(base), base.get_output_embeddings()]
    reached = {id(p) for part in parts if part is not None for p in part.parameters()}
    for name, parameter in oracle.model.named_parameters():
        own = ".default." in name or name.endswith(".default")
        parameter.requires_grad_(own and id(parameter) in reached)


def load_adapter(oracle: Oracle, folder: Path) -> None:
    """Put the weights of a saved adapter into the adapter ``default``."""
    device = next(oracle.model.parameters()).device
    weights = load_peft_weights(str(folder), device=str(device))
    set_peft_model_state_dict(oracle.model, weights, adapter_name="default")
