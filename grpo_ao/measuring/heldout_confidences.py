"""Baselines on a run's own held-out probes, open questions among them."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from grpo_ao.calibration import calibration_summary
from grpo_ao.epistemic import parse_oracle_output
from grpo_ao.judges.reference import words
from grpo_ao.measuring.confidences import AGREEMENT_SAMPLES, answer_probabilities
from grpo_ao.measuring.heldout import complete_table
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sharding import together
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.processes import Processes
from grpo_ao.reward import ScoredCompletion

# Twenty samples of each of 2000 probes would take longer than all other measurements.
SAMPLED_PROBES = 400
_CHUNK = 64


def heldout_baselines(
    processes: Processes,
    oracle: Oracle,
    table: ProbeTable,
    scored: Sequence[ScoredCompletion],
    max_new_tokens: int,
    progress: Callable[[int], None],
) -> dict[str, dict[str, float]]:
    """Return a summary of each other way to be sure of the greedy answers ``scored``.

    ``constant``: the answers' own mean score. ``answer probability``: that of the answer's tokens,
    end token included. ``agreement of 20``: the share of samples at temperature 1 that say the
    same words, on the first probes only, with the stated confidence on these probes beside it.
    Answers without a well-formed tag and those without a grade are left out. Every process takes
    its share.
    """
    known = [i for i, s in enumerate(scored) if s.terms.informativeness is not None]
    score = np.array([scored[i].terms.informativeness for i in known], dtype=float)
    stated = np.array([scored[i].output.confidence / 100 for i in known], dtype=float)
    probability = np.array(_probabilities(processes, oracle, table, scored, known, progress))
    first = [i for i in known if i < SAMPLED_PROBES]
    agreed = _agreements(processes, oracle, table, scored, first, max_new_tokens, progress)
    constant = np.full(len(known), score.mean()) if known else score
    part = slice(len(first))
    return {
        "constant": _summary(constant, score),
        "answer probability": _summary(probability, score),
        f"agreement of {AGREEMENT_SAMPLES}": _summary(np.array(agreed), score[part]),
        "stated confidence, where agreement is known": _summary(stated[part], score[part]),
    }


def _summary(confidence: np.ndarray, score: np.ndarray) -> dict[str, float]:
    everything = np.ones(len(score), dtype=bool)
    return calibration_summary(confidence.astype(float), score, everything)


def _probabilities(
    processes: Processes,
    oracle: Oracle,
    table: ProbeTable,
    scored: Sequence[ScoredCompletion],
    rows: Sequence[int],
    progress: Callable[[int], None],
) -> list[float]:
    found: list[float] = []
    share = processes.share(rows)
    with together(oracle.model):
        for first in range(0, len(share), _CHUNK):
            chunk = share[first : first + _CHUNK]
            # A greedy completion is read again as its text's tokens.
            ids = [
                oracle.tokenizer.encode(scored[i].completion, add_special_tokens=False)
                for i in chunk
            ]
            part = table.part(chunk)
            known = answer_probabilities(oracle, part.prompts, part.vectors, ids)
            found += [probability.sequence for probability in known]
            progress(len(chunk))
    return processes.gathered(found)


def _agreements(
    processes: Processes,
    oracle: Oracle,
    table: ProbeTable,
    scored: Sequence[ScoredCompletion],
    rows: Sequence[int],
    max_new_tokens: int,
    progress: Callable[[int], None],
) -> list[float]:
    found: list[float] = []
    torch.manual_seed(processes.index)
    share = processes.share(rows)
    with together(oracle.model):
        for first in range(0, len(share), _CHUNK):
            chunk = share[first : first + _CHUNK]
            sampled = complete_table(
                oracle, table, chunk, 1.0, max_new_tokens, AGREEMENT_SAMPLES, batch_size=320
            )
            for i, completions in zip(chunk, sampled, strict=True):
                said = words(scored[i].output.answer)
                same = [words(parse_oracle_output(c).answer) == said for c in completions]
                found.append(sum(same) / len(same))
            progress(len(chunk))
    return processes.gathered(found)
