"""Warm start: teach the tag by supervised fine-tuning on the oracle's own answers.

Each target is an answer that the oracle itself gave, with a tag in front; an answer weighs as much
as its grade, so that right answers stay what they are and wrong ones are not repeated. ``measured``
writes into the tag how often the oracle was right on that question over k samples, shrunk to the
mean of the question's family: the position that writes the number learns to read the activations
before GRPO begins. ``random`` writes a random number, whose loss is left out: it teaches the tag
and no belief.
"""

import asyncio
import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from grpo_ao.epistemic import parse_oracle_output, render_oracle_output
from grpo_ao.evaluation.heldout import complete_table
from grpo_ao.judges.protocol import GradeRequest, Judge
from grpo_ao.oracle.activations import evaluating
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.prompt import end_of_turn_id
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.processes import Processes
from grpo_ao.training.run_folder import append_jsonl, atomic_write_text

# An answer's weight is its grade times this: wrong answers are not worth repeating.
ANSWER_WEIGHT, NUMBER_WEIGHT, FORMAT_WEIGHT = 1.0, 1.0, 1.0
_SHRINKAGE = 2.0
_CHUNK = 256


@dataclass(frozen=True)
class Sample:
    """One probe's sampled answers and their grades."""

    probe_id: str
    answers: list[str]
    scores: list[float]


@dataclass(frozen=True)
class Target:
    """A completion to learn: its token ids, end token included, and each token's weight."""

    row: int
    token_ids: list[int]
    weights: list[float]


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
    if not path.exists():
        return []
    # A run that was killed while it wrote leaves half a line at the end: it is made again.
    text = path.read_text()
    whole = text.rpartition("\n")[0]
    if not text.endswith("\n"):
        atomic_write_text(path, whole + "\n" if whole else "")
    return [Sample(**json.loads(line)) for line in whole.splitlines()]


async def _graded(
    table: ProbeTable, judge: Judge, rows: Sequence[int], completions: list[list[str]]
) -> list[Sample]:
    answers = [[parse_oracle_output(c).answer for c in samples] for samples in completions]
    requests = [
        GradeRequest(probe.text, probe.question, answer, probe.kind, probe.reference)
        for probe, said in zip((table.probes[row] for row in rows), answers, strict=True)
        for answer in said
    ]
    grades = iter(await judge.grade(requests))
    samples = []
    for row, said in zip(rows, answers, strict=True):
        scored = [(answer, next(grades).score) for answer in said]
        known = [(answer, score) for answer, score in scored if score is not None]
        samples.append(Sample(table.probes[row].id, [a for a, _ in known], [s for _, s in known]))
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
    """Write one target per sampled answer, with the number that ``mode`` says."""
    groups = [f"{table.probes[row].family}/{table.probes[row].kind}" for row in rows]
    accuracies = shrunk_accuracy([sample.scores for sample in samples], groups)
    targets = []
    for row, sample, accuracy in zip(rows, samples, accuracies, strict=True):
        for answer, score in zip(sample.answers, sample.scores, strict=True):
            measured = mode == "measured"
            confidence = round(100 * accuracy) if measured else rng.randint(0, 100)
            text = render_oracle_output(confidence, answer)
            if parse_oracle_output(text).parsed:
                weight = NUMBER_WEIGHT if measured else 0.0
                targets.append(
                    _target(tokenizer, row, text, str(confidence), weight, ANSWER_WEIGHT * score)
                )
    if not targets:
        raise ValueError("the oracle gave no answer that a tag can be put in front of.")
    return targets


def _target(
    tokenizer: PreTrainedTokenizerBase,
    row: int,
    text: str,
    number: str,
    number_weight: float,
    answer_weight: float,
) -> Target:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    first = text.index(number)
    closing = text.index("]")
    weights = []
    for start, stop in encoded["offset_mapping"]:
        if start > closing:
            weights.append(answer_weight)
        elif start < first + len(number) and stop > first:
            weights.append(number_weight)
        else:
            weights.append(FORMAT_WEIGHT)
    end = end_of_turn_id(tokenizer)
    return Target(row, [*encoded["input_ids"], end], [*weights, answer_weight])


def completion_loss(
    oracle: Oracle, table: ProbeTable, targets: Sequence[Target]
) -> Float[Tensor, ""]:
    """Return the cross-entropy of a batch of targets (nats), weighted and summed."""
    prompts = [table.prompts[target.row].input_ids for target in targets]
    width = max(map(len, prompts))
    longest = max(len(target.token_ids) for target in targets)
    pad = oracle.tokenizer.pad_token_id
    ids_BL = torch.tensor(
        [
            [pad] * (width - len(p)) + p + t.token_ids + [pad] * (longest - len(t.token_ids))
            for p, t in zip(prompts, targets, strict=True)
        ]
    )
    mask_BL = torch.tensor(
        [
            [0] * (width - len(p))
            + [1] * (len(p) + len(t.token_ids))
            + [0] * (longest - len(t.token_ids))
            for p, t in zip(prompts, targets, strict=True)
        ]
    )
    weight_BC = torch.tensor([t.weights + [0.0] * (longest - len(t.weights)) for t in targets])
    device = next(oracle.model.parameters()).device
    oracle.hook.bind(table.injection([t.row for t in targets], width).to(device))
    logits_BCV = oracle.model(
        input_ids=ids_BL.to(device), attention_mask=mask_BL.to(device), logits_to_keep=longest + 1
    ).logits[:, :-1]
    return _weighted(logits_BCV, ids_BL[:, width:].to(device), weight_BC.to(device))


def _weighted(
    logits_BCV: Float[Tensor, "batch tokens vocab"],
    ids_BC: Int64[Tensor, "batch tokens"],
    weight_BC: Float[Tensor, "batch tokens"],
) -> Float[Tensor, ""]:
    losses_BC = nn.functional.cross_entropy(
        logits_BCV.float().transpose(1, 2), ids_BC, reduction="none"
    )
    return (losses_BC * weight_BC).sum()


def fine_tune(
    processes: Processes,
    oracle: Oracle,
    table: ProbeTable,
    targets: Sequence[Target],
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[int], None],
) -> list[float]:
    """Fine-tune the adapter on random batches of targets, dropout off; return the losses.

    The learning rate rises over ten steps and falls along a cosine to zero. A batch is divided
    over the processes, which sum their gradients: the update is that of one process.
    """
    losses = []
    rng = random.Random(f"fine tune {seed}")
    trained = [p for p in oracle.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1, (step + 1) / 10),
    )
    with evaluating(oracle.model), torch.enable_grad():
        for _ in range(steps):
            batch = [targets[rng.randrange(len(targets))] for _ in range(batch_size)]
            weight = sum(sum(target.weights) for target in batch)
            loss = _backward(oracle, table, processes.share(batch), weight)
            processes.sum_gradients(trained)
            norm = nn.utils.clip_grad_norm_(trained, 1.0)
            if not norm.isfinite():
                raise ValueError(
                    f"the gradient of the warm start is not finite at step {len(losses) + 1}: "
                    "lower --warm_start_lr."
                )
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(sum(processes.gathered([loss])))
            progress(1)
    oracle.hook.clear()
    return losses


def _backward(oracle: Oracle, table: ProbeTable, share: Sequence[Target], weight: float) -> float:
    """Add the gradient of this share's part of the mean over ``weight``; return that part."""
    if not share:
        return 0.0
    loss = completion_loss(oracle, table, share) / weight
    loss.backward()
    return loss.item()
