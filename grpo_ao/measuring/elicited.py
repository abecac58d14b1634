"""Confidences that are read from an oracle's probabilities, not from a number that it wrote.

The expectation of the number that it would write; the probability with which it says that its own
answer is right (P(True), arXiv 2207.05221); the probabilities of the known answers to a question;
and those of words for how sure it is.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_ao.answer import Answer
from grpo_ao.epistemic import render_tag
from grpo_ao.measuring.answer_probability import with_probabilities
from grpo_ao.oracle.activations import evaluating
from grpo_ao.oracle.ends import end_of_turn_id, end_token_ids, pad_token_id
from grpo_ao.oracle.layers import input_device
from grpo_ao.oracle.merging import merged_if_possible
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.prompt import pad_prompts
from grpo_ao.oracle.table import ProbeTable

# Words for how sure one is, and what they stand for (Kent 1964, Words of estimative probability).
SURE_WORDS = {"certain": 1.0, "probable": 0.75, "even": 0.5, "improbable": 0.3, "impossible": 0.0}
_NUMBERS = range(101)
# Rows whose logits are held at once.
_ROWS = 128


def truth_table(oracle: Oracle, table: ProbeTable, answers: Sequence[Answer]) -> ProbeTable:
    """Return a table that asks, of the same activations, whether each answer is right.

    ``answers[n]`` is the graded answer to row n; the right reply is Yes where its grade is at
    least one half. The probability of Yes in a reply is P(True) of the answer.
    """
    right = ["Yes" if (answer.informativeness or 0.0) >= 0.5 else "No" for answer in answers]
    asked = "Is the answer right? Answer with 'Yes' or 'No' only."
    return _about_answers(oracle, table, answers, asked, right, ())


def sureness_table(oracle: Oracle, table: ProbeTable, answers: Sequence[Answer]) -> ProbeTable:
    """Return a table that asks, of the same activations, for one word on how sure each answer is.

    No reply to it is right or wrong.
    """
    *others, last = SURE_WORDS
    asked = f"How sure is the answer? Answer with {', '.join(others)} or {last} only."
    return _about_answers(oracle, table, answers, asked, [None] * len(table), tuple(SURE_WORDS))


def _about_answers(
    oracle: Oracle,
    table: ProbeTable,
    answers: Sequence[Answer],
    asked: str,
    right: Sequence[str | None],
    choices: tuple[str, ...],
) -> ProbeTable:
    probes = [
        replace(
            probe,
            question=f"{probe.question}\nAnswer: {answer.answer}\n{asked}",
            kind="closed",
            reference=reference,
            choices=choices,
        )
        for probe, answer, reference in zip(table.probes, answers, right, strict=True)
    ]
    return ProbeTable.of_vectors(oracle, probes, table.vectors)


def sureness(
    oracle: Oracle, table: ProbeTable, replies: Sequence[Answer]
) -> Float[np.ndarray, "probes"]:
    """Return what the words of a ``sureness_table`` stand for, weighted by their likelihood."""
    likely = choice_probabilities(oracle, table, replies)
    found = [sum(share * SURE_WORDS[word] for word, share in own.items()) for own in likely]
    return np.where([bool(own) for own in likely], found, np.nan)


def expected_confidences(oracle: Oracle, table: ProbeTable) -> Float[np.ndarray, "probes"]:
    """Return the expectation of the number that the oracle writes, in [0, 1], for each probe.

    The tag is forced up to its number, and the probabilities of 0 to 100 are those of their tokens,
    each given the ones before, scaled to a sum of 1: one reading of a prompt where every number is
    one token, eleven where every digit is.
    """
    opening, numbers = number_tokens(oracle.tokenizer)
    stems = sorted({ids[:cut] for ids in numbers for cut in range(len(ids))})
    tokens = sorted({token for ids in numbers for token in ids})
    logp_NST = _next_token_logp(oracle, table, [(*opening, *stem) for stem in stems], tokens)
    logp_NK = torch.stack(
        [
            logp_NST[
                :,
                [stems.index(ids[:cut]) for cut in range(len(ids))],
                [tokens.index(token) for token in ids],
            ].sum(dim=1)
            for ids in numbers
        ],
        dim=1,
    )
    share_NK = logp_NK.double().softmax(dim=1)
    return (share_NK @ torch.linspace(0, 1, len(numbers), dtype=torch.double)).numpy()


def number_tokens(
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Return the tokens that open every tag, and for 0 to 100 those that write the number.

    A number whose tokens open another's (8 and 85, digit by digit) has the token that ends it, too.
    """
    written = [_up_to_number(tokenizer, number, ended=False) for number in _NUMBERS]
    openings = {ids[:cut] for ids in written for cut in range(len(ids))}
    written = [
        _up_to_number(tokenizer, number, ended=ids in openings)
        for number, ids in zip(_NUMBERS, written, strict=True)
    ]
    columns = zip(*written, strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return written[0][:shared], [ids[shared:] for ids in written]


def _up_to_number(tokenizer: PreTrainedTokenizerBase, number: int, ended: bool) -> tuple[int, ...]:
    tag = render_tag(number)
    encoded = tokenizer(tag, add_special_tokens=False, return_offsets_mapping=True)
    end = tag.index("]") + ended
    return tuple(
        token
        for token, (start, _) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if start < end
    )


def choice_probabilities(
    oracle: Oracle, table: ProbeTable, answers: Sequence[Answer]
) -> list[dict[str, float]]:
    """Return, for each answer, the probabilities of its question's choices, which sum to 1.

    A choice stands where the answer begins, behind the tag that the oracle wrote, with a capital
    where the answer has one, and ends the turn. Empty for a question without choices.
    """
    pairs = [(row, choice) for row, p in enumerate(table.probes) for choice in p.choices]
    written = [_choosing(oracle.tokenizer, answers[row], choice) for row, choice in pairs]
    read = with_probabilities(oracle, table.part([row for row, _ in pairs]), written, _ROWS)
    found: list[dict[str, float]] = [{} for _ in answers]
    for (row, choice), answer in zip(pairs, read, strict=True):
        found[row][choice] = answer.answer_probability or 0.0
    totals = [sum(likely.values()) for likely in found]
    return [
        {choice: value / total for choice, value in likely.items() if total}
        for likely, total in zip(found, totals, strict=True)
    ]


def _choosing(tokenizer: PreTrainedTokenizerBase, answer: Answer, choice: str) -> Answer:
    start = answer.completion.rindex(answer.answer) if answer.parsed else 0
    choice = choice[:1].upper() + choice[1:] if answer.answer[:1].isupper() else choice
    text = answer.completion[:start] + choice
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return replace(answer, token_ids=(*ids, end_of_turn_id(tokenizer)))


def _next_token_logp(
    oracle: Oracle,
    table: ProbeTable,
    tails: Sequence[tuple[int, ...]],
    tokens: Sequence[int],
) -> Float[Tensor, "probes tails tokens"]:
    """Return the log probabilities of ``tokens`` behind each prompt and each of ``tails``."""
    pairs = [(row, tail) for row in range(len(table)) for tail in tails]
    found = []
    with evaluating(oracle.model), merged_if_possible(oracle.model):
        for first in range(0, len(pairs), _ROWS):
            rows, written = zip(*pairs[first : first + _ROWS], strict=True)
            batch = table.part(rows)
            batch.prompts = [
                replace(prompt, input_ids=[*prompt.input_ids, *tail])
                for prompt, tail in zip(batch.prompts, written, strict=True)
            ]
            logits_BV = _last_logits(oracle, batch)
            found.append(logits_BV.float().log_softmax(dim=-1)[:, list(tokens)].cpu())
    return torch.cat(found).view(len(table), len(tails), len(tokens))


def _last_logits(oracle: Oracle, table: ProbeTable) -> Float[Tensor, "probes vocab"]:
    pad = pad_token_id(oracle.tokenizer, end_token_ids(oracle.model, oracle.tokenizer))
    ids_BL, mask_BL = pad_prompts(table.prompts, pad)
    injection = table.injection(range(len(table)), padded_length=ids_BL.shape[1])
    device = input_device(oracle.model)
    with oracle.hook.serving(injection):
        logits_BLV = oracle.model(
            input_ids=ids_BL.to(device),
            attention_mask=mask_BL.to(device),
            logits_to_keep=1,
            use_cache=False,
        ).logits
    return logits_BLV[:, -1]
