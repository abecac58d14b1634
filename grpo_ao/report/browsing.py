"""The answers that a run report lets its reader browse: held-out probes and training rollouts."""

import json
from collections.abc import Iterable, Sequence
from itertools import groupby, zip_longest
from typing import Any

from grpo_ao.answer import Answer
from grpo_ao.probe import unit_draw
from grpo_ao.reward import RewardRule, rewarded

ROLLOUTS = "rollouts"
# Characters of a text and of an answer that are shown, and bytes of all items together.
_LONGEST_TEXT, _LONGEST_ANSWER = 2000, 600
_BUDGET = 1_800_000

Row = dict[str, Any]


def heldout_items(heldout: dict[str, list[Answer]], rule: RewardRule) -> list[Row]:
    """Return an item for each held-out probe, with its answer in each measurement."""
    by_probe: dict[str, dict[str, Answer]] = {}
    for name, answers in heldout.items():
        for answer in answers:
            by_probe.setdefault(answer.probe.id, {})[name] = rewarded(answer, rule)
    return [
        _item(next(iter(own.values())), [_answer(name, own[name]) for name in own])
        for own in by_probe.values()
    ]


def rollout_items(rollouts: Sequence[tuple[int, Answer]]) -> list[Row]:
    """Return an item for each question of a step, with the completions kept of its group."""
    items = []
    for (step, _), group in groupby(rollouts, key=lambda kept: (kept[0], kept[1].probe.id)):
        answers = [answer for _, answer in group]
        item = _item(answers[0], [_answer(ROLLOUTS, answer) for answer in answers])
        items.append(item | {"step": step})
    return items


def within_budget(items: Sequence[Row], budget: int = _BUDGET) -> list[Row]:
    """Return as many items as fit into ``budget`` bytes, in their order.

    The most overconfident, the most underconfident and items drawn by a hash take turns, so that
    a part holds the worst of both sorts and a fair sample.
    """
    places = range(len(items))
    over = sorted(places, key=lambda i: -_gap(items[i], 1))
    under = sorted(places, key=lambda i: -_gap(items[i], -1))
    drawn = sorted(places, key=lambda i: unit_draw("report", str(i)))
    chosen: set[int] = set()
    for place in _in_turns(over, under, drawn):
        if place in chosen:
            continue
        budget -= len(json.dumps(items[place]))
        if budget < 0:
            break
        chosen.add(place)
    return [items[place] for place in sorted(chosen)]


def _in_turns(*orders: Sequence[int]) -> Iterable[int]:
    return (place for places in zip_longest(*orders) for place in places)


def _gap(item: Row, sign: int) -> float:
    """Return the largest signed gap of confidence and informativeness among an item's answers."""
    gaps = [
        sign * (answer["confidence"] - answer["informativeness"])
        for answer in item["answers"]
        if answer["confidence"] is not None and answer["informativeness"] is not None
    ]
    return max(gaps, default=-2.0)


def _item(first: Answer, answers: list[Row]) -> Row:
    probe = first.probe
    return {
        "text": _text(probe.text, first.characters_read),
        "question": probe.question,
        "reference": probe.reference,
        "kind": probe.kind,
        "family": probe.family,
        "layer": probe.shown_layers,
        "positions": str(probe.positions),
        "step": None,
        "answers": answers,
    }


def _text(text: str, read: tuple[int, int] | None) -> list[str]:
    """Divide a text into what stands before the part that is read, that part, and what follows."""
    start, stop = read or (0, 0)
    before, after = text[:start], text[stop:]
    if len(before) > _LONGEST_TEXT // 2:
        before = "… " + before[-_LONGEST_TEXT // 2 :].lstrip()
    return [before, _cut(text[start:stop], _LONGEST_TEXT), _cut(after, _LONGEST_TEXT)]


def _answer(view: str, answer: Answer) -> Row:
    return {
        "view": view,
        "confidence": answer.confidence,
        "answer": _cut(answer.answer, _LONGEST_ANSWER),
        "informativeness": answer.informativeness,
        "reward": None if answer.reward is None else round(answer.reward, 3),
        "reason": answer.reason,
        "judge_reply": answer.judge_reply and _cut(answer.judge_reply, _LONGEST_ANSWER),
    }


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest].rstrip() + " …"
