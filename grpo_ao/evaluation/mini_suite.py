"""The mini world's own benchmarks: the same nine families, asked about its held-out messages."""

import random
from collections.abc import Sequence

from grpo_ao.mini.corpus import HELDOUT_SHARE
from grpo_ao.mini.questions import ask
from grpo_ao.mini.world import make_message
from grpo_ao.probes.probe import split_of

# Neither the training world nor that of a run's own held-out probes.
_WORLD = 2


def mini_items(benchmarks: Sequence[str], num_contexts: int) -> list[tuple[str, str, str, str]]:
    """Return (family, text, question, target) for the first contexts of each family, in order.

    Held-out messages and held-out templates, questions answered Yes or No, as many of one as of
    the other.
    """
    half = num_contexts // 2
    if not half:
        raise ValueError(f"--num_contexts must be at least 2, got {num_contexts}.")
    found: dict[tuple[str, str], list[tuple[str, str, str, str]]] = {
        (family, target): [] for family in benchmarks for target in ("Yes", "No")
    }
    index = 0
    while any(len(items) < half for items in found.values()):
        message = make_message(_WORLD, index)
        index += 1
        if split_of(message.text, HELDOUT_SHARE) != "heldout":
            continue
        for question in ask(message, random.Random(f"benchmarks {message.text}"), "heldout"):
            items = found.get((question.family, question.answer))
            if items is not None and len(items) < half:
                items.append((question.family, message.text, question.text, question.answer))
    return [item for family in benchmarks for t in ("Yes", "No") for item in found[family, t]]
