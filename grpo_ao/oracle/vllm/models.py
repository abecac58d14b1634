"""vLLM's models with a bank of vectors attached, made from vLLM's own classes.

Only vLLM, or code that has made sure that vLLM is there, imports this module.
"""

import importlib
from functools import cache
from typing import Any

from torch import nn

from grpo_ao.oracle.vllm.bank import VectorBank, settings_from
from grpo_ao.oracle.vllm.plugin import FAMILIES, injecting_name


@cache
def injecting_class(architecture: str) -> type[nn.Module]:
    """Return vLLM's class of that architecture, with a ``bank`` attached when it is built."""
    module = importlib.import_module(f"vllm.model_executor.models.{FAMILIES[architecture]}")
    base: Any = getattr(module, architecture)
    multimodal = FAMILIES[architecture] == "gemma3_mm"

    class Injecting(base):
        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.bank = attach_bank(self.causal_model().model, vllm_config)

        def causal_model(self) -> Any:
            return self.language_model if multimodal else self

    Injecting.__name__ = Injecting.__qualname__ = injecting_name(architecture)
    Injecting.__module__ = __name__
    return Injecting


def __getattr__(name: str) -> type[nn.Module]:
    # vLLM looks a model up by its class name; each family is imported only when it is asked for.
    for architecture in FAMILIES:
        if name == injecting_name(architecture):
            return injecting_class(architecture)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def attach_bank(decoder: Any, vllm_config: Any) -> VectorBank:
    """Attach a bank to a newly built decoder, as the engine's ``additional_config`` says."""
    weight = decoder.embed_tokens.weight
    bank = VectorBank(
        settings_from(vllm_config.additional_config),
        width=weight.shape[1],
        max_tokens=vllm_config.scheduler_config.max_num_batched_tokens,
        device=weight.device,
    )
    return bank.attach(decoder.embed_tokens, decoder.layers)
