"""The probe: one question about one text, and where the subject is read."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from grpo_ao.oracle.positions import Positions

QuestionKind = Literal["closed", "open"]
Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Probe:
    """One question about one text.

    ``layer`` is the index of the decoder layer whose output is read, ``positions`` the token
    positions of the subject's turn. ``reference`` is the right answer where it is known; a set
    without references needs a judge that reads the text. ``family`` groups questions of one sort:
    the measured warm start shrinks accuracies to their family's mean, tables report by it.
    """

    text: str
    question: str
    kind: QuestionKind
    layer: int
    positions: Positions
    reference: str | None
    family: str

    @property
    def id(self) -> str:
        """Sixteen hex digits that depend on text, question, layer and positions alone."""
        parts = (self.text, self.question, str(self.layer), str(self.positions))
        return stable_hash(*parts)


def stable_hash(*parts: str) -> str:
    """Hash strings to sixteen hex digits, alike in every process and version of Python."""
    digest = hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def unit_draw(*parts: str) -> float:
    """Map strings to a number in [0, 1), uniform over strings and the same everywhere."""
    # 53 of the 64 bits: a float holds no more, and rounding up would give 1.
    return (int(stable_hash(*parts), 16) >> 11) / 2**53


def split_of(text: str, heldout_share: float) -> Split:
    """Assign a text to train or held-out by its hash alone: no seed and no order enters."""
    return "heldout" if unit_draw("split", text) < heldout_share else "train"
