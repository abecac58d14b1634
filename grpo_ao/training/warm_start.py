"""Warm start: what is taught before GRPO, by ``fine_tuning``, on the oracle's own answers.

Each target is an answer that the oracle itself gave, with a tag in front; an answer weighs as much
as its grade, so that wrong ones are not repeated, and stays distributed as it was. ``measured``
writes into the tag how often the oracle was right on that question over k samples, shrunk to the
mean of the question's family: the position that writes the number learns to read the activations
before GRPO begins. ``random`` writes a random number, whose loss is left out: it teaches the tag
and no belief.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from transformers import PreTrainedTokenizerBase

from grpo_ao.answer import Answer
from grpo_ao.credit import tag_lengths
from grpo_ao.epistemic import parse_oracle_output, render_oracle_output
from grpo_ao.errors import UserError
from grpo_ao.oracle.ends import end_of_turn_id
from grpo_ao.training.anchor import kept_tokens, space_partners
from grpo_ao.training.fine_tuning import Target

# An answer's weight is its grade times this: wrong answers are not worth repeating.
ANSWER_WEIGHT, NUMBER_WEIGHT, FORMAT_WEIGHT = 4.0, 2.0, 1.0
_SHRINKAGE = 2.0


def shrunk_accuracy(
    scores: Sequence[Sequence[float]], groups: Sequence[str], strength: float = _SHRINKAGE
) -> list[float]:
    """Return each question's mean score, shrunk to its group's.

    ``(sum + strength * group mean) / (k + strength)``: the posterior mean under a beta prior that
    weighs ``strength`` samples. Groups average over samples.
    """
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for values, group in zip(scores, groups, strict=True):
        totals[group][0] += sum(values)
        totals[group][1] += len(values)
    means = {group: total / max(count, 1.0) for group, (total, count) in totals.items()}
    return [
        (sum(values) + strength * means[group]) / (len(values) + strength)
        for values, group in zip(scores, groups, strict=True)
    ]


def make_targets(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[int],
    samples: Sequence[Sequence[Answer]],
    mode: Literal["measured", "random"],
    rng: random.Random,
) -> list[Target]:
    """Write one target for each different answer to a question, with the number of ``mode``.

    ``samples[i]`` are the sampled answers to the probe in row ``rows[i]`` of the run's table. A
    completion with a tag counts by its answer alone, one without by its whole text; an ungraded
    one counts for nothing.
    """
    groups = [f"{own[0].probe.family}/{own[0].probe.kind}" for own in samples]
    grades = [_grades(own) for own in samples]
    flat = [[grade for found in own.values() for grade in found] for own in grades]
    targets = []
    for row, own, accuracy in zip(rows, grades, shrunk_accuracy(flat, groups), strict=True):
        for (answer, tagged), found in own.items():
            number = round(100 * accuracy) if mode == "measured" else rng.randint(0, 100)
            if parse_oracle_output(render_oracle_output(number, answer)).parsed:
                grade = sum(found) / len(found)
                target = _target(tokenizer, row, number, answer, tagged, grade, mode == "measured")
                targets.append(replace(target, count=len(found)))
    if not targets:
        raise UserError("the oracle gave no answer that a tag can be put in front of.")
    return targets


def _grades(samples: Sequence[Answer]) -> dict[tuple[str, bool], list[float]]:
    """Return the grades of each different answer, with a tag in front or without."""
    found: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for sample in samples:
        if sample.informativeness is not None:
            found[sample.answer, sample.parsed].append(sample.informativeness)
    return found


def _target(
    tokenizer: PreTrainedTokenizerBase,
    row: int,
    confidence: int,
    answer: str,
    tagged: bool,
    grade: float,
    teach_number: bool,
) -> Target:
    text, number = render_oracle_output(confidence, answer), str(confidence)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    (tag,) = tag_lengths(tokenizer, [encoded["input_ids"]])
    first = text.index(number)
    weights, behind = [], 0
    for place, (start, stop) in enumerate(encoded["offset_mapping"]):
        if place >= tag:
            weights.append(ANSWER_WEIGHT * grade)
        elif start < first + len(number) and stop > first:
            weights.append(NUMBER_WEIGHT if teach_number else 0.0)
        else:
            weights.append(FORMAT_WEIGHT)
        behind += start >= first + len(number)
    end = end_of_turn_id(tokenizer)
    token_ids = [*encoded["input_ids"], end]
    origin_ids = token_ids
    if not tagged:
        origin_ids = [*tokenizer.encode(answer, add_special_tokens=False), end]
    partner_V = space_partners(tokenizer, len(tokenizer))
    kept = min(behind + 1, kept_tokens(token_ids, origin_ids, partner_V))
    return Target(row, token_ids, [*weights, ANSWER_WEIGHT * grade], origin_ids, kept)
