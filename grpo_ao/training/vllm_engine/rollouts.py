"""The rollout engine ``--rollout vllm``: vLLM beside the trainer, on the same GPU."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from grpo_ao.oracle.generation import end_token_ids
from grpo_ao.oracle.layers import unwrap
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.prompt import OraclePrompt, placeholder_id
from grpo_ao.training.rollout import Rollouts
from grpo_ao.training.vllm_engine.bank import BankSettings
from grpo_ao.training.vllm_engine.engine import (
    EngineSettings,
    InjectingEngine,
    bank_settings,
    check_installed,
)
from grpo_ao.training.vllm_engine.weights import base_weights, lora_factors


def settings_of(oracle: Oracle) -> BankSettings:
    """Return what an engine must be started with to inject as this oracle does."""
    return bank_settings(
        unwrap(oracle.model).config,
        oracle.spec.hook_onto_layer,
        oracle.spec.steering_coefficient,
        placeholder_id(oracle.tokenizer, oracle.spec.special_token),
    )


class VllmRollouts:
    """vLLM in the trainer's process, with a copy of the weights that follows the adapter.

    ``memory`` is vLLM's share of the GPU, its copy of the weights included; ``extra`` are further
    arguments of vLLM's ``LLM``. Raises, in one
    sentence and before vLLM starts: ImportError where it is not installed, ValueError without a
    GPU, for a model that has no injecting variant, a quantised base, or an adapter other than
    plain LoRA.
    """

    def __init__(
        self, oracle: Oracle, memory: float, max_model_len: int, extra: Mapping[str, Any]
    ) -> None:
        check_installed()
        self.oracle = oracle
        self._ends = end_token_ids(oracle.model, oracle.tokenizer)
        base, _ = base_weights(oracle.model), lora_factors(oracle.model)
        config = unwrap(oracle.model).config
        settings = EngineSettings(
            model=str(unwrap(oracle.model).name_or_path),
            dtype=next(iter(base.values())).dtype,
            memory=memory,
            max_model_len=max_model_len,
            extra=extra,
        )
        self._engine = InjectingEngine(settings, config, settings_of(oracle))

    def rollouts(
        self,
        prompts: Sequence[OraclePrompt],
        vectors: Sequence[Tensor],
        num_samples: int,
        temperature: float,
        max_new_tokens: int,
    ) -> Rollouts:
        """Merge the adapter as it is now, and sample; with log-probabilities."""
        self._engine.set_adapter(base_weights(self.oracle.model), lora_factors(self.oracle.model))
        return self._engine.rollouts(
            prompts, vectors, num_samples, temperature, max_new_tokens, self._ends
        )
