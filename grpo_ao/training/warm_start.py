"""Warm start: what is taught before GRPO, by ``fine_tuning``, on the oracle's own answers.

Each target is an answer that the oracle itself gave, with a tag in front; an answer weighs as much
as its grade, so that wrong ones are not repeated, and stays distributed as it was. ``measured``
writes into the tag how often the oracle was right on that question over k samples, shrunk to the
mean of the question's family: the position that writes the number learns to read the activations
before GRPO begins. ``random`` writes a random number, whose loss is left out: it teaches the tag
and no belief.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from grpo_ao.epistemic import parse_oracle_output, render_oracle_output
from grpo_ao.errors import UserError
from grpo_ao.files import append_jsonl, read_jsonl
from grpo_ao.judges.protocol import GradeRequest, Judge
from grpo_ao.measuring.heldout import complete_table
from grpo_ao.oracle.ends import end_of_turn_id
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sharding import together
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.processes import Processes
from grpo_ao.training.fine_tuning import Target

# An answer's weight is its grade times this: wrong answers are not worth repeating.
ANSWER_WEIGHT, NUMBER_WEIGHT, FORMAT_WEIGHT = 4.0, 2.0, 1.0
_SHRINKAGE = 2.0
_CHUNK = 256


@dataclass(frozen=True)
class Sample:
    """One probe's sampled answers, their grades, and whether a tag stood before each of them."""

    probe_id: str
    answers: list[str]
    scores: list[float]
    tagged: list[bool]


def sample_answers(
    processes: Processes,
    oracle: Oracle,
    table: ProbeTable,
    judge: Judge,
    rows: Sequence[int],
    num_samples: int,
    temperature: float,
    max_new_tokens: int,
    path: Path,
    progress: Callable[[int], None],
) -> list[Sample]:
    """Sample and grade ``num_samples`` answers for each row.

    Samples are appended to ``path`` as they are made, and those that are there are not made again.
    A completion with a tag counts by its answer alone, one without by its whole text. Each process
    takes its share of every chunk, and returns the samples of all.
    """
    with processes.main_first():
        done = {sample.probe_id: sample for sample in _read_samples(path)}
    missing = [row for row in rows if table.probes[row].id not in done]
    progress(len(rows) - len(missing))
    size = _CHUNK * processes.count
    for first in range(0, len(missing), size):
        chunk = missing[first : first + size]
        share = processes.share(chunk)
        with together(oracle.model):
            completions = complete_table(
                oracle, table, share, temperature, max_new_tokens, num_samples, batch_size=512
            )
        samples = processes.gathered(asyncio.run(_graded(table, judge, share, completions)))
        done |= {sample.probe_id: sample for sample in samples}
        if processes.is_main:
            append_jsonl(path, [asdict(sample) for sample in samples])
        progress(len(chunk))
    return [done[table.probes[row].id] for row in rows]


def _read_samples(path: Path) -> list[Sample]:
    rows = read_jsonl(path)
    wanted = {field.name for field in fields(Sample)}
    if any(row.keys() != wanted for row in rows):
        raise UserError(
            f"{path} holds samples of another version of this program: delete it to sample anew."
        )
    return [Sample(**row) for row in rows]


async def _graded(
    table: ProbeTable, judge: Judge, rows: Sequence[int], completions: list[list[str]]
) -> list[Sample]:
    outputs = [[parse_oracle_output(c) for c in samples] for samples in completions]
    requests = [
        GradeRequest(probe.text, probe.question, output.answer, probe.kind, probe.reference)
        for probe, said in zip((table.probes[row] for row in rows), outputs, strict=True)
        for output in said
    ]
    grades = iter(await judge.grade(requests))
    samples = []
    for row, said in zip(rows, outputs, strict=True):
        scored = [(output, next(grades).score) for output in said]
        known = [(output, score) for output, score in scored if score is not None]
        samples.append(
            Sample(
                table.probes[row].id,
                [output.answer for output, _ in known],
                [score for _, score in known],
                [output.parsed for output, _ in known],
            )
        )
    return samples


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
    table: ProbeTable,
    rows: Sequence[int],
    samples: Sequence[Sample],
    mode: Literal["measured", "random"],
    rng: random.Random,
) -> list[Target]:
    """Write one target for each different answer to a question, with the number of ``mode``."""
    groups = [f"{table.probes[row].family}/{table.probes[row].kind}" for row in rows]
    accuracies = shrunk_accuracy([sample.scores for sample in samples], groups)
    measured = mode == "measured"
    targets = []
    for row, sample, accuracy in zip(rows, samples, accuracies, strict=True):
        for (answer, tagged), scores in _distinct(sample).items():
            confidence = round(100 * accuracy) if measured else rng.randint(0, 100)
            if parse_oracle_output(render_oracle_output(confidence, answer)).parsed:
                grade = sum(scores) / len(scores)
                target = _target(tokenizer, row, confidence, answer, tagged, grade, measured)
                targets.append(replace(target, count=len(scores)))
    if not targets:
        raise UserError("the oracle gave no answer that a tag can be put in front of.")
    return targets


def _distinct(sample: Sample) -> dict[tuple[str, bool], list[float]]:
    """Return the grades of each different answer."""
    found: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for answer, score, tagged in zip(sample.answers, sample.scores, sample.tagged, strict=True):
        found[answer, tagged].append(score)
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
    first = text.index(number)
    closing = text.index("]")
    weights, behind = [], 0
    for start, stop in encoded["offset_mapping"]:
        if start > closing:
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
    kept = min(behind + 1, _common_end(token_ids, origin_ids))
    return Target(row, token_ids, [*weights, ANSWER_WEIGHT * grade], origin_ids, kept)


def _common_end(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their ends."""
    pairs = zip(reversed(a), reversed(b), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
