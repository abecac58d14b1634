"""The exam of the mini model: what it can answer from the text.

Teacher-forced on held-out messages: an answer is right if every one of its tokens is the most
likely one. A family that the base cannot answer from the text is one about which its activations
can tell an oracle nothing.
"""

import random

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from grpo_ao.mini.questions import questions_about
from grpo_ao.mini.world import Message, make_message, split_of_message
from grpo_ao.probe import Split
from tools.mini_world.corpus import (
    ANSWER,
    TEXT,
    answer_segments,
    encode,
    turn,
)

_BATCH = 512


def heldout_messages(seed: int, count: int) -> list[Message]:
    """Return ``count`` messages whose texts no stage of the build has seen."""
    found: list[Message] = []
    index = 0
    while len(found) < count:
        message = make_message(seed + 1, index)
        index += 1
        if split_of_message(message.text) == "heldout":
            found.append(message)
    return found


@torch.no_grad()
def text_exam(
    model, tokenizer: PreTrainedTokenizerFast, messages: list[Message], split: Split, length: int
) -> dict[str, float]:
    """Ask the base about texts that it reads; return the share of right answers by family."""
    rng = random.Random(f"text exam {split}")
    families, rows = [], []
    for message in messages:
        for question in questions_about(message, rng, split):
            families.append(f"{question.family}/{question.kind}")
            rows.append(
                turn("user", [(message.text, TEXT)])
                + turn("user", [(question.text, TEXT)])
                + answer_segments(question, rng)
            )
    ids, weight = encode(tokenizer, rows, length)
    device = next(model.parameters()).device
    ids_NL = torch.from_numpy(ids.astype(np.int64)).to(device)
    answer_NL = torch.from_numpy(weight == ANSWER).to(device)
    right: list[bool] = []
    for start in range(0, len(ids_NL), _BATCH):
        ids_BL = ids_NL[start : start + _BATCH]
        logits_BLV = model(input_ids=ids_BL, use_cache=False).logits
        right += _all_right(logits_BLV, ids_BL, answer_NL[start : start + _BATCH])
    return _by_family(families, right)


def _all_right(logits_BLV: Tensor, ids_BL: Tensor, answer_BL: Tensor) -> list[bool]:
    right_BL = logits_BLV[:, :-1].argmax(-1) == ids_BL[:, 1:]
    return (right_BL | ~answer_BL[:, 1:]).all(dim=1).tolist()


def _by_family(families: list[str], right: list[bool]) -> dict[str, float]:
    table: dict[str, list[bool]] = {"all": right}
    for family, value in zip(families, right, strict=True):
        table.setdefault(family, []).append(value)
    return {family: round(sum(v) / len(v), 3) for family, v in sorted(table.items())}
