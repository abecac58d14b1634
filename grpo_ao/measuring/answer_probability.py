"""How probable an oracle finds its own answers, and Yes against No where they begin."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_ao.answer import Answer
from grpo_ao.credit import answer_start
from grpo_ao.oracle.merging import merged_if_possible
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.probabilities import completion_logp, probability_of
from grpo_ao.oracle.table import ProbeTable

_YES = (" Yes", "Yes", " yes", "yes")
_NO = (" No", "No", " no", "no")


def with_probabilities(
    oracle: Oracle, table: ProbeTable, answers: Sequence[Answer], batch_size: int
) -> list[Answer]:
    """Return the answers to the table's probes with what the oracle's probabilities say of them.

    Each prompt is read with its completion, activations injected. ``answer_probability`` is of the
    tokens behind the tag, the token that ended the completion included; ``yes_probability``
    P(Yes) / (P(Yes) + P(No)) where the answer begins, of closed questions alone, and only where the
    tokenizer has both words as one token.
    """
    written = [answer.token_ids for answer in answers]
    words = Words.of(oracle.tokenizer)
    with merged_if_possible(oracle.model):  # once, not for each batch
        read = completion_logp(
            *(oracle.model, oracle.hook, table.prompts, table.vectors, written, batch_size),
            words.watched,
        )
        pairs = zip(answers, read, strict=True)
        return [with_logp(oracle.tokenizer, *pair, words) for pair in pairs]


class Words(NamedTuple):
    """The tokens that alone say Yes, and No."""

    yes: list[int]
    no: list[int]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Words":
        """Look them up in a tokenizer."""
        return cls(*(_single_tokens(tokenizer, words) for words in (_YES, _NO)))

    @property
    def watched(self) -> list[int]:
        """Both, in the order of ``with_logp``'s columns."""
        return [*self.yes, *self.no]


def with_logp(
    tokenizer: PreTrainedTokenizerBase,
    answer: Answer,
    logp_CT: Float[Tensor, "tokens watched"],
    words: Words,
) -> Answer:
    """Return an answer with the probabilities of ``with_probabilities``.

    A row of ``logp_CT`` is of one of its tokens, and behind it of ``words.watched`` in its place.
    """
    logp_CT = logp_CT[answer_start(tokenizer, answer.token_ids, answer.parsed) :]
    yes_probability = None
    if answer.probe.kind == "closed" and all(words):
        sides = logp_CT[0, 1:].split([len(side) for side in words])
        logp_yes, logp_no = (side.logsumexp(dim=0) for side in sides)
        yes_probability = torch.sigmoid(logp_yes - logp_no).item()
    return replace(
        answer, answer_probability=probability_of(logp_CT), yes_probability=yes_probability
    )


def _single_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    """Return the ids of those words that are one token."""
    encoded = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    return sorted({ids[0] for ids in encoded if len(ids) == 1})
