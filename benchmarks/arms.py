"""What an ablation changes that no flag changes: anchor, targets, GRPO's KL and a tag's outcome."""

from dataclasses import replace

import numpy as np

from grpo_ao.cli import main as command_line
from grpo_ao.training import fine_tuning, warm_start
from grpo_ao.training.trainer import OracleGRPOTrainer


def train_arm(name: str, jobs: int, arguments: list[str]) -> None:
    """Train as ``train.py`` does, with what the arm of this name changes beside its flags.

    "" changes nothing. ``jobs`` runs share the device: each takes its part of what a pass of the
    warm start may fill.
    """
    if name and name not in CHANGES:
        raise SystemExit(f"error: benchmarks.arms knows no arm {name!r}: it would be the recipe.")
    fine_tuning.MOST_TOKENS //= jobs
    if name:
        setattr(*CHANGES[name])
    command_line(["train", *arguments])


def family_means(probes, probability_N, grade_N, wrong=()):
    """Return the mean grade of each question's family."""
    family_N = np.array([probe.family for probe in probes])
    mean_N = np.empty(len(probes))
    for family in set(family_N.tolist()):
        inside = family_N == family
        mean_N[inside] = np.nanmean(grade_N[inside])
    return mean_N


def hold_everything(self, inputs, logps_BC):
    """Leave the divergence from the warm start as TRL has it, in every token."""


def credit_with_probability(self, output, answers):
    """Credit a tag against the mean of its answer's grade and probability, by the reference.

    The probability has no luck in it; that of the reference does not move with the answers.
    """
    told_BC = output["completion_mask"].bool() & ~self._tag_mask(output["completion_ids"])
    logp_B = (output["ref_per_token_logps"] * told_BC).sum(dim=1)
    known = zip(answers, logp_B.exp().tolist(), strict=True)
    return _split_credit(self, output, [_recredited(self, *pair) for pair in known])


_split_credit = OracleGRPOTrainer._split_credit


def _recredited(trainer, answer, probability):
    if answer.calibration is None:
        return answer
    outcome = (answer.informativeness + probability) / 2
    return replace(answer, calibration=trainer.reward.rule.calibration(answer.confidence, outcome))


CHANGES = {
    "no anchor": (fine_tuning, "ANCHOR_WEIGHT", 0.0),
    "anchor 2": (fine_tuning, "ANCHOR_WEIGHT", 2.0),
    "open answers anchored": (warm_start, "ANCHORED", ("closed", "open")),
    "answer probability alone": (warm_start, "FIRST_SHARE", 1.0),
    "targets of the family": (warm_start, "expected_grades", family_means),
    "kl 0.2 on tags, too": (OracleGRPOTrainer, "_hold_answers", hold_everything),
    "answer probability in the reward": (
        OracleGRPOTrainer,
        "_split_credit",
        credit_with_probability,
    ),
}
"""What an arm sets: of which module or class, which name, to what."""
