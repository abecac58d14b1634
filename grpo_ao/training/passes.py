"""How the passes of training run: in few kernels, and on a GPU in bfloat16, without copies."""

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
    """Inside the block, make passes in few kernels, on a GPU in bfloat16 and without copies.

    PEFT's own casts would copy the input of every linear layer to float32, and autocast back. What
    the compiler makes of norms and LoRA layers is left to it.
    """
    model, on_gpu = oracle.model, input_device(oracle.model).type == "cuda"
    with ExitStack() as stack:
        stack.enter_context(disable_input_dtype_casting(model, active=on_gpu))
        if not compiled:
            stack.enter_context(fused_norms(model))
            stack.enter_context(fused_adapter(model))
        yield


def autocast(device: torch.device) -> torch.autocast:
    """Return what one pass runs in: it keeps copies of the weights, which a step makes stale."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def avoid_cudnn_attention() -> None:
    """Take another of torch's attention kernels in this process.

    On Hopper, from torch 2.11 on, cuDNN's backward gives NaN where a mask is given, the length is
    64 modulo 128 and a query (one in left padding) sees no key: PyTorch issue 196678. One such
    batch makes the whole adapter NaN.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
