"""Measure an oracle on held-out probes: complete, parse, grade, summarise."""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from grpo_ao.calibration import calibration_summary
from grpo_ao.epistemic import parse_oracle_output
from grpo_ao.judges.protocol import Grade, Judge
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sampling import Sampling
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probe import Probe
from grpo_ao.reward import ScoredCompletion, reward_terms, score_completions


def complete_table(
    oracle: Oracle,
    table: ProbeTable,
    rows: Sequence[int],
    temperature: float,
    max_new_tokens: int,
    num_samples: int = 1,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
) -> list[list[str]]:
    """Complete the prompts of ``rows``; return the decoded completions, [row][sample]."""
    completions = oracle.complete(
        [table.prompts[row] for row in rows],
        [table.vectors[row] for row in rows],
        Sampling(num_samples, temperature, max_new_tokens),
        batch_size=batch_size,
        progress=progress,
    )
    decode = oracle.tokenizer.batch_decode
    return [decode(samples, skip_special_tokens=True) for samples in completions]


def measure(
    oracle: Oracle,
    table: ProbeTable,
    judge: Judge,
    temperature: float,
    max_new_tokens: int,
    progress: Callable[[int], None] | None = None,
) -> list[ScoredCompletion]:
    """Ask every probe of ``table`` once; temperature 0 is greedy."""
    rows = range(len(table))
    completions = complete_table(
        oracle, table, rows, temperature, max_new_tokens, progress=progress
    )
    first = [samples[0] for samples in completions]
    return asyncio.run(score_completions(judge, table.probes, first, calibration_lambda=0.0))


def arrays(scored: Sequence[ScoredCompletion]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return confidence, informativeness and parsed of the completions that were graded.

    A parsed completion without a grade is in none of them: nothing is known of it.
    """
    known = [s for s in scored if not s.output.parsed or s.terms.informativeness is not None]
    confidence = np.array([s.output.confidence / 100 for s in known], dtype=float)
    score = np.array([s.terms.informativeness or 0.0 for s in known], dtype=float)
    return confidence, score, np.array([s.output.parsed for s in known], dtype=bool)


def summarise(scored: Sequence[ScoredCompletion]) -> dict[str, float]:
    """Return the summary metrics of one measurement."""
    return calibration_summary(*arrays(scored))


def heldout_row(scored: ScoredCompletion) -> dict:
    """Return what is kept of one held-out answer."""
    probe = scored.probe
    return {
        "probe_id": probe.id,
        "family": probe.family,
        "kind": probe.kind,
        "layer": probe.layer,
        "positions": str(probe.positions),
        "text": probe.text,
        "question": probe.question,
        "reference": probe.reference,
        "completion": scored.completion,
        "confidence": scored.output.confidence,
        "answer": scored.output.answer,
        "parsed": scored.output.parsed,
        "score": scored.terms.informativeness,
    }


def scored_of_row(row: dict, probe: Probe) -> ScoredCompletion:
    """Read back what ``heldout_row`` wrote of an answer about ``probe``."""
    if row["probe_id"] != probe.id:
        raise ValueError(f"the row is of probe {row['probe_id']}, not of {probe.id}.")
    output = parse_oracle_output(row["completion"])
    terms = reward_terms(output, row["score"], 0.0)
    grade = Grade(row["score"]) if output.parsed else None
    return ScoredCompletion(probe, row["completion"], output, grade, terms)
