"""How the passes of training run on a GPU: in bfloat16, in few kernels, without copies."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft.helpers import disable_input_dtype_casting

from grpo_ao.oracle.layers import input_device
from grpo_ao.oracle.norms import fused_norms
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.training.fused_adapter import fused_adapter


@contextmanager
def fast_passes(oracle: Oracle, compiled: bool = False) -> Iterator[None]:
    """Inside the block, keep a GPU's passes from copying and waiting; on a CPU change nothing.

    PEFT's own casts would copy the input of every linear layer to float32, and autocast back.
    Norms and LoRA layers are few kernels each, unless the compiler makes one of them and their
    neighbours.
    """
    with ExitStack() as stack:
        if input_device(oracle.model).type == "cuda":
            stack.enter_context(disable_input_dtype_casting(oracle.model))
            if not compiled:
                stack.enter_context(fused_norms(oracle.model))
                stack.enter_context(fused_adapter(oracle.model, torch.bfloat16))
        yield


def autocast(device: torch.device) -> torch.autocast:
    """Return what one pass runs in: it keeps copies of the weights, which a step makes stale."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
