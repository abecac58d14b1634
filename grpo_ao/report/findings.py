"""The sentences that a reader needs first: what the number means, and what training did to it.

A confidence can be calibrated, and tell right answers from wrong ones over all questions, without
any look at the activations: it is enough to know which questions are easy. So closed and open
questions are kept apart here, and right answers are told from wrong ones of the same family. No
sentence claims what its interval does not show.
"""

import math
from collections.abc import Collection, Mapping, Sequence

from grpo_ao.answer import Answer
from grpo_ao.measuring.metrics import Measurement, auroc_by_family, by_kind
from grpo_ao.measuring.reading import reading_alerts
from grpo_ao.probe import FEW_TEXTS
from grpo_ao.report.formats import number, signed

# What a report opens with, and how it speaks of that.
MEASURED = {
    "auroc_within": "AUROC within families",
    "calibration_error": "calibration error",
    "brier_all": "Brier score of all outputs",
    "informativeness": "informativeness",
}
Entry = Mapping[str, float]


def findings(
    kinds: Mapping[str, Measurement],
    answers: Sequence[Answer],
    controls: Mapping[str, Sequence[Answer]],
) -> list[str]:
    """Say what the stated confidence means, for each kind of question, and what it follows.

    ``kinds`` has what was measured of the ``answers`` of each kind, ``controls`` the answers from
    other activations, by their title.
    """
    stating = {kind: found for kind, found in kinds.items() if found["parse_rate"]["value"] > 0}
    if not stating:
        return [
            "No output states a confidence, so that only accuracy and other sources of confidence "
            "are known: train the oracle, or warm-start it, first."
        ]
    of_kind = by_kind(answers)
    return [
        *(verdict(kind, found) + by_family(of_kind[kind]) for kind, found in stating.items()),
        *reading_alerts(controls),
    ]


def verdict(kind: str, found: Measurement) -> str:
    """Say whether the number tells right answers from wrong ones; no interval, no claim."""
    within, pooled = found["auroc_within"], found["auroc"]
    if within["low"] > 0.5:
        claim = "is higher on right answers than on wrong ones of the same family"
    elif within["high"] < 0.5:
        claim = "is lower on right answers than on wrong ones of the same family"
    else:
        claim = "was not seen to tell right answers from wrong ones of the same family"
    left_out = found["families_left_out"]
    one_sided = f" ({left_out} with one outcome left out)" if left_out else ""
    sentences = [
        f"On {kind} questions the stated confidence {claim}: AUROC within families{one_sided} "
        f"{_written(within)}, where a number read from the question alone has 0.5."
    ]
    if pooled["low"] > 0.5 and not within["low"] > 0.5:
        sentences.append(
            f"The pooled AUROC, {_written(pooled)}, needs no more than knowing which families are "
            "easy."
        )
    sentences.append(f"Its calibration error is {_written(found['calibration_error'])}.")
    if found["contexts"] < FEW_TEXTS:
        sentences.append(
            f"Only {found['contexts']} texts stand behind this, fewer than {FEW_TEXTS}: no "
            "conclusion can be drawn."
        )
    return " ".join(sentences)


def by_family(answers: Sequence[Answer]) -> str:
    """Say in how many families of one kind the number tells right from wrong; nothing of one."""
    found = auroc_by_family(answers)
    if len(found) < 2:
        return ""
    sure = {family: told.value for family, told in found.items() if told.p < 0.05}
    above = [family for family, value in sure.items() if value > 0]
    below = [family for family, value in sure.items() if value < 0]
    sentence = f" Taken one by one, it is higher on right answers in {_counted(above, found)}"
    if below:
        sentence += f", and lower in {_counted(below, found)}"
    return f"{sentence} (p < 0.05, Holm)."


def _counted(families: Sequence[str], found: Collection[str]) -> str:
    named = f": {', '.join(families)}" if families else ""
    return f"{len(families)} of {len(found)} families{named}"


def changed(kind: str, last: str, first: str, change: Measurement) -> str:
    """Say what changed from one measurement to another, ``change`` being their difference."""
    entries = {title: change[name] for name, title in MEASURED.items()}
    return f"On {kind} questions, {last} less {first}, paired: {_told(entries)}."


def rivals(kind: str, against_stated: Mapping[str, Measurement]) -> list[str]:
    """Say which other sources of confidence are better or worse than the stated one."""
    return [
        f"On {kind} questions, {title} of other sources of confidence less that of the stated "
        f"one, paired: {_told({name: of[metric] for name, of in against_stated.items()})}."
        for metric, title in (("auroc_within", "AUROC within families"), ("brier", "Brier score"))
        if against_stated
    ]


def _told(differences: Mapping[str, Entry]) -> str:
    """Tell differences by name; one whose interval holds 0 is none that was shown."""
    known = {name: entry for name, entry in differences.items() if not math.isnan(entry["value"])}
    shown = {name: e for name, e in known.items() if not e["low"] <= 0 <= e["high"]}
    told = [f"{name} {_difference(entry)}" for name, entry in shown.items()]
    same = [f"{name} {_difference(e)}" for name, e in known.items() if name not in shown]
    unknown = [name for name in differences if name not in known]
    for words, names in (("no difference shown in", same), ("nothing to compare in", unknown)):
        told += [f"{words} {', '.join(names)}"] if names else []
    return "; ".join(told)


def _difference(entry: Entry) -> str:
    value, low, high = (signed(entry[of]) for of in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _written(entry: Entry) -> str:
    value, low, high = (number(entry[of], 2) for of in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
