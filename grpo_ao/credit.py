"""Who gets the credit: advantages of a completion's tokens from its reward's two terms.

The confidence is written before the answer. One scalar for the whole string credits the answer's
tokens with the confidence's luck, and the confidence's with the answer's. Split credit gives the
tag's tokens the advantage of the calibration term, the answer's tokens that of informativeness.

The calibration term measures a confidence against one answer's grade, most of which is luck. The
mean grade of the group's other answers (``TagOutcome`` ``group``) has the same expectation, as far
as the number that was written does not change the answer behind it, and much less variance.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Credit = Literal["joint", "split"]
ScaleRewards = Literal["group", "batch", "none"]
TagOutcome = Literal["own", "group"]
_EPSILON = 1e-4


def group_advantages(
    values_N: Float[Tensor, "completions"], group_size: int, scale: ScaleRewards
) -> Float[Tensor, "completions"]:
    """Return each value minus its group's mean, divided as ``scale`` says; NaN values get 0.

    ``values_N`` holds groups of ``group_size`` in a row; NaN marks a completion without a value,
    which enters no mean and no deviation. ``group`` divides by the group's standard deviation
    (GRPO, arXiv 2402.03300), ``batch`` by that of all values, ``none`` by nothing (Dr. GRPO,
    arXiv 2503.20783). Deviations are of the sample (n - 1), plus 1e-4.
    """
    grouped_PG = values_N.view(-1, group_size)
    centered_PG = grouped_PG - grouped_PG.nanmean(dim=1, keepdim=True)
    if scale == "group":
        centered_PG = centered_PG / (_nanstd(grouped_PG) + _EPSILON)
    elif scale == "batch":
        centered_PG = centered_PG / (_nanstd(values_N[None]) + _EPSILON)
    return centered_PG.nan_to_num(nan=0.0).flatten()


def _nanstd(values_PG: Tensor) -> Tensor:
    count_P1 = (~values_PG.isnan()).sum(dim=1, keepdim=True)
    squares_PG = (values_PG - values_PG.nanmean(dim=1, keepdim=True)).square()
    variance_P1 = squares_PG.nansum(dim=1, keepdim=True) / (count_P1 - 1).clamp(min=1)
    return variance_P1.sqrt()


def means_of_the_others(
    values_N: Float[Tensor, "completions"], group_size: int
) -> Float[Tensor, "completions"]:
    """Return for each value the mean of the others of its group.

    NaN where there are no others, and where the value itself is NaN; NaN values enter no mean.
    """
    grouped_PG = values_N.view(-1, group_size)
    known_PG = ~grouped_PG.isnan()
    others_PG = known_PG.sum(dim=1, keepdim=True) - 1
    means_PG = (grouped_PG.nansum(dim=1, keepdim=True) - grouped_PG) / others_PG
    return means_PG.masked_fill(others_PG < 1, torch.nan).flatten()


def tag_lengths(
    tokenizer: PreTrainedTokenizerBase, completions: Sequence[Sequence[int]]
) -> list[int]:
    """Count each completion's leading tokens up to the one that closes the tag.

    A token that holds the closing bracket belongs to the tag even if it holds more.
    """
    lengths = []
    for token_ids in completions:
        # One by one: a tag closes early. A token is None where the model's vocabulary is padded
        # beyond the tokenizer's.
        tokens = map(tokenizer.convert_ids_to_tokens, token_ids)
        closing = (count for count, token in enumerate(tokens, start=1) if "]" in (token or ""))
        lengths.append(next(closing, 0))
    return lengths


def answer_start(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], parsed: bool) -> int:
    """Return the index of a completion's first answer token: behind its tag, 0 without one."""
    return tag_lengths(tokenizer, [token_ids])[0] if parsed else 0


def split_advantages(
    tag_mask_NC: Bool[Tensor, "completions tokens"],
    informativeness_N: Float[Tensor, "completions"],
    calibration_N: Float[Tensor, "completions"],
    reward_N: Float[Tensor, "completions"],
    parsed_N: Bool[Tensor, "completions"],
    group_size: int,
    scale: ScaleRewards,
) -> Float[Tensor, "completions tokens"]:
    """Return per-token advantages: the tag's from calibration, the rest from informativeness.

    An unparsed completion has no tag: all of its tokens get the advantage of the whole reward,
    which for it is the floor, and it enters neither term's mean.
    """
    nan_N = torch.full_like(reward_N, torch.nan)
    answer_N = group_advantages(torch.where(parsed_N, informativeness_N, nan_N), group_size, scale)
    tag_N = group_advantages(torch.where(parsed_N, calibration_N, nan_N), group_size, scale)
    whole_N = group_advantages(reward_N, group_size, scale)
    parsed_NC = torch.where(tag_mask_NC, tag_N[:, None], answer_N[:, None])
    return torch.where(parsed_N[:, None], parsed_NC, whole_N[:, None])
