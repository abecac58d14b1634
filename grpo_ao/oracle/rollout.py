"""Rollout engines: who completes the prompts of a GRPO step, activations injected."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from grpo_ao.oracle.generation import generate_completions
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.prompt import OraclePrompt


class Rollouts(NamedTuple):
    """The completions of a batch of prompts.

    ``token_ids[prompt][sample]`` ends with its end token, if it ended. ``logprobs`` are of the same
    shape, under the distribution that was sampled from; None where the engine is the policy itself,
    whose log-probabilities the trainer computes.
    """

    token_ids: list[list[list[int]]]
    logprobs: list[list[list[float]]] | None


@runtime_checkable
class RolloutEngine(Protocol):
    """Completes prompts with the oracle as it is at the time of the call.

    An engine holds the oracle, and brings the adapter's current weights into its own by itself.
    """

    def rollouts(
        self,
        prompts: Sequence[OraclePrompt],
        vectors: Sequence[Tensor],
        num_samples: int,
        temperature: float,
        max_new_tokens: int,
    ) -> Rollouts:
        """Sample ``num_samples`` completions of each prompt, ``vectors[i]`` of shape (K, D)."""
        ...


class TransformersRollouts:
    """Rollouts by the oracle's own model, in its own process."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    def rollouts(
        self,
        prompts: Sequence[OraclePrompt],
        vectors: Sequence[Tensor],
        num_samples: int,
        temperature: float,
        max_new_tokens: int,
    ) -> Rollouts:
        """Sample all of the batch at once; each prompt is read once for its completions."""
        token_ids = generate_completions(
            self.oracle.model,
            self.oracle.tokenizer,
            self.oracle.hook,
            prompts,
            vectors,
            num_samples=num_samples,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            batch_size=len(prompts) * num_samples,
            keep_end=True,
        )
        return Rollouts(token_ids, None)
