"""Ask an oracle the benchmarks' questions; one row an answer, appended as they are made."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from grpo_ao.epistemic import parse_oracle_output
from grpo_ao.files import append_jsonl, read_jsonl
from grpo_ao.measuring.confidences import (
    AGREEMENT_SAMPLES,
    AnswerProbability,
    answer_probabilities,
)
from grpo_ao.oracle.activations import read_residuals, select_positions, subject_token_ids
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sampling import Sampling
from grpo_ao.oracle.sharding import together
from grpo_ao.probe import Positions, Probe, stable_hash, unit_draw
from grpo_ao.probes.benchmarks import Item, said
from grpo_ao.processes import Processes

# Answers between two appends: what a killed run loses at most.
_CHUNK = 128


class Asking(NamedTuple):
    """How questions are put. ``batch_size`` counts sequences; it changes speed alone."""

    max_new_tokens: int
    batch_size: int
    agreement: bool
    """Whether each question is also answered twenty times at temperature 1."""


def probes_of_items(
    items: Sequence[Item], layers: Sequence[int], positions: Sequence[Positions], one_layer: bool
) -> list[Probe]:
    """Make the probes of each item: at each of ``positions``, at each layer.

    ``one_layer``: at one layer, drawn by a hash of text and question.
    """
    probes = []
    for item in items:
        drawn = layers[int(unit_draw("layer", item.text, item.question) * len(layers))]
        for where in positions:
            for layer in [drawn] if one_layer else layers:
                probes.append(
                    Probe(
                        item.text,
                        item.question,
                        "closed",
                        layer,
                        where,
                        item.target,
                        item.benchmark,
                    )
                )
    return probes


def ask_probes(
    oracle: Oracle,
    name: str,
    probes: Sequence[Probe],
    path: Path,
    asking: Asking,
    progress: Callable[[int], None],
    processes: Processes | None = None,
) -> list[dict]:
    """Ask every probe; return a row for each, in order.

    Rows are appended to ``path``, and what is there of the oracle ``name`` is not asked again.
    Several processes share each chunk, and the main one writes.
    """
    done = {_key(row): row for row in _whole_rows(path, processes) if row["oracle"] == name}
    missing = [probe for probe in probes if (probe.family, probe.id) not in done]
    progress(len(probes) - len(missing))
    for first in range(0, len(missing), _CHUNK):
        chunk = missing[first : first + _CHUNK]
        part = chunk if processes is None else processes.share(chunk)
        with together(oracle.model):
            rows = [{"oracle": name, **row} for row in _ask_chunk(oracle, part, asking)]
        if processes is not None:
            rows = processes.gathered(rows)
        if processes is None or processes.is_main:
            append_jsonl(path, rows)
        done |= {_key(row): row for row in rows}
        progress(len(chunk))
    return [done[probe.family, probe.id] for probe in probes]


def _key(row: dict) -> tuple[str, str]:
    return row["benchmark"], row["item_id"]


def _whole_rows(path: Path, processes: Processes | None) -> list[dict]:
    """Read what earlier starts have written."""
    if processes is not None:
        processes.wait()  # or one process would see what another has already written
    rows = read_jsonl(path)
    if processes is not None:
        processes.wait()
    return rows


def _ask_chunk(oracle: Oracle, probes: Sequence[Probe], asking: Asking) -> Iterator[dict]:
    if not probes:
        return
    vectors = _read_subject(oracle, probes)
    prompts = [
        oracle.prompt(probe.layer, len(row_KD), probe.question)
        for probe, row_KD in zip(probes, vectors, strict=True)
    ]
    size = asking.batch_size
    new = asking.max_new_tokens
    greedy = oracle.complete(prompts, vectors, Sampling(max_new_tokens=new), batch_size=size)
    ids = [samples[0] for samples in greedy]
    known = answer_probabilities(oracle, prompts, vectors, ids, batch_size=size)
    sampled: list[list[list[int]]] = [[] for _ in probes]
    if asking.agreement:
        # A chunk draws the same samples whether or not the run was killed before it.
        torch.manual_seed(int(stable_hash(*(probe.id for probe in probes))[:8], 16))
        sampled = oracle.complete(
            prompts,
            vectors,
            Sampling(AGREEMENT_SAMPLES, 1.0, new),
            batch_size=size,
        )
    for row in zip(probes, ids, known, sampled, strict=True):
        yield _row(oracle, *row)


def _read_subject(oracle: Oracle, probes: Sequence[Probe]) -> list[Tensor]:
    """Read each text of the probes once; return each probe's activations."""
    tokens = {p.text: subject_token_ids(oracle.tokenizer, p.text) for p in probes}
    wanted: dict[str, list[int]] = {text: [] for text in tokens}
    for index, probe in enumerate(probes):
        wanted[probe.text].append(index)
    reads = [
        [
            (
                probes[i].layer,
                select_positions(oracle.tokenizer, tokens[text], probes[i].positions, text),
            )
            for i in indices
        ]
        for text, indices in wanted.items()
    ]
    outputs = read_residuals(oracle.model, list(tokens.values()), reads, batch_size=32)
    found = {
        index: row_KD
        for indices, rows in zip(wanted.values(), outputs, strict=True)
        for index, row_KD in zip(indices, rows, strict=True)
    }
    return [found[index] for index in range(len(probes))]


def _row(
    oracle: Oracle,
    probe: Probe,
    ids: list[int],
    known: AnswerProbability,
    sampled: list[list[int]],
) -> dict:
    completion, *others = oracle.tokenizer.batch_decode([ids, *sampled], skip_special_tokens=True)
    output = parse_oracle_output(completion)
    answer = said(output.answer)
    row = {
        "benchmark": probe.family,
        "item_id": probe.id,
        "context_id": stable_hash(probe.text),
        "text": probe.text,
        "question": probe.question,
        "target": probe.reference,
        "layer": probe.layer,
        "positions": str(probe.positions),
        "completion": completion,
        "parsed": output.parsed,
        "confidence": output.confidence if output.parsed else None,
        "answer": output.answer,
        "said": answer,
        "correct": int(answer == probe.reference),
        "yes_probability": known.yes,
        "sequence_probability": known.sequence,
        "tokens": len(ids),
    }
    if sampled:
        votes = [said(parse_oracle_output(text).answer) for text in others]
        counts = {"Yes": votes.count("Yes"), "No": votes.count("No"), "neither": votes.count(None)}
        row["samples"] = counts
        row["sample_tokens"] = sum(map(len, sampled))
    return row
