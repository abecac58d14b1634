"""What an ablation changes that no flag changes: the anchor and the targets of the warm start."""

import numpy as np
import torch

from grpo_ao.cli import main as command_line
from grpo_ao.credit import tag_lengths
from grpo_ao.training import fine_tuning, warm_start
from grpo_ao.training.trainer import OracleGRPOTrainer


def train_arm(name: str, jobs: int, arguments: list[str]) -> None:
    """Train as ``train.py`` does, with what an arm changes beside its flags.

    ``jobs`` runs share the device: each takes its part of what a pass of the warm start may fill.
    """
    fine_tuning.MOST_TOKENS //= jobs
    if name == "no anchor":
        fine_tuning.ANCHOR_WEIGHT = 0.0
    if name == "answer probability alone":
        warm_start.FIRST_SHARE = 1.0
    if name == "targets of the family":
        warm_start.expected_grades = family_means
    if name == "kl 0.2 on answers alone":
        free_tags()
    command_line(["train", *arguments])


def family_means(probes, probability_N, grade_N, wrong=()):
    """Return the mean grade of each question's family."""
    family_N = np.array([probe.family for probe in probes])
    mean_N = np.empty(len(probes))
    for family in set(family_N.tolist()):
        inside = family_N == family
        mean_N[inside] = np.nanmean(grade_N[inside])
    return mean_N


def free_tags():
    """Let GRPO's divergence from the warm start count in the tokens of answers alone.

    In those of a tag the reference is the policy itself, so that there is none, and no gradient.
    """
    loss, logps = (
        OracleGRPOTrainer._compute_loss,
        OracleGRPOTrainer._get_per_token_logps_and_entropies,
    )
    scored = []

    def compute_loss(self, model, inputs):
        scored.append(inputs)
        try:
            return loss(self, model, inputs)
        finally:
            scored.clear()

    def per_token_logps(self, *args, **kwargs):
        logps_BC, *others = logps(self, *args, **kwargs)
        for inputs in scored:
            ids_BC = inputs["completion_ids"]
            tag_B = torch.tensor(tag_lengths(self.oracle.tokenizer, ids_BC.tolist()))
            tag_BC = torch.arange(ids_BC.shape[1])[None] < tag_B[:, None]
            inputs["ref_per_token_logps"] = torch.where(
                tag_BC.to(logps_BC.device), logps_BC.detach(), inputs["ref_per_token_logps"]
            )
        return logps_BC, *others

    OracleGRPOTrainer._compute_loss = compute_loss
    OracleGRPOTrainer._get_per_token_logps_and_entropies = per_token_logps
