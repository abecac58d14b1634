"""Importance weights of tokens that another model sampled than the one that is trained."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Mode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


def importance_ratio(
    gap_BC: Float[Tensor, "batch completion"],
    mode: Mode,
    lowest: float | None,
    highest: float | None,
) -> Float[Tensor, "batch completion_or_1"]:
    """Return TRL's weights (``vllm_importance_sampling_mode``) from its own formula.

    ``gap_BC`` is policy minus sampler, in nats, 0 at padding; NaN, where the sampler knows no
    log-probability, counts as 0. ``token`` modes weigh each token by ``exp(gap)``, ``sequence``
    modes each completion by that of its sum, shape (B, 1). A weight outside of the limits is cut to
    them (``truncate``) or becomes 0 (``mask``).
    """
    gap = torch.nan_to_num(gap_BC, nan=0.0)
    if mode.startswith("sequence"):
        gap = gap.sum(dim=-1, keepdim=True)
    lowest = 0.0 if lowest is None else lowest
    highest = torch.inf if highest is None else highest
    ratio = gap.exp()
    if mode.endswith("truncate"):
        return ratio.clamp(lowest, highest)
    return ratio.masked_fill((ratio < lowest) | (ratio > highest), 0.0)
