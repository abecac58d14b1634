"""Warm start: what is taught before GRPO, by ``fine_tuning``, on the oracle's own answers.

Each target is the oracle's own greedy answer, with a tag in front; an answer weighs as much as its
grade, so that wrong ones are not repeated. Answers to closed questions stay distributed as they
were, since their probability is what the oracle knows; open ones may become better. ``measured``
writes into the tag how likely that answer is right (``targets``): the position that writes the
number learns to read the activations before GRPO begins, and then, on questions of their own, to
state what it expects (``parts``). ``random`` writes a random number, whose loss is left out: it
teaches the tag and no belief.
"""

import random
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from grpo_ao.answer import Answer
from grpo_ao.credit import tag_lengths
from grpo_ao.epistemic import parse_oracle_output, render_oracle_output
from grpo_ao.errors import UserError
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
# The kinds of questions whose answers stay distributed as they were.
ANCHORED = ("closed",)
# Of the questions and the steps, what teaches the answers' probability.
FIRST_SHARE = 3 / 4


Numbers = Callable[
    [Oracle, ProbeTable, Sequence[Answer], Collection[int], Processes],
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
    answers: Sequence[Answer],
    wrong: Collection[int],
    processes: Processes,
) -> list[float]:
    """Return how likely the answer to each probe of the table is right, as ``targets`` has it.

    ``answers[row]`` is the graded answer, with its probability; ``wrong`` are the rows that were
    asked on wrong activations.
    """
    return _recalibrated(table, [answer.answer_probability for answer in answers], answers, wrong)


def own_expectations(
    oracle: Oracle,
    table: ProbeTable,
    answers: Sequence[Answer],
    wrong: Collection[int],
    processes: Processes,
) -> list[float]:
    """Return how likely each answer is right, by the number that the oracle writes now.

    It is the number's expectation, recalibrated as in ``chances``.
    """
    rows = processes.share(range(len(table)))
    with together(oracle.model):
        read = expected_confidences(oracle, table.part(rows))
    return _recalibrated(table, processes.gathered(read.tolist()), answers, wrong)


def _recalibrated(
    table: ProbeTable,
    known: Sequence[float | None],
    answers: Sequence[Answer],
    wrong: Collection[int],
) -> list[float]:
    grades = [answer.informativeness for answer in answers]
    known_N, grade_N = (np.array(values, dtype=float) for values in (known, grades))
    return expected_grades(table.probes, known_N, grade_N, wrong).tolist()


def make_targets(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[int],
    answers: Sequence[Answer],
    chances: Sequence[float] | None,
    rng: random.Random,
    wrong: Collection[int] = (),
) -> list[Target]:
    """Write one target for each question, with the chance of its answer in the tag.

    ``answers[i]`` is the answer to the probe in row ``rows[i]`` of the run's table. A completion
    with a tag counts by its answer alone, one without by its whole text; an ungraded one counts
    for nothing. Without ``chances`` the numbers are random and not taught. Of the rows ``wrong``,
    asked on wrong activations, the answers are not: they were guesses.
    """
    targets = []
    for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        number = round(100 * chances[place]) if chances else rng.randint(0, 100)
        written = parse_oracle_output(render_oracle_output(number, answer.answer))
        if answer.informativeness is not None and written.confidence is not None:
            grade = 0.0 if row in wrong else answer.informativeness
            targets.append(_target(tokenizer, row, number, answer, grade, bool(chances)))
    if not targets:
        raise UserError("the oracle gave no answer that a tag can be put in front of.")
    return targets


def _target(
    tokenizer: PreTrainedTokenizerBase,
    row: int,
    confidence: int,
    answer: Answer,
    grade: float,
    teach_number: bool,
) -> Target:
    text, number = render_oracle_output(confidence, answer.answer), str(confidence)
    # What an answer spells like a control token is none.
    encoded = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
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
    if not answer.parsed:
        own = answer.answer
        ids = tokenizer.encode(own, add_special_tokens=False, split_special_tokens=True)
        origin_ids = [*ids, end]
    partner_V = space_partners(tokenizer, len(tokenizer))
    kept = min(behind + 1, kept_tokens(token_ids, origin_ids, partner_V))
    kept = kept if answer.probe.kind in ANCHORED else 0
    return Target(row, token_ids, [*weights, ANSWER_WEIGHT * grade], origin_ids, kept)
