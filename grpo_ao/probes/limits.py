"""What a probe must fit into, and what becomes of the probes that do not fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from grpo_ao.errors import UserError
from grpo_ao.oracle.activations import SubjectTexts
from grpo_ao.oracle.context import check_prompt, check_text, context_length
from grpo_ao.oracle.loading import load_config
from grpo_ao.oracle.prompt import build_oracle_prompt
from grpo_ao.oracle.spec import OracleSpec, load_spec
from grpo_ao.probe import Probe


@dataclass(frozen=True)
class ProbeLimits:
    """What a probe must fit into: a model's positions, with this oracle's prompt and answer."""

    texts: SubjectTexts
    spec: OracleSpec
    positions: int
    max_new_tokens: int

    @classmethod
    def of(
        cls, texts: SubjectTexts, model: str, adapter: str | Path, max_new_tokens: int
    ) -> "ProbeLimits":
        """Read the positions from the model's configuration, the prompt from the adapter's."""
        return cls(texts, load_spec(adapter), context_length(load_config(model)), max_new_tokens)

    def check(self, probe: Probe) -> None:
        """Raise UserError where the probe's text, or its prompt and the answer, do not fit."""
        check_text(self.positions, len(self.texts[probe.text]), probe.text)
        count = len(self.texts.positions_read(probe)) * len(probe.layers)
        # No token stands for less than a byte, so that few prompts have to be tokenised.
        placeholders = count * len(self.spec.special_token.encode())
        question = len(probe.question.encode("utf-8", "surrogatepass"))
        if (
            self._around * len(probe.layers) + placeholders + question + self.max_new_tokens
            > self.positions
        ):
            ids = build_oracle_prompt(
                self.texts.tokenizer, probe.layers, count, probe.question, self.spec
            ).input_ids
            check_prompt(self.positions, len(ids), self.max_new_tokens, probe.question)

    @cached_property
    def _around(self) -> int:
        return len(
            build_oracle_prompt(self.texts.tokenizer, (100,), 1, "?", self.spec).text.encode()
        )


def readable(
    all_limits: Sequence[ProbeLimits],
    probes: Sequence[Probe],
    strict: bool = False,
    strict_positions: bool = False,
    report: Callable[[str], None] = print,
) -> list[Probe]:
    """Return the probes that can be read and fit within all of ``all_limits``, of one model.

    The others are left out, and ``report`` is told how many and why. ``strict`` makes a text or
    question that is too long an error, ``strict_positions`` a text that has fewer tokens than are
    read. Raises UserError where no probe is left.
    """
    check = partial(all_limits[0].texts.positions_read, strict=strict_positions)
    kept = _kept(probes, check, strict_positions, report, "no probe can be read")
    for limits in all_limits:
        kept = _kept(kept, limits.check, strict, report, "no probe fits into the model")
    return kept


def _kept(
    probes: Sequence[Probe],
    check: Callable[[Probe], object],
    strict: bool,
    report: Callable[[str], None],
    none_left: str,
) -> list[Probe]:
    """Leave out, and say, the probes that ``check`` refuses; UserError where that is all."""
    kept, first_problem = [], ""
    for probe in probes:
        try:
            check(probe)
        except UserError as error:
            if strict:
                raise
            first_problem = first_problem or str(error)
            continue
        kept.append(probe)
    if first_problem and not kept:
        raise UserError(f"{none_left}. The first: {first_problem}")
    if first_problem:
        left_out = len(probes) - len(kept)
        report(f"{left_out} probes are left out. The first: {first_problem}")
    return kept
