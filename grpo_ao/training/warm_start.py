"""Warm start: what is taught before GRPO, by ``fine_tuning``, on the oracle's own answers.

Each target is an answer that the oracle itself gave, with a tag in front; an answer weighs as much
as its grade, so that wrong ones are not repeated, and stays distributed as it was. ``measured``
writes into the tag how likely an answer to that question is right (``targets``): the position that
writes the number learns to read the activations before GRPO begins, and then, on questions of their
own, to state what it expects (``parts``). ``random`` writes a random
number, whose loss is left out: it teaches the tag and no belief.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from grpo_ao.answer import Answer
from grpo_ao.credit import tag_lengths
from grpo_ao.epistemic import parse_oracle_output, render_oracle_output
from grpo_ao.errors import UserError
from grpo_ao.measuring.confidences import with_probabilities
from grpo_ao.measuring.elicited import expected_confidences
from grpo_ao.oracle.ends import end_of_turn_id
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sharding import together
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.processes import Processes
from grpo_ao.training.anchor import kept_tokens, space_partners
from grpo_ao.training.fine_tuning import Target
from grpo_ao.training.targets import expected_grades

# An answer's weight is its grade times this: wrong answers are not worth repeating.
ANSWER_WEIGHT, NUMBER_WEIGHT, FORMAT_WEIGHT = 4.0, 2.0, 1.0
# Of the questions and the steps, what teaches the answers' probability.
FIRST_SHARE = 3 / 4
# Answers whose logits are held at once.
_LOGITS_ROWS = 128


Numbers = Callable[
    [Oracle, ProbeTable, Sequence[Sequence[Answer]], Collection[int], Processes],
    list[float] | None,
]
"""What is taught as the chance of an answer to each probe of a table; None for random numbers."""


def parts(
    mode: Literal["measured", "random"], questions: int, steps: int
) -> list[tuple[slice, int, Numbers]]:
    """Divide the questions of a warm start: each part with its steps and what its numbers are.

    Three quarters are taught how probable their answers are. What the activations tell of that is
    then the expectation of the number that the oracle writes, but the likeliest number, which a
    greedy tag states, is another: the rest are taught the expectation.
    """
    if mode == "random":
        return [(slice(questions), steps, lambda *_: None)]
    cut, first = round(questions * FIRST_SHARE), round(steps * FIRST_SHARE)
    divided: list[tuple[slice, int, Numbers]] = [
        (slice(cut), first, chances),
        (slice(cut, questions), steps - first, own_expectations),
    ]
    return [part for part in divided if part[1] and part[0].start != questions]


def chances(
    oracle: Oracle,
    table: ProbeTable,
    samples: Sequence[Sequence[Answer]],
    wrong: Collection[int],
    processes: Processes,
) -> list[float]:
    """Return how likely an answer to each probe of the table is right, as ``targets`` has it.

    ``samples[row]`` are a probe's graded answers, ``wrong`` the rows that were asked on wrong
    activations. The oracle reads the most frequent answer of each once more, for its probability.
    """
    rows = processes.share(range(len(table)))
    frequent = [_most_frequent(samples[row]) for row in rows]
    with together(oracle.model):
        read = with_probabilities(oracle, table.part(rows), frequent, _LOGITS_ROWS)
    known = processes.gathered([answer.answer_probability for answer in read])
    return _recalibrated(table, known, samples, wrong)


def own_expectations(
    oracle: Oracle,
    table: ProbeTable,
    samples: Sequence[Sequence[Answer]],
    wrong: Collection[int],
    processes: Processes,
) -> list[float]:
    """Return how likely an answer to each probe is right, by the number that the oracle writes now.

    It is the number's expectation, recalibrated as in ``chances``.
    """
    rows = processes.share(range(len(table)))
    with together(oracle.model):
        read = expected_confidences(oracle, table.part(rows))
    return _recalibrated(table, processes.gathered(read.tolist()), samples, wrong)


def _recalibrated(
    table: ProbeTable,
    known: Sequence[float | None],
    samples: Sequence[Sequence[Answer]],
    wrong: Collection[int],
) -> list[float]:
    grades = [[a.informativeness for a in own if a.informativeness is not None] for own in samples]
    return expected_grades(
        table.probes,
        np.array(known, dtype=float),
        np.array([sum(own) for own in grades], dtype=float),
        np.array([len(own) for own in grades]),
        wrong,
    ).tolist()


def _most_frequent(answers: Sequence[Answer]) -> Answer:
    count = Counter(answer.answer for answer in answers)
    return max(answers, key=lambda answer: count[answer.answer])


def make_targets(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[int],
    samples: Sequence[Sequence[Answer]],
    chances: Sequence[float] | None,
    rng: random.Random,
    wrong: Collection[int] = (),
) -> list[Target]:
    """Write one target for each different answer to a question, with its chance in the tag.

    ``samples[i]`` are the sampled answers to the probe in row ``rows[i]`` of the run's table. A
    completion with a tag counts by its answer alone, one without by its whole text; an ungraded
    one counts for nothing. Without ``chances`` the numbers are random and not taught. Of the rows
    ``wrong``, asked on wrong activations, the answers are not: they were guesses.
    """
    targets = []
    for place, (row, own) in enumerate(zip(rows, map(_grades, samples), strict=True)):
        for (answer, tagged), found in own.items():
            number = round(100 * chances[place]) if chances else rng.randint(0, 100)
            if parse_oracle_output(render_oracle_output(number, answer)).confidence is not None:
                grade = 0.0 if row in wrong else sum(found) / len(found)
                target = _target(tokenizer, row, number, answer, tagged, grade, bool(chances))
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
