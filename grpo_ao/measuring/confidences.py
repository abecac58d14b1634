"""Other ways to be sure: what a stated confidence has to be compared with, on the same items.

All are confidences in the answer that the oracle gave (greedily), so that all have the same
outcomes: the probability of its answer token against the other, the probability of the whole
answer, the share of sampled answers that agree with it, the base rate, and each of these
recalibrated on the other half of the contexts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_ao.calibration import fit_isotonic, fit_temperature
from grpo_ao.errors import UserError
from grpo_ao.measuring.metrics import Answers
from grpo_ao.oracle.activations import evaluating
from grpo_ao.oracle.ends import end_token_ids, pad_token_id
from grpo_ao.oracle.injection import Injection
from grpo_ao.oracle.layers import input_device
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.prompt import OraclePrompt, pad_prompts
from grpo_ao.probe import unit_draw

AGREEMENT_SAMPLES = 20
PUBLISHED = {
    "self-report": {"ece10": 0.582, "auroc": 0.516},
    "log-probability": {"ece10": 0.255, "auroc": 0.840},
    "agreement of 20": {"ece10": 0.057, "auroc": 0.829},
}
"""Measured on a public activation oracle of Qwen3-8B by arXiv 2605.26045."""
_YES = (" Yes", "Yes", " yes", "yes")
_NO = (" No", "No", " no", "no")


class AnswerProbability(NamedTuple):
    """What the oracle's next-token probabilities say of its own answer.

    ``yes`` is P(Yes) / (P(Yes) + P(No)) where the answer begins, behind the tag that the oracle
    wrote; ``sequence`` the probability of the whole answer, end token included.
    """

    yes: float
    sequence: float


def answer_probabilities(
    oracle: Oracle,
    prompts: Sequence[OraclePrompt],
    vectors: Sequence[Tensor],
    completions: Sequence[Sequence[int]],
    batch_size: int = 64,
) -> list[AnswerProbability]:
    """Read each prompt with its completion (its end token included, if it wrote one)."""
    tokenizer = oracle.tokenizer
    yes, no = (_single_tokens(tokenizer, words) for words in (_YES, _NO))
    found: list[AnswerProbability] = []
    with evaluating(oracle.model):
        for first in range(0, len(prompts), batch_size):
            part = slice(first, first + batch_size)
            written = completions[part]
            starts = [_answer_start(tokenizer, ids) for ids in written]
            logits_BCV = _completion_logits(oracle, prompts[part], vectors[part], written)
            for b, (ids, start) in enumerate(zip(written, starts, strict=True)):
                logp_CV = logits_BCV[b, start : len(ids)].float().log_softmax(dim=-1)
                found.append(_answer_probability(logp_CV, ids[start:], yes, no))
    return found


def _single_tokens(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    """Return the ids of those words that are one token; UserError if none is."""
    encoded = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    ids = sorted({ids[0] for ids in encoded if len(ids) == 1})
    if not ids:
        raise UserError(f"none of {', '.join(map(repr, words))} is one token of the tokenizer.")
    return ids


def _answer_start(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int:
    """Return the number of tokens up to the bracket that closes the tag; 0 without a tag."""
    for count in range(1, len(ids)):
        written = tokenizer.decode(list(ids[:count]))
        if isinstance(written, str) and "]" in written:
            return count
    return 0


def _completion_logits(
    oracle: Oracle,
    prompts: Sequence[OraclePrompt],
    vectors: Sequence[Tensor],
    written: Sequence[Sequence[int]],
) -> Float[Tensor, "batch tokens vocab"]:
    """Return the logits from which each completion token was chosen, right-padded."""
    pad = pad_token_id(oracle.tokenizer, end_token_ids(oracle.model, oracle.tokenizer))
    prompt_BL, prompt_mask_BL, _ = pad_prompts(prompts, pad)
    longest = max(map(len, written))
    tail_BC = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in written])
    tail_mask_BC = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i in written])
    injection = Injection.from_rows(
        [prompt.positions for prompt in prompts],
        vectors,
        lengths=[len(prompt.input_ids) for prompt in prompts],
        padded_length=prompt_BL.shape[1],
    )
    device = input_device(oracle.model)
    with oracle.hook.serving(injection.to(device)):
        logits_BCV = oracle.model(
            input_ids=torch.cat([prompt_BL, tail_BC], dim=1).to(device),
            attention_mask=torch.cat([prompt_mask_BL, tail_mask_BC], dim=1).to(device),
            logits_to_keep=longest + 1,
        ).logits
    return logits_BCV[:, :-1]


def _answer_probability(
    logp_CV: Tensor, ids: Sequence[int], yes: Sequence[int], no: Sequence[int]
) -> AnswerProbability:
    logp_yes, logp_no = (logp_CV[0, list(side)].logsumexp(dim=0) for side in (yes, no))
    sequence = logp_CV.gather(1, torch.tensor([ids], device=logp_CV.device).T).sum().exp()
    return AnswerProbability(torch.sigmoid(logp_yes - logp_no).item(), sequence.item())


# Methods, as confidences of rows


def stated(row: Mapping) -> float | None:
    """Return the confidence that the oracle wrote."""
    return row["confidence"] / 100 if row["parsed"] else None


def token_probability(row: Mapping) -> float | None:
    """Return the probability of the answer's word against the other's."""
    if row["said"] is None:
        return None
    return row["yes_probability"] if row["said"] == "Yes" else 1 - row["yes_probability"]


def sequence_probability(row: Mapping) -> float | None:
    """Return the probability of the whole answer, whatever it says."""
    return row["sequence_probability"]


def agreement(row: Mapping) -> float | None:
    """Return the share of sampled answers that say what the greedy one says."""
    if row["said"] is None or "samples" not in row:
        return None
    return row["samples"][row["said"]] / sum(row["samples"].values())


METHODS: dict[str, Callable[[Mapping], float | None]] = {
    "stated confidence": stated,
    "token probability": token_probability,
    "sequence probability": sequence_probability,
    f"agreement of {AGREEMENT_SAMPLES}": agreement,
}


def answers_of(
    rows: Sequence[Mapping], method: Callable[[Mapping], float | None] = stated
) -> Answers:
    """Return the answers of rows with one method's confidences in them."""
    confidences = [method(row) for row in rows]
    return Answers(
        np.array([0.5 if c is None else c for c in confidences], dtype=float),
        np.array([row["correct"] for row in rows], dtype=float),
        np.array([c is not None for c in confidences], dtype=bool),
        np.array([row["said"] is None for row in rows], dtype=bool),
        np.array([row["context_id"] for row in rows]),
    )


