"""How the passes of training run: in few kernels, and on a GPU in bfloat16, without copies."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from peft.helpers import disable_input_dtype_casting

from grpo_ao.oracle.layers import input_device
from grpo_ao.oracle.norms import fused, rms_norms
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.training.captured import CapturedDecoder
from grpo_ao.training.fused_adapter import FusedAdapter


class FastPasses:
    """An oracle's passes in few kernels, between ``begin`` and ``end``.

    On a GPU they run in bfloat16 and without copies: PEFT's own casts would copy the input of every
    linear layer to float32, and autocast back. ``captured`` passes are replayed where their shapes
    come again. The model's modules are looked through once: each time would be a part of a small
    model's step.
    """

    def __init__(self, oracle: Oracle, captured: bool = False) -> None:
        self._model = oracle.model
        self._on_gpu = input_device(oracle.model).type == "cuda"
        self._norms = rms_norms(oracle.model) if self._on_gpu else []
        self._adapter = FusedAdapter(oracle.model)
        self._decoder = CapturedDecoder(oracle, self._adapter) if captured else None
        self._stack, self._is_on = ExitStack(), False

    def begin(self) -> None:
        """Let passes be fast ones from here on; again changes nothing."""
        if self._is_on:
            return
        self._is_on = True
        if self._on_gpu and not self._adapter.is_whole:
            self._stack.enter_context(disable_input_dtype_casting(self._model))
        self._stack.enter_context(fused(self._norms))
        self._stack.enter_context(self._adapter.on())
        if self._decoder is not None:
            self._stack.enter_context(self._decoder.on())

    def end(self) -> None:
        """Let passes be as they were."""
        self._stack.close()
        self._is_on = False

    def free(self) -> None:
        """Hand back what captured passes keep."""
        if self._decoder is not None:
            self._decoder.free()

    def __enter__(self) -> "FastPasses":
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        self.free()


@contextmanager
def without_copies(oracle: Oracle) -> Iterator[None]:
    """Make passes on a GPU without copies, and leave the rest to the compiler."""
    on_gpu = input_device(oracle.model).type == "cuda"
    with disable_input_dtype_casting(oracle.model, active=on_gpu):
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
