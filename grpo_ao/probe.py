"""The probe: one question about one text, and where the subject is read."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from grpo_ao.errors import UserError

Choice = TypeVar("Choice")
QuestionKind = Literal["closed", "open"]
Split = Literal["train", "validation", "heldout"]
HELDOUT_SHARE = 0.2
FOLDS = 5
VALIDATION_SHARE = 0.1
# Figures of fewer texts carry no conclusion.
FEW_TEXTS = 30
Layers = tuple[int, ...]
"""Indices of the decoder layers that a question reads together, in rising order."""
_FORMS = "'last:K', 'window:K@OFFSET', 'token@OFFSET' or 'all'"


@dataclass(frozen=True)
class Positions:
    """A run of token positions, counted from the end of the subject's tokenised turn.

    ``count`` positions that end at ``end_offset`` (-1 is the last token; for Qwen3 that is the
    final newline, -2 ``<|im_end|>``, -3 the last token of the text). ``count=None`` reads every
    position. A run is cut where the user's own text begins: what the chat template writes in front
    of it, such as a system prompt, is never read. ``window`` says how the run is written.
    """

    count: int | None
    end_offset: int = -1
    window: bool = False

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise UserError(f"positions need a count of at least 1, got {self.count}.")
        if self.end_offset >= 0:
            raise UserError(
                f"a position offset counts from the end and is negative, got {self.end_offset}."
            )

    @classmethod
    def parse(cls, spec: str) -> "Positions":
        """Read ``last:20``, ``window:50@-1``, ``token@-3`` or ``all``."""
        if spec == "all":
            return cls(None)
        if match := re.fullmatch(r"last:(\d+)", spec):
            return cls(int(match[1]))
        if match := re.fullmatch(r"token@(-\d+)", spec):
            return cls(1, int(match[1]))
        if match := re.fullmatch(r"window:(\d+)@(-\d+)", spec):
            return cls(int(match[1]), int(match[2]), window=True)
        raise UserError(f"positions {spec!r} are not understood: write {_FORMS}.")

    def __str__(self) -> str:
        if self.count is None:
            return "all"
        if self.window:
            return f"window:{self.count}@{self.end_offset}"
        if self.count == 1:
            return f"token@{self.end_offset}"
        if self.end_offset != -1:
            raise UserError("a run that does not end at -1 is written with window=True.")
        return f"last:{self.count}"

    def select(self, length: int, start: int = 0) -> range:
        """Return the chosen indices of a turn of ``length`` tokens whose text begins at ``start``.

        There are fewer than ``count`` of them in a text that is too short. Raises ValueError where
        there is none.
        """
        stop = length + self.end_offset + 1
        if stop <= start:
            raise UserError(
                f"the text and the end of its turn have {length - start} tokens, and the positions "
                f"'{self}' end before them: use an offset nearer to the end, or a longer text."
            )
        return range(start if self.count is None else max(stop - self.count, start), stop)


def parse_layers(spec: str) -> Layers:
    """Read ``18``, or ``21,22,23`` for layers that a question reads together.

    Raises UserError for anything else, and for a layer that is named twice.
    """
    if not re.fullmatch(r"\d+(,\d+)*", spec):
        raise UserError(f"layers {spec!r} are not understood: write 18, or 21,22,23 for several.")
    return rising([int(layer) for layer in spec.split(",")])


def rising(layers: Sequence[int]) -> Layers:
    """Return layers in the order of an oracle's prompt; UserError for one that is there twice."""
    if len(set(layers)) < len(layers):
        raise UserError(f"the layers {format_layers(layers)} hold one twice.")
    return tuple(sorted(layers))


def format_layers(layers: Sequence[int]) -> str:
    """Write layers as ``parse_layers`` reads them."""
    return ",".join(map(str, layers))


@dataclass(frozen=True)
class Probe:
    """One question about one text.

    ``layers`` are the indices of the decoder layers whose outputs are read, ``positions`` the token
    positions of the subject's turn, the same at every layer. ``reference`` is the right answer
    where it is known; a set without references needs a judge that reads the text. ``family``
    groups questions of one sort: the measured warm start recalibrates by it, tables report by it.
    ``choices`` are the known answers to a closed question that is not one of yes or no.
    ``subject`` names the adapter with which the base model is read, "" for none.
    """

    text: str
    question: str
    kind: QuestionKind
    layers: Layers
    positions: Positions
    reference: str | None
    family: str
    choices: tuple[str, ...] = ()
    subject: str = ""

    @property
    def id(self) -> str:
        """Sixteen hex digits that depend on text, question, layers, positions and subject alone."""
        parts = (self.text, self.question, self.shown_layers, str(self.positions))
        return stable_hash(*parts, *filter(None, (self.subject,)))

    @property
    def key(self) -> tuple[str, str]:
        """Family and id, which tell a probe from all others: two benchmarks may ask the same."""
        return self.family, self.id

    @property
    def text_key(self) -> str:
        """What near-equal texts share: probes about them are split, counted and drawn together."""
        return text_key(self.text)

    @property
    def shown_layers(self) -> str:
        """The layers as ``parse_layers`` reads them."""
        return format_layers(self.layers)


def stable_hash(*parts: str) -> str:
    """Hash strings to sixteen hex digits, alike in every process and version of Python."""
    digest = hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def unit_draw(*parts: str) -> float:
    """Map strings to a number in [0, 1), uniform over strings and the same everywhere."""
    # 53 of the 64 bits: a float holds no more, and rounding up would give 1.
    return (int(stable_hash(*parts), 16) >> 11) / 2**53


def drawn_from(choices: Sequence[Choice], *parts: str) -> Choice:
    """Choose by a hash of strings: uniform over strings and the same everywhere."""
    return choices[int(unit_draw(*parts) * len(choices))]


def text_key(text: str) -> str:
    """Return what near-equal texts share: composed Unicode (NFC), white space folded."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def fold_of(text: str) -> int:
    """Assign a text, by its key, to a fold of ``FOLDS``: what is fitted on the others serves it."""
    return int(unit_draw("fold", text_key(text)) * FOLDS)


def split_of(text: str) -> Split:
    """Assign a text to its split, for the whole program.

    The hash of its key alone decides: no seed, no order and no other text enters. Validation texts
    are for choosing constants and checkpoints; numbers are reported on held-out texts.
    """
    draw = unit_draw("split", text_key(text))
    if draw < HELDOUT_SHARE:
        return "heldout"
    return "validation" if draw < HELDOUT_SHARE + VALIDATION_SHARE else "train"


def kept_for_calibration(text: str, share: float) -> bool:
    """Decide whether a training text is left out of the supervised stage, with a draw of its own.

    The warm start and GRPO then ask about texts whose answers the oracle was never taught.
    """
    return unit_draw("calibration", text_key(text)) < share
