"""RMS norms in one pass over memory, for reading the subject and for training on a GPU.

transformers writes a norm as eight operations, six of which read and write all of the activations.
torch has one kernel for it, which rounds once where transformers rounds twice.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import rms_norm
from transformers import PreTrainedModel

from grpo_ao.oracle.layers import decoder_of, input_device


@contextmanager
def fused_norms(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Compute the decoder's RMS norms by torch's kernel inside the block; on a CPU change nothing.

    What computes something else (a norm of Gemma's adds 1 to its weight) is left alone.
    """
    with fused(rms_norms(model) if input_device(model).type == "cuda" else []):
        yield


@contextmanager
def fused(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Compute these of ``rms_norms`` by torch's kernel inside the block."""
    for norm in norms:
        norm.forward = partial(fused_norm, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def fused_norm(norm: nn.Module, hidden: Tensor) -> Tensor:
    """Compute what one of ``rms_norms`` computes, in one kernel."""
    weight_D = norm.get_parameter("weight")
    if hidden.dtype != weight_D.dtype:  # The result is of both, and there is no kernel for them.
        return type(norm).forward(norm, hidden)
    epsilon: Any = norm.variance_epsilon
    return rms_norm(hidden, weight_D.shape, weight_D, epsilon)


def rms_norms(model: PreTrainedModel | PeftModel) -> list[nn.Module]:
    """Return the decoder's RMS norms, but those that are wrapped, as for offloading."""
    modules = [module for module in decoder_of(model).modules() if "forward" not in vars(module)]
    one_of_each = {type(module): module for module in modules}
    kinds = {kind for kind, module in one_of_each.items() if _is_rms_norm(module)}
    return [module for module in modules if type(module) in kinds]


def _is_rms_norm(module: nn.Module) -> bool:
    # Found by trying it, with a weight of our own: a class's name promises nothing.
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    epsilon = getattr(module, "variance_epsilon", None)
    arguments = signature(type(module).forward).parameters
    # A gated norm takes the gate as well.
    if set(shapes) != {"weight"} or epsilon is None or len(arguments) != 2:
        return False
    generator = torch.Generator().manual_seed(0)
    weight_D = torch.randn(shapes["weight"], generator=generator)
    # So small that epsilon shows.
    hidden_BD = torch.randn(2, *shapes["weight"], generator=generator) * epsilon**0.5
    found_BD = functional_call(module, {"weight": weight_D}, (hidden_BD,))
    return torch.allclose(found_BD, rms_norm(hidden_BD, weight_D.shape, weight_D, epsilon))
