"""The frozen base weights divided over the processes of a run (FSDP 2); the adapter stays whole.

With LoRA only the base weights are large. Each process keeps its part of every decoder layer, and a
layer is gathered for as long as a forward or backward pass is in it. So every process must make a
pass when one does: ``together`` lets those that have less to do take part in the others' passes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from grpo_ao.oracle.injection import injection_off
from grpo_ao.oracle.layers import decoder_layers, decoder_of, input_device


def shard_base(model: PreTrainedModel, device: torch.device) -> None:
    """Divide the decoder layers' weights over all processes, and move everything to ``device``.

    Before an adapter is added. Embeddings, output layer and what else is not of a decoder layer is
    kept whole by each process. No more than one layer is whole on ``device`` at a time.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    decoder = decoder_of(model)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    whole = {p for p in decoder.parameters() if not isinstance(p, DTensor)}
    fully_shard(decoder, mesh=mesh, ignored_params=whole)
    for tensor in [*model.parameters(), *model.buffers()]:
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)
    _LOCKSTEPS[decoder] = _Lockstep(model)


def is_sharded(model: PreTrainedModel | PeftModel) -> bool:
    """Return whether the base weights are divided over processes."""
    return decoder_of(model) in _LOCKSTEPS


@contextmanager
def together(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Let processes make different numbers of forward passes in the block, without gradients.

    Every process enters the block, and leaves it when all have come to its end. Nothing else may
    be sent between them meanwhile. Blocks may be nested. Without divided weights it does nothing.
    """
    if not is_sharded(model):
        yield
        return
    with _LOCKSTEPS[decoder_of(model)].block():
        yield


class _Lockstep:
    """One process among those that gather a model's layers."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._inside = False
        # Before FSDP's own hook, which begins to gather.
        decoder_of(model).register_forward_pre_hook(self._announce, prepend=True)

    def _announce(self, *_: object) -> None:
        if self._inside:
            self._passes(1)

    def _passes(self, own: int) -> int:
        """Return how many processes make a pass now."""
        count_1 = torch.tensor([own], device=input_device(self._model))
        torch.distributed.all_reduce(count_1)
        return int(count_1)

    @contextmanager
    def block(self) -> Iterator[None]:
        outer, self._inside = self._inside, True
        try:
            yield
            # Not after an error: the launcher ends the other processes, too.
            if not outer:
                self._inside = False  # The passes that only take part announce nothing.
                self._take_part()
        finally:
            self._inside = outer

    def _take_part(self) -> None:
        token_11 = torch.zeros(1, 1, dtype=torch.int64, device=input_device(self._model))
        decoder: nn.Module = decoder_of(self._model)
        with torch.no_grad(), injection_off(self._model):
            while self._passes(0):
                decoder(input_ids=token_11, use_cache=False)


_LOCKSTEPS: "WeakKeyDictionary[nn.Module, _Lockstep]" = WeakKeyDictionary()
