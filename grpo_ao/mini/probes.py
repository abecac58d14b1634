"""Probes of the mini world: a run's own, and the nine families as benchmarks."""

import random
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from itertools import count as counted

from grpo_ao.errors import UserError
from grpo_ao.mini.questions import questions_about
from grpo_ao.mini.world import Message, make_message, split_of_message
from grpo_ao.probe import Layers, Positions, Probe, Split, kept_for_calibration
from grpo_ao.probes.items import Item, probes_of

# Worlds: of each split's probes, of the benchmarks, and of what the mini oracle was taught.
_SEED_OF_SPLIT = {"train": 11, "validation": 12, "heldout": 1}
_WORLD, _LESSONS = 2, 13
PER_TEXT, _LESSONS_PER_TEXT = 4, 5
# They are made in memory, a million of them in a minute.
_MOST_PROBES = 1_000_000
KEPT_SHARE = 0.3
"""Of the training texts, what the mini oracle was not taught, by ``kept_for_calibration``."""


def _messages(world: int, split: Split, kept: bool = True) -> Iterator[Message]:
    """Yield a world's messages of one split, without end.

    Training messages are those that are ``kept`` for the calibration, or those that are not.
    """
    for index in counted():
        message = make_message(world, index)
        if split_of_message(message.text) != split:
            continue
        if split != "train" or kept_for_calibration(message.text, KEPT_SHARE) == kept:
            yield message


def _asked(message: Message, draw: str, split: Split, count: int) -> list[Item]:
    """Draw ``count`` questions about a message, in templates of a split."""
    rng = random.Random(f"{draw} {message.text}")
    questions = questions_about(message, rng, split)
    drawn = rng.sample(questions, min(count, len(questions)))
    return [Item(q.family, message.text, q.text, q.answer, kind=q.kind) for q in drawn]


def mini_probes(
    split: Split, count: int, layers: Sequence[Layers], positions: Positions
) -> list[Probe]:
    """Return the probes of ``mini_questions``, each read at one of ``layers``, drawn by a hash."""
    return probes_of(mini_questions(split, count), layers, [positions])


def mini_questions(split: Split, count: int) -> list[Item]:
    """Return the first ``count`` questions of a split of the mini world, always the same ones.

    Each split has its own texts, and the held-out one its own templates; the oracle was taught
    neither the texts nor the templates of any. Each text gets ``PER_TEXT`` questions of different
    families. Raises UserError for more than a million.
    """
    if count > _MOST_PROBES:
        raise UserError(
            f"the mini world makes {_MOST_PROBES:,} probes of a stage at most, and {count:,} are "
            "asked for: lower --max_steps, --questions_per_step or the number of probes."
        )
    wordings: Split = "heldout" if split == "heldout" else "validation"
    items: dict[tuple[str, str], Item] = {}
    for message in _messages(_SEED_OF_SPLIT[split], split):
        if len(items) >= count:
            break
        for item in _asked(message, "questions", wordings, PER_TEXT):
            items.setdefault((item.text, item.question), item)
    return list(islice(items.values(), count))


def mini_lessons(count: int) -> Iterator[Item]:
    """Yield ``count`` questions to teach an oracle of the mini world.

    Training texts that are not kept for the calibration, in training templates.
    """
    messages = _messages(_LESSONS, "train", kept=False)
    lessons = (_asked(message, "lessons", "train", _LESSONS_PER_TEXT) for message in messages)
    return islice(chain.from_iterable(lessons), count)


def mini_items(families: Sequence[str], num_contexts: int) -> list[Item]:
    """Return a question about each of the first contexts of each family, in order.

    Held-out messages and held-out templates, questions answered Yes or No, as many of one as of
    the other.
    """
    half = num_contexts // 2
    if not half:
        raise UserError(f"--num_contexts must be at least 2, got {num_contexts}.")
    found: dict[tuple[str, str], list[Item]] = {
        (family, target): [] for family in families for target in ("Yes", "No")
    }
    for message in _messages(_WORLD, "heldout"):
        for q in questions_about(message, random.Random(f"benchmarks {message.text}"), "heldout"):
            items = found.get((q.family, q.answer))
            if items is not None and len(items) < half:
                items.append(Item(q.family, message.text, q.text, q.answer))
        if all(len(items) == half for items in found.values()):
            break
    return [item for items in found.values() for item in items]
