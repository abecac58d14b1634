"""The answer: what an oracle said to one probe, how sure it was, and what that was worth.

One record serves held-out probes, benchmarks and training rollouts, and one row of JSON holds it,
with the probe's own fields, so that a report can be made from the file alone:

    probe_id                 the probe's id
    text, question           what was read, and what was asked of it
    kind, family, reference  ``closed`` or ``open``; the question's sort; its right answer or null
    choices                  the known answers to a closed question that is not one of yes or no
    layer, positions         where the subject was read (``18``, ``last:20``); where several layers
                             were read together, ``layer`` is ``[21, 22, 23]``
    subject                  name of the adapter that the subject was read with; "" for none
    completion, token_ids    what the oracle wrote, and its tokens, the one that ended it included
    confidence               in [0, 1]; null where the completion has no well-formed tag
    answer                   the text behind the tag, or all of the completion where it has none
    informativeness          the judge's grade in [0, 1]; null where there is none
    reason                   why there is no grade, in the judge's words; else null
    calibration, reward      the reward's calibration term, and the reward; null outside training
    answer_probability       of the answer's tokens, given the tag; null where not measured
    yes_probability          P(Yes) / (P(Yes) + P(No)) where the answer begins, of closed questions
    agreement                {"same": of so many "samples" that say the same, "tokens": in all}
    judge_reply              what the judge wrote, whole; null where it wrote nothing
    characters_read          [start, end] of the text that ``positions`` stand for, or null

Whatever is measured is graded: an answer without a tag by its whole text. Of training rollouts the
judge grades those that have a tag: the others get the least reward, and count as not informative.
A rollout's row has its ``step`` beside these, an evaluation's the name of its ``oracle``.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from grpo_ao.epistemic import parse_oracle_output
from grpo_ao.errors import UserError
from grpo_ao.files import read_jsonl
from grpo_ao.probe import Layers, Positions, Probe

_OF_PROBE = ("text", "question", "kind", "family", "reference", "choices", "subject")


class Agreement(NamedTuple):
    """How many of an oracle's sampled answers say the same, of how many, in how many tokens."""

    same: int
    samples: int
    tokens: int

    @property
    def share(self) -> float:
        """The share of samples that say the same."""
        return self.same / self.samples


@dataclass(frozen=True)
class Answer:
    """One answer to one probe; the module's docstring says what each field holds."""

    probe: Probe
    completion: str
    token_ids: tuple[int, ...]
    confidence: float | None
    answer: str
    informativeness: float | None = None
    reason: str | None = None
    calibration: float | None = None
    reward: float | None = None
    answer_probability: float | None = None
    yes_probability: float | None = None
    agreement: Agreement | None = None
    judge_reply: str | None = None
    characters_read: tuple[int, int] | None = None

    @classmethod
    def read(cls, probe: Probe, completion: str, token_ids: Iterable[int] = ()) -> "Answer":
        """Parse a completion: an answer that is neither graded nor rewarded yet."""
        return cls(probe, completion, tuple(token_ids), *parse_oracle_output(completion))

    @property
    def parsed(self) -> bool:
        """Whether the completion opens with a well-formed tag."""
        return self.confidence is not None

    def to_row(self) -> dict[str, Any]:
        """Return the row of JSON that holds this answer."""
        probe = self.probe
        row: dict[str, Any] = {"probe_id": probe.id}
        row |= {name: getattr(probe, name) for name in _OF_PROBE}
        layer, *others = probe.layers
        row |= {"layer": [layer, *others] if others else layer, "positions": str(probe.positions)}
        row |= {name: getattr(self, name) for name in _OWN}
        agreement = self.agreement
        return row | {
            "choices": list(probe.choices),
            "token_ids": list(self.token_ids),
            "characters_read": self.characters_read and list(self.characters_read),
            "agreement": None if agreement is None else agreement._asdict(),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Answer":
        """Read what ``to_row`` wrote; further keys are left alone.

        Raises UserError for a row that lacks a key, holds a value of another type, or whose id is
        not its probe's.
        """
        try:
            found = _ROW.model_validate_json(json.dumps(row))  # in JSON, a list may be a tuple
        except ValidationError as error:
            raise _refused(row, error) from error
        layer = found.layer
        probe = Probe(
            layers=(layer,) if isinstance(layer, int) else layer,
            positions=Positions.parse(found.positions),
            **{name: getattr(found, name) for name in _OF_PROBE},
        )
        if found.probe_id != probe.id:
            raise UserError(
                f"the row of probe {found.probe_id} holds that of {probe.id}: make the file anew."
            )
        return cls(probe, **{name: getattr(found, name) for name in _OWN})


_OWN = tuple(field.name for field in fields(Answer) if field.name != "probe")
# What the rows of earlier versions lack.
_KEPT_LATER: dict[str, Any] = {
    **{"judge_reply": None, "characters_read": None},
    **{"subject": "", "choices": ()},
}
_TYPES: dict[str, Any] = get_type_hints(Probe) | get_type_hints(Answer)
_TYPES |= {"probe_id": str, "layer": int | Layers, "positions": str}
_COLUMNS: dict[str, Any] = {
    name: (_TYPES[name], _KEPT_LATER.get(name, ...))
    for name in ("probe_id", "layer", "positions", *_OF_PROBE, *_OWN)
}
_ROW: Any = create_model("_ROW", __config__=ConfigDict(strict=True), **_COLUMNS)


def _refused(row: Mapping[str, Any], error: ValidationError) -> UserError:
    fault = error.errors()[0]
    name = str(fault["loc"][0])
    if name not in row:
        return UserError(
            f"a row of answers lacks '{name}': another version of this program wrote it, so make "
            "the file anew."
        )
    return UserError(
        f"a row of answers cannot have {row[name]!r:.60} as its {name}: make the file anew."
    )


def read_answer_rows(path: Path) -> list[tuple[dict[str, Any], Answer]]:
    """Read a file of answers: each row and its answer; none where there is no file.

    Raises UserError, with the file's name, for a row that is none of an answer.
    """
    rows = read_jsonl(path)
    try:
        return [(row, Answer.from_row(row)) for row in rows]
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error
