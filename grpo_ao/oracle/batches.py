"""Rows of token ids as batches: divided by length, padded to the longest of each."""

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Int64
from torch import Tensor


def batched(order: Iterable[int], fits: Callable[[list[int]], bool]) -> list[list[int]]:
    """Divide row indices, in their order, into batches that fit; what fits nowhere is alone."""
    batches: list[list[int]] = []
    for row in order:
        if batches and fits([*batches[-1], row]):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def padded(
    rows: Sequence[Sequence[int]], value: int, *, left: bool = False, length: int | None = None
) -> Int64[Tensor, "rows length"]:
    """Stack rows, padded with ``value`` to ``length`` or to the longest; on the right or left."""
    longest = max(map(len, rows)) if length is None else length
    gaps = [[value] * (longest - len(row)) for row in rows]
    pairs = zip(rows, gaps, strict=True)
    stacked = [[*gap, *row] if left else [*row, *gap] for row, gap in pairs]
    return torch.tensor(stacked, dtype=torch.int64)


def mask_of(rows: Sequence[Sequence[int]], *, left: bool = False) -> Int64[Tensor, "rows length"]:
    """Return the attention mask of rows that are ``padded``: 1 at their own tokens, else 0."""
    return padded([[1] * len(row) for row in rows], 0, left=left)


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Copy to a device; to a GPU from pinned memory, so that nobody waits for what runs there."""
    if torch.device(device).type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
