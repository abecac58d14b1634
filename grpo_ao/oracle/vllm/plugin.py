"""The vLLM plugin (entry point ``vllm.general_plugins``): registers the injecting models.

vLLM calls ``register`` in each of its processes. Nothing is imported here that vLLM has not
imported already: the models are registered by name.
"""

import importlib
from typing import Any

from grpo_ao.errors import UserError

# Architecture, as in config.json -> module in vllm.model_executor.models.
FAMILIES = {
    "Qwen3ForCausalLM": "qwen3",
    "Qwen2ForCausalLM": "qwen2",
    "LlamaForCausalLM": "llama",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3_mm",
}


def injecting_name(architecture: str) -> str:
    """Return the name of the injecting variant of an architecture; UserError if there is none."""
    if architecture not in FAMILIES:
        raise UserError(
            f"vLLM rollouts do not know {architecture}: they support {', '.join(FAMILIES)}. "
            "Use --rollout transformers."
        )
    return f"Injecting{architecture}"


def register() -> None:
    """Make the injecting variants known to vLLM; those that it knows already stay."""
    registry: Any = importlib.import_module("vllm").ModelRegistry
    known = registry.get_supported_archs()
    for architecture in FAMILIES:
        name = injecting_name(architecture)
        if name not in known:
            registry.register_model(name, f"grpo_ao.oracle.vllm.models:{name}")
