"""Which texts of a source are worth asking about: language, length, toxicity, duplicates."""

import zlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt64

from grpo_ao.probes.sources import SourceText

_SHINGLE = 5  # characters
_BANDS, _BAND_ROWS = 32, 4
_SIMILAR = 0.8


@dataclass(frozen=True)
class TextRules:
    """What a text must be; lengths in characters, ``language`` None for any."""

    language: str | None
    min_characters: int
    max_characters: int
    allow_toxic: bool


class TextFilter:
    """Decides on texts in their order; those that pass are what later ones are compared with."""

    def __init__(self, rules: TextRules) -> None:
        self._rules = rules
        self._near = NearDuplicates()
        self._exact: dict[str, int] = {}

    def reason(self, text: SourceText) -> str | None:
        """Return why the text is left out, or None and remember it."""
        return self._unfit(text) or self._duplicate(text)

    def _unfit(self, text: SourceText) -> str | None:
        rules, length = self._rules, len(text.text)
        if not rules.min_characters <= length <= rules.max_characters:
            return f"it has {length} characters"
        if text.toxic and not rules.allow_toxic:
            return "its source flags it as toxic"
        if text.language is not None:
            return wrong_language(text.language, rules.language)
        return None

    def _duplicate(self, text: SourceText) -> str | None:
        words = normalised(text.text)
        if words in self._exact:
            return f"it is the text of row {self._exact[words]} again"
        similar = self._near.add(text.number, words)
        if similar is not None:
            return f"it is nearly the text of row {similar}"
        self._exact[words] = text.number
        return None


def wrong_language(language: str, wanted: str | None) -> str | None:
    """Return why a text of this language is left out, or None; case does not count."""
    if wanted is None or language.casefold() == wanted.casefold():
        return None
    return f"its language is {language}, not {wanted}"


def normalised(text: str) -> str:
    """Return a text's words with single spaces, without their case."""
    return " ".join(text.casefold().split())


class NearDuplicates:
    """Finds texts most of whose runs of 5 characters are those of an earlier text.

    MinHash with locality-sensitive hashing (Broder 1997; Leskovec et al., Mining of Massive
    Datasets, ch. 3): 128 minima in 32 bands of 4. Two texts whose runs have Jaccard similarity s
    meet in a band with probability 1 - (1 - s^4)^32, above .9999 at .8, and count as near if at
    least .8 of their minima agree (standard error .035).
    """

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        size = (2, _BANDS * _BAND_ROWS)
        multipliers, self._shift_P = draw.integers(2**63, size=size, dtype=np.uint64)
        self._odd_P = multipliers * np.uint64(2) + np.uint64(1)
        self._minima: dict[int, np.ndarray] = {}
        self._buckets: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)

    def add(self, number: int, text: str) -> int | None:
        """Return the number of an earlier text that this one nearly is, or None and remember it."""
        minima_P = self._signature(text)
        keys = [(i, band.tobytes()) for i, band in enumerate(np.split(minima_P, _BANDS))]
        for candidate in sorted({n for key in keys for n in self._buckets.get(key, [])}):
            if (self._minima[candidate] == minima_P).mean() >= _SIMILAR:
                return candidate
        self._minima[number] = minima_P
        for key in keys:
            self._buckets[key].append(number)
        return None

    def _signature(self, text: str) -> UInt64[np.ndarray, " P"]:
        starts = range(max(1, len(text) - _SHINGLE + 1))
        runs = {zlib.crc32(text[i : i + _SHINGLE].encode()) for i in starts}
        runs_R = np.fromiter(runs, dtype=np.uint64)
        # Multiply-shift hashing: the products are meant to overflow.
        hashed_PR = self._odd_P[:, None] * runs_R[None] + self._shift_P[:, None]
        return (hashed_PR >> np.uint64(32)).min(axis=1)
