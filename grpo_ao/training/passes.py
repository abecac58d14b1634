"""How the passes of supervised training run on a GPU: in bfloat16, without copies."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from peft.helpers import disable_input_dtype_casting

from grpo_ao.oracle.layers import input_device
from grpo_ao.oracle.norms import fused_norms
from grpo_ao.oracle.oracle import Oracle


@contextmanager
def fast_passes(oracle: Oracle, compiled: bool = False) -> Iterator[None]:
    """Inside the block, keep a GPU's passes from copying; on a CPU change nothing.

    PEFT's own casts would copy the input of every linear layer to float32, and autocast back.
    Norms are one kernel each, unless the compiler makes one of them and their neighbours.
    """
    on_gpu = input_device(oracle.model).type == "cuda"
    norms = nullcontext() if compiled else fused_norms(oracle.model)
    with disable_input_dtype_casting(oracle.model, active=on_gpu), norms:
        yield


def autocast(device: torch.device) -> torch.autocast:
    """Return what one pass runs in: it keeps copies of the weights, which a step makes stale."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
