"""What a warm start teaches, on questions that it never asks: ``python -m benchmarks.targets``.

    python -m benchmarks.targets --answers RUN/warm_start/answers.jsonl --rows ROWS/before.jsonl

``--answers`` are the graded answers of a run's warm start, ``--rows`` those of the same oracle
before it to held-out questions (``benchmarks.real`` writes them). The recalibration that the warm
start teaches is fitted on the first and looked at on the second: no number can be better than what
it is taught. Beside the greedy answers' target stands that of answers drawn at temperature 1, and
the answer's own probability. Families without questions in the first are out of distribution, and
are recalibrated as all others together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Bool, Float

from benchmarks.real import scores
from grpo_ao.answer import Answer, read_answer_rows
from grpo_ao.measuring.controls import is_asked_wrongly
from grpo_ao.training.targets import cross_fitted


@dataclass(frozen=True)
class Settings:
    """Which answers."""

    answers: Path
    """Graded answers of the warm start."""
    rows: Path
    """Graded answers of the same oracle, with their probabilities, to held-out questions."""
    wrong_activations: float = 0.1
    """Share of the warm start's questions that were asked on wrong ones: these are left out."""


def known(path: Path) -> list[Answer]:
    """Read what is graded and has a probability, asked on its own activations."""
    return [
        answer
        for row, answer in read_answer_rows(path)
        if row.get("activations", "own") == "own"
        and None not in (answer.informativeness, answer.answer_probability)
    ]


def target_of(
    taught: Sequence[Answer], asked: Sequence[Answer], drawn: bool
) -> Float[np.ndarray, "asked"]:
    """Return the number that the warm start would teach for each answer to ``asked``.

    ``drawn`` is for answers at temperature 1: a closed answer of probability p is then given with
    p, and the opposite one else.
    """
    both = [*taught, *asked]
    probability_N = np.array([answer.answer_probability for answer in both], dtype=float)
    grade_N = np.array([answer.informativeness for answer in both], dtype=float)
    if drawn:
        grade_N = probability_N * grade_N + (1 - probability_N) * (1 - grade_N)
    grade_N[len(taught) :] = np.nan
    folds = [0] * len(taught) + [1] * len(asked)
    families = [answer.probe.family for answer in both]
    own_N = cross_fitted(probability_N, grade_N, families, folds)
    all_N = cross_fitted(probability_N, grade_N, ["all"] * len(both), folds)
    return np.where(_taught(taught, both), own_N, all_N)[len(taught) :]


def _taught(taught: Sequence[Answer], asked: Sequence[Answer]) -> Bool[np.ndarray, "asked"]:
    families = {answer.probe.family for answer in taught}
    return np.array([answer.probe.family in families for answer in asked])


def table_of(taught: Sequence[Answer], asked: Sequence[Answer]) -> str:
    """Return the table in Markdown."""
    confidences = {
        "target of greedy answers": target_of(taught, asked, drawn=False),
        "target of drawn answers": target_of(taught, asked, drawn=True),
        "the answer's own probability": [answer.answer_probability for answer in asked],
    }
    inside_N = _taught(taught, asked)
    lines = ["| | questions | mean | right | ECE10 | Brier | AUROC within |", "|---" * 7 + "|"]
    for name, values in confidences.items():
        for part, chosen_N in (("in", inside_N), ("out", ~inside_N)):
            pairs = [(a, v) for a, v, c in zip(asked, values, chosen_N, strict=True) if c]
            if not pairs:
                continue
            sure = {id(answer): value for answer, value in pairs}
            found = scores([a for a, _ in pairs], lambda answer, sure=sure: sure[id(answer)])
            mean = float(np.mean(list(sure.values())))
            cells = (mean, mean - found["surplus"], found["ece10"], found["brier"], found["within"])
            shown = " | ".join(f"{cell:.3f}" for cell in cells)
            lines.append(f"| {name}, {part} | {len(pairs)} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Read, recalibrate, print."""
    settings = tyro.cli(Settings, description=__doc__)
    taught = [
        answer
        for answer in known(settings.answers)
        if not is_asked_wrongly(answer.probe, settings.wrong_activations)
    ]
    print(table_of(taught, known(settings.rows)))


if __name__ == "__main__":
    main()
