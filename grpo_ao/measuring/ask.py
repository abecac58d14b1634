"""Ask an oracle a table of probes: complete, parse, grade, keep. Whoever measures asks here."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch

from grpo_ao.answer import Agreement, Answer, read_answer_rows
from grpo_ao.files import append_jsonl, keep_rows
from grpo_ao.judges.protocol import GradeRequest, Judge
from grpo_ao.measuring.answer_probability import Words, with_logp
from grpo_ao.measuring.confidences import AGREEMENT_SAMPLES
from grpo_ao.oracle.activations import characters_read
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sampling import Sampling
from grpo_ao.oracle.sharding import together
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probe import Probe, stable_hash
from grpo_ao.processes import Processes
from grpo_ao.wording import say_the_same

# Probes that a process asks before they are appended: the most that a killed run loses.
_CHUNK, _CHUNK_WITH_AGREEMENT = 256, 128


class Asking(NamedTuple):
    """How probes are asked.

    Temperature 0 is greedy. ``probabilities`` measures, beside each answer, what the oracle's own
    say of it; the first ``agreement`` probes are answered twenty times more, at temperature 1.
    ``batch_size`` counts sequences: it changes speed and memory alone.
    """

    max_new_tokens: int
    temperature: float = 0.0
    num_samples: int = 1
    seed: int = 0
    batch_size: int = 256
    probabilities: bool = False
    agreement: int = 0


def ask(
    oracle: Oracle,
    table: ProbeTable,
    judge: Judge,
    how: Asking,
    processes: Processes,
    path: Path | None = None,
    label: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Answer]:
    """Ask every probe of ``table``; return ``num_samples`` graded answers to each, in order.

    Answers are appended to ``path`` chunk by chunk, with ``label`` in each row, and a chunk that is
    there under that label is not asked again; without a path nothing is kept. Chunks and their
    seeds do not depend on what is there, so that a run which was killed gives the answers that it
    would have given. Each process takes its share of a chunk; all return all answers, and the main
    one writes. ``progress`` is called with the number of probes answered since its last call.
    """
    label = label or {}
    size = (_CHUNK_WITH_AGREEMENT if how.agreement else _CHUNK) * processes.count
    chunks = _chunks(table, size if path else max(1, len(table)))
    done = _answered(path, label, table, chunks, how.num_samples, processes) if path else {}
    missing = [chunk for chunk in chunks if table.probes[chunk[0]].key not in done]
    progress(len(table) - sum(map(len, missing)))
    for chunk in missing:
        with together(oracle.model):
            found = _answers(oracle, table, processes.share(chunk), how)
        answers = processes.gathered(asyncio.run(graded(judge, found)))
        if path and processes.is_main:
            append_jsonl(path, [{**label, **answer.to_row()} for answer in answers])
        done |= _by_probe(answers)
        progress(len(chunk))
    return [answer for probe in table.probes for answer in done[probe.key]]


def _chunks(table: ProbeTable, size: int) -> list[list[int]]:
    """Divide the rows of a table, each probe once, into what is asked together."""
    rows = list({probe.key: row for row, probe in enumerate(table.probes)}.values())
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _by_probe(answers: Sequence[Answer]) -> dict[tuple[str, str], list[Answer]]:
    return {key: list(own) for key, own in groupby(answers, lambda answer: answer.probe.key)}


def _answered(
    path: Path,
    label: Mapping[str, Any],
    table: ProbeTable,
    chunks: Sequence[Sequence[int]],
    num_samples: int,
    processes: Processes,
) -> dict[tuple[str, str], list[Answer]]:
    """Read the answers under a label; remove those of a chunk that a killed run left unfinished."""
    with processes.main_first():
        own = [
            (row, answer) for row, answer in read_answer_rows(path) if label.items() <= row.items()
        ]
        rows = [row for row, _ in own]
        found = _by_probe([answer for _, answer in own])
        whole = {key for key, answers in found.items() if len(answers) == num_samples}
        keys = [{table.probes[row].key for row in chunk} for chunk in chunks]
        kept = set().union(*(chunk for chunk in keys if chunk <= whole))
        if processes.is_main and not found.keys() <= kept:
            again = {probe_id for _, probe_id in found.keys() - kept}
            keep_rows(path, lambda row: row["probe_id"] not in again or row not in rows)
    return {key: answers for key, answers in found.items() if key in kept}


def complete(
    oracle: Oracle,
    table: ProbeTable,
    rows: Sequence[int],
    temperature: float,
    max_new_tokens: int,
    num_samples: int = 1,
    batch_size: int = 256,
    probabilities: bool = False,
) -> list[list[Answer]]:
    """Complete the prompts of ``rows``; return ungraded answers, ``[row][sample]``."""
    part, sampling = table.part(rows), Sampling(num_samples, temperature, max_new_tokens)
    words = Words.of(oracle.tokenizer) if probabilities else None
    watched = None if words is None else words.watched
    found = oracle.completions(part.prompts, part.vectors, sampling, batch_size, watched)
    completions = [completion for samples in found for completion in samples]
    probes = [probe for probe in part.probes for _ in range(num_samples)]
    answers = read_answers(oracle, probes, [completion.token_ids for completion in completions])
    if words is not None:
        told = zip(answers, completions, strict=True)
        answers = [with_logp(oracle.tokenizer, a, own.logp_CT, words) for a, own in told]
    return [answers[n : n + num_samples] for n in range(0, len(answers), num_samples)]


def read_answers(
    oracle: Oracle, probes: Sequence[Probe], completions: Sequence[Sequence[int]]
) -> list[Answer]:
    """Read completions, as token ids, into the answers that they give, each to its probe."""
    texts = oracle.decode(completions)
    return [Answer.read(*read) for read in zip(probes, texts, completions, strict=True)]


def _answers(oracle: Oracle, table: ProbeTable, rows: Sequence[int], how: Asking) -> list[Answer]:
    if not rows:
        return []
    size = how.batch_size
    # The same samples whether or not the run was killed before, and others in each process.
    seed = how.seed + int(stable_hash(*(table.probes[row].id for row in rows))[:8], 16)
    if how.temperature:
        torch.manual_seed(seed)
    own = (how.temperature, how.max_new_tokens, how.num_samples, size, how.probabilities)
    samples = complete(oracle, table, rows, *own)
    answers = []
    for row, own in zip(rows, samples, strict=True):
        probe = table.probes[row]
        read = characters_read(oracle.tokenizer, probe.text, probe.positions)
        answers += [replace(answer, characters_read=read) for answer in own]
    sampled = [row for row in rows if row < how.agreement]
    if sampled:
        torch.manual_seed(seed + 1)
        others = complete(oracle, table, sampled, 1.0, how.max_new_tokens, AGREEMENT_SAMPLES, size)
        found = {own[0].probe.key: own for own in others}
        answers = [_with_agreement(answer, found.get(answer.probe.key)) for answer in answers]
    return answers


def _with_agreement(answer: Answer, others: Sequence[Answer] | None) -> Answer:
    if others is None:
        return answer
    kind = answer.probe.kind
    same = sum(say_the_same(answer.answer, other.answer, kind) for other in others)
    tokens = sum(len(other.token_ids) for other in others)
    return replace(answer, agreement=Agreement(same, len(others), tokens))


async def graded(judge: Judge, answers: Sequence[Answer]) -> list[Answer]:
    """Return the answers with their grades. The judge sees the answer, never the confidence."""
    requests = [
        GradeRequest(
            *(a.probe.text, a.probe.question, a.answer, a.probe.kind, a.probe.reference),
            choices=a.probe.choices,
        )
        for a in answers
    ]
    grades = await judge.grade(requests)
    return [
        replace(answer, informativeness=grade.score, reason=grade.reason, judge_reply=grade.raw)
        for answer, grade in zip(answers, grades, strict=True)
    ]
