"""What is asked of a rollout engine, and what it gives: completions of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from grpo_ao.errors import UserError
from grpo_ao.oracle.prompt import OraclePrompt


@dataclass(frozen=True)
class Sampling:
    """How each prompt is completed.

    At temperature 0 greedily; above it from the whole distribution (no top-k, no top-p).
    """

    num_samples: int = 1
    temperature: int | float = 0.0
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if min(self.num_samples, self.max_new_tokens) < 1:
            raise UserError("num_samples and max_new_tokens must be at least 1.")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"the temperature must be 0 (greedy) or more, got {self.temperature}.")
        if self.temperature == 0 and self.num_samples > 1:
            raise UserError(f"{self.num_samples} greedy samples are all alike: set a temperature.")


class Completion(NamedTuple):
    """The tokens of one completion, with the end as written.

    A row of ``logp_CT`` holds the log-probability of one of them, and behind it those of the tokens
    that were watched, in its place. There are no columns where none were taken.
    """

    token_ids: list[int]
    logp_CT: Float[Tensor, "tokens watched"]


class Rollouts(NamedTuple):
    """The completions of a batch of prompts.

    ``token_ids[prompt][sample]`` ends with the end token that was written; one that the length
    limit cut has none. ``logprobs`` are of the same shape, under the distribution that was sampled
    from; None where the engine is the policy itself, whose log-probabilities the trainer computes.
    """

    token_ids: list[list[list[int]]]
    logprobs: list[list[list[float]]] | None


@runtime_checkable
class RolloutEngine(Protocol):
    """Completes prompts with the oracle as it is at the time of the call.

    An engine holds the oracle, and brings the adapter's current weights into its own by itself. The
    oracle is an engine, too: that of its own model.
    """

    def rollouts(
        self, prompts: Sequence[OraclePrompt], vectors: Sequence[Tensor], sampling: Sampling
    ) -> Rollouts:
        """Complete each prompt, with ``vectors[i]`` of shape (K, D) for prompt i."""
        ...
