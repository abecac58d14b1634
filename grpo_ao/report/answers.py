"""The answers that a run report lets its reader browse: held-out probes and training rollouts."""

import json
from collections.abc import Iterable, Sequence
from itertools import groupby, zip_longest
from typing import Any

from grpo_ao.epistemic import ParsedOutput
from grpo_ao.probe import unit_draw
from grpo_ao.reward import reward_terms

ROLLOUTS = "rollouts"
# Characters of a text and of an answer that are shown, and bytes of all items together.
_LONGEST_TEXT, _LONGEST_ANSWER = 2000, 600
_BUDGET = 1_800_000

Row = dict[str, Any]


def heldout_items(heldout: dict[str, list[Row]], calibration_lambda: float) -> list[Row]:
    """Return one item a held-out probe, with the answer of each measurement."""
    names = list(heldout)
    by_probe: dict[str, dict[str, Row]] = {}
    for name in names:
        for row in heldout[name]:
            by_probe.setdefault(row["probe_id"], {})[name] = row
    items = []
    for rows in by_probe.values():
        answers = [
            _answer(name, row, _reward(row, calibration_lambda)) for name, row in rows.items()
        ]
        items.append(_item(next(iter(rows.values())), answers))
    return items


def rollout_items(rollouts: Sequence[Row]) -> list[Row]:
    """Return one item a step's question, with the completions that were kept of its group."""
    items = []
    for (step, _), group in groupby(rollouts, key=lambda row: (row["step"], row["probe_id"])):
        rows = list(group)
        answers = [_answer(ROLLOUTS, row, row["reward"]) for row in rows]
        items.append(_item(rows[0], answers) | {"step": step})
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
    """Return the largest signed gap of confidence and score among an item's answers."""
    gaps = [
        sign * (answer["confidence"] / 100 - answer["score"])
        for answer in item["answers"]
        if answer["score"] is not None
    ]
    return max(gaps, default=-2.0)


def _item(row: Row, answers: list[Row]) -> Row:
    return {
        "text": _cut(row["text"], _LONGEST_TEXT),
        "question": row["question"],
        "reference": row["reference"],
        "kind": row["kind"],
        "family": row["family"],
        "layer": row.get("layer"),
        "step": None,
        "answers": answers,
    }


def _answer(view: str, row: Row, reward: float | None) -> Row:
    return {
        "view": view,
        "confidence": row["confidence"] if row["parsed"] else None,
        "answer": _cut(row["answer"], _LONGEST_ANSWER),
        "score": row["score"] if row["parsed"] else None,
        "reward": None if reward is None else round(reward, 3),
    }


def _reward(row: Row, calibration_lambda: float) -> float | None:
    output = ParsedOutput(row["confidence"], row["answer"], row["parsed"])
    return reward_terms(output, row["score"], calibration_lambda).total


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest].rstrip() + " …"
