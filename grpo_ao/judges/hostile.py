"""Adversarial answers that ship with the project: what an oracle could try on a judge.

None tells anything about any text, whatever it claims. Tests run them against prompt, parser and
cache; ``judge-check`` runs them against a judge.
"""

import json
from importlib.resources import files
from typing import NamedTuple


class HostileAnswer(NamedTuple):
    """One answer, and the name of the trick in it."""

    name: str
    answer: str


def hostile_answers() -> list[HostileAnswer]:
    """Load the set; some answers are empty, have control characters or are 5,000 long."""
    data = files("grpo_ao.judges") / "data" / "hostile_answers.jsonl"
    rows = map(json.loads, data.read_text(encoding="utf-8").splitlines())
    return [HostileAnswer(row["name"], row["answer"]) for row in rows]
