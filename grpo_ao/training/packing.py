"""Completions of one prompt in one row, behind the prompt: it is read once for all of them.

A row is ``prompt[:-1] | last, c_1 .. | last, c_1 .. | ...``: each completion is a segment that
opens with the prompt's last token, from whose output its first token is predicted. A segment sees
the prompt and itself, at the positions that it has behind the prompt; so outputs and gradients are
those of the completions one by one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from grpo_ao.oracle.batches import moved, padded

IGNORED = -100
_PROMPT, _PADDING = 0, -1
_LENGTH_STEP = 8  # Attention kernels want masks of aligned width.


class Packed(NamedTuple):
    """Rows of completions behind their prompts.

    ``labels_NL`` is the token that each column predicts, -100 where none is scored;
    ``segments_NL`` is 0 in the prompt, 1 and up in its completions, -1 in padding;
    ``columns_BC`` is where, in the flattened rows, each completion's tokens are predicted, -1
    behind its end.
    """

    input_ids_NL: Int64[Tensor, "rows length"]
    positions_NL: Int64[Tensor, "rows length"]
    segments_NL: Int64[Tensor, "rows length"]
    labels_NL: Int64[Tensor, "rows length"]
    columns_BC: Int64[Tensor, "batch completion"]

    def to(self, device: torch.device) -> "Packed":
        """Return the rows on ``device``."""
        return Packed(*(moved(tensor, device) for tensor in self))

    def visible(self, window: int | None = None) -> Bool[Tensor, "rows 1 length length"]:
        """Say which column (last) each column sees; a ``window`` is that of sliding attention."""
        query_NL1, key_N1L = self.segments_NL[:, :, None], self.segments_NL[:, None, :]
        ahead_NLL = self.positions_NL[:, :, None] - self.positions_NL[:, None, :]
        visible_NLL = ((key_N1L == _PROMPT) | (key_N1L == query_NL1)) & (ahead_NLL >= 0)
        if window is not None:
            visible_NLL &= ahead_NLL < window
        return visible_NLL[:, None]

    def unpack(
        self, values_NL: Float[Tensor, "rows length"], width: int
    ) -> Float[Tensor, "batch width"]:
        """Return what was computed for each completion's tokens, 0 behind its end."""
        columns_BC = torch.nn.functional.pad(
            self.columns_BC, (0, width - self.columns_BC.shape[1]), value=-1
        )
        values_BC = values_NL.flatten()[columns_BC.clamp(min=0)]
        return values_BC.masked_fill(columns_BC < 0, 0.0)


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    prompt_of: Sequence[int],
    pad_id: int,
) -> Packed:
    """Pack completions behind their prompts; ``prompt_of[b]`` is the row of completion b's."""
    rows = [_Row(list(prompt)) for prompt in prompts]
    starts = [
        rows[row].add(completion) for row, completion in zip(prompt_of, completions, strict=True)
    ]
    longest = max(len(row.ids) for row in rows)
    length = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
    width = max(map(len, completions))
    columns_BC = torch.full((len(completions), width), -1)
    for b, (row, start, completion) in enumerate(zip(prompt_of, starts, completions, strict=True)):
        first = row * length + start
        columns_BC[b, : len(completion)] = torch.arange(first, first + len(completion))
    return Packed(
        padded([row.ids for row in rows], pad_id, length=length),
        padded([row.positions for row in rows], 0, length=length),
        padded([row.segments for row in rows], _PADDING, length=length),
        padded([row.labels for row in rows], IGNORED, length=length),
        columns_BC,
    )


class _Row:
    """A row in the making."""

    def __init__(self, prompt: list[int]) -> None:
        self.last, self.known = prompt[-1], len(prompt) - 1
        self.ids = prompt[:-1]
        self.positions = list(range(self.known))
        self.segments = [_PROMPT] * self.known
        self.labels = [IGNORED] * self.known
        self.count = 0

    def add(self, completion: Sequence[int]) -> int:
        """Append a completion; return the column of its first token's prediction."""
        start, size = len(self.ids), len(completion)
        self.count += 1
        self.ids += [self.last, *completion[:-1]][:size]
        self.positions += range(self.known, self.known + size)
        self.segments += [self.count] * size
        self.labels += completion
        return start
