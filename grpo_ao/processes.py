"""The processes of a run that ``accelerate launch`` started, and how they share its work."""

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from grpo_ao.errors import UserError

T = TypeVar("T")
# How long a process waits for the others before it gives up.
_PATIENCE = timedelta(minutes=30)
# What accelerate's launcher may set, and what to do instead of anything else.
_FSDP_OPTIONS = {
    "FSDP_VERSION": ("2", "launch with FSDP version 2"),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "leave it out, or launch without FSDP"),
    "FSDP_OFFLOAD_PARAMS": ("false", "divide the model over more processes instead"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "use --gradient_checkpointing"),
}


def take_over_fsdp() -> bool:
    """Return whether the launcher asks for FSDP, and keep accelerate from it.

    It would divide the whole model, the adapter too; see ``oracle.sharding`` for what is divided.
    Raises UserError for what that does not do: an option of FSDP, or DeepSpeed ZeRO-3.
    """
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise UserError(
            "DeepSpeed ZeRO-3 divides the adapter too, but rollouts and measurements need it "
            "whole: launch with FSDP, which divides the base model alone."
        )
    if os.environ.pop("ACCELERATE_USE_FSDP", "false") != "true":
        return False
    for name, (supported, remedy) in _FSDP_OPTIONS.items():
        value = os.environ.get(name, supported)
        if value != supported:
            raise UserError(
                f"the launcher sets {name.lower()} to {value}, but only {supported} is supported: "
                f"{remedy}."
            )
    return True


def device_name(device: torch.device) -> str:
    """Return what a device is called: a GPU's model, or the processor's architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {platform.machine()}"


class Processes:
    """This process among those of its run; without a launcher it is alone, and the main one.

    ``index`` counts from 0, the main process, which alone writes files and prints. ``device`` is
    this process's GPU (that of ``LOCAL_RANK``), or the CPU where there is none.
    """

    def __init__(self) -> None:
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
        self.index = state.process_index
        self.count = state.num_processes
        self.device = torch.device(state.device or "cpu")

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.index == 0

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in the main process, then in the others, which find what it made.

        Where it fails in the main process, the others end without a word: SystemExit.
        """
        if not self.is_main and not all(gather_object([True])):
            raise SystemExit(1)
        done = False
        try:
            yield
            done = True
        finally:
            if self.is_main:
                gather_object([done])

    def wait(self) -> None:
        """Go on when every process has come here."""
        PartialState().wait_for_everyone()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's run of the items; the shares differ by at most one in length."""
        first, stop = (len(items) * i // self.count for i in (self.index, self.index + 1))
        return items[first:stop]

    def gathered(self, share: Sequence[T]) -> list[T]:
        """Return the shares of all processes, in the order that ``share`` divided."""
        return gather_object(list(share))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes; one that is absent counts as 0."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)