def baselines(rows: Sequence[Mapping]) -> dict[str, Answers]:
    """Return each method's answers, recalibrated ones and the constant among them.

    What is fitted is fitted on the contexts of one half and measured on those of the other; the
    halves are by hash of the context. A method that states too little to be fitted is left out.
    """
    found = {name: answers_of(rows, method) for name, method in METHODS.items()}
    found = {name: answers for name, answers in found.items() if answers.stated_N.any()}
    in_fit = np.array([unit_draw("split", row["context_id"]) >= 0.5 for row in rows], dtype=bool)
    everything = answers_of(rows, lambda _: 0.5)
    base_rate = everything.take(np.flatnonzero(in_fit)).correct_N
    fitted: dict[str, Answers] = {}
    if in_fit.any() and not in_fit.all():
        rest = everything.take(np.flatnonzero(~in_fit))
        fitted["constant"] = _recalibrated(_constant(base_rate), rest)
    for name, answers in found.items():
        fit, rest = answers.take(np.flatnonzero(in_fit)), answers.take(np.flatnonzero(~in_fit))
        if not fit.stated_N.any() or not rest.stated_N.any():
            continue
        known, outcome = fit.confidence_N[fit.stated_N], fit.correct_N[fit.stated_N]
        fitted[f"{name} + isotonic"] = _recalibrated(fit_isotonic(known, outcome), rest)
        fitted[f"{name} + temperature"] = _recalibrated(fit_temperature(known, outcome), rest)
    return found | fitted


def _constant(outcome_N: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda confidence_N: np.full(len(confidence_N), outcome_N.mean())


def _recalibrated(change: Callable[[np.ndarray], np.ndarray], answers: Answers) -> Answers:
    return Answers(
        np.where(answers.stated_N, change(answers.confidence_N), 0.5),
        answers.correct_N,
        answers.stated_N,
        answers.neither_N,
        answers.context_N,
    )


def generated_tokens(rows: Sequence[Mapping]) -> dict[str, float]:
    """Return what each method costs, in generated tokens an item.

    Token and sequence probability need one more reading of the answer, and no more tokens.
    """
    one = float(np.mean([row["tokens"] for row in rows]))
    costs = {name: one for name, method in METHODS.items() if method is not agreement}
    if all("samples" in row for row in rows):
        many = float(np.mean([row["sample_tokens"] for row in rows]))
        costs[f"agreement of {AGREEMENT_SAMPLES}"] = one + many
    return costs
