"""Every metric of a set of answers, with intervals: held-out probes and benchmarks alike."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from grpo_ao.answer import Answer
from grpo_ao.calibration import (
    Estimate,
    adaptive_ece,
    aurc,
    auroc,
    bootstrap_interval,
    brier,
    brier_of_all,
    brier_parts,
    calibration_error,
    ece,
    mce,
    nll,
    percentile_interval,
    perfect_ece_interval,
    smooth_ece,
)
from grpo_ao.discrimination import risk_at_coverage, somers_d, within_family_auroc
from grpo_ao.intervals import Difference, Resampled, holm, paired_differences, resampled
from grpo_ao.judges.reference import says_neither
from grpo_ao.probe import FEW_TEXTS, stable_hash

Measurement = dict[str, Any]
"""``{"n": graded answers, "contexts": their texts, METRIC: {"value": v, "low": l, "high": h}}``."""
Confidence = Callable[[Answer], float | None]
Values = Callable[["Columns"], dict[str, float]]

# Kernel regression costs a hundred times what the other metrics cost.
_SMOOTH_DRAWS = 200
SUMMARY = (
    *("informativeness", "auroc_within", "calibration_error", "brier_all"),
    *("ece10", "auroc", "brier", "brier_isotonic"),
    *("confidence_mean", "confidence_std", "parse_rate"),
)


STATED: Confidence = attrgetter("confidence")
"""The confidence that the oracle wrote."""


@dataclass(frozen=True)
class Columns:
    """N answers as columns, and how sure of each a method is.

    ``confidence_N`` lies in [0, 1], NaN where the method has none; ``informativeness_N`` too, NaN
    where the judge gave no grade. ``neither_N`` marks answers to a question of yes or no that are
    neither. ``family_N`` names each answer's family and kind of question, ``context_N`` its text
    (``Probe.text_key``), the unit of the bootstrap.
    """

    confidence_N: Float[np.ndarray, "answers"]
    informativeness_N: Float[np.ndarray, "answers"]
    neither_N: Bool[np.ndarray, "answers"]
    family_N: np.ndarray
    context_N: np.ndarray

    @classmethod
    def of(cls, answers: Sequence[Answer], confidence: Confidence = STATED) -> "Columns":
        """Return the answers' columns with one method's confidences in them."""
        return cls(
            np.array([_number(confidence(answer)) for answer in answers], dtype=float),
            np.array([_number(answer.informativeness) for answer in answers], dtype=float),
            np.array([says_neither(a.answer, a.probe.reference) for a in answers], dtype=bool),
            np.array([family_of(answer) for answer in answers]),
            np.array([stable_hash(answer.probe.text_key) for answer in answers]),
        )

    def take(self, index_N: np.ndarray) -> "Columns":
        """Return some of the answers, or all of them several times."""
        return Columns(
            self.confidence_N[index_N],
            self.informativeness_N[index_N],
            self.neither_N[index_N],
            self.family_N[index_N],
            self.context_N[index_N],
        )

    def only_known(self) -> "Columns":
        """Return the answers of which both confidence and informativeness are known."""
        return self.take(np.flatnonzero(self.is_known))

    @property
    def known(self) -> tuple[Float[np.ndarray, "known"], Float[np.ndarray, "known"]]:
        """Confidence and informativeness of the answers of which both are known."""
        return self.confidence_N[self.is_known], self.informativeness_N[self.is_known]

    @property
    def is_graded(self) -> Bool[np.ndarray, "answers"]:
        """Whether the judge graded each answer."""
        return ~np.isnan(self.informativeness_N)

    @property
    def is_known(self) -> Bool[np.ndarray, "answers"]:
        """Whether both confidence and informativeness of each answer are known."""
        return ~np.isnan(self.confidence_N) & self.is_graded

    def __len__(self) -> int:
        return len(self.informativeness_N)


def metric_values(columns: Columns) -> dict[str, float]:
    """Return every metric that is cheap enough to bootstrap, by name.

    An answer without a grade counts in none. One without a confidence counts in informativeness,
    in ``parse_rate``, and in ``brier_all`` as 50 % on a wrong answer, and in no other metric of
    confidence. For AUROC an answer is right if its informativeness is at least one half;
    ``auroc_within`` compares answers of one family alone.
    """
    return _drawn_values(columns) | {"calibration_error": _calibration_error(columns).value}


def headline_values(columns: Columns) -> dict[str, float]:
    """Return the metrics that oracles and sources of confidence are compared in."""
    confidence, outcome = columns.known
    right, families = outcome >= 0.5, columns.family_N[columns.is_known]
    return {
        "informativeness": _mean(columns.informativeness_N[columns.is_graded]),
        "confidence_mean": _mean(confidence),
        "auroc_within": within_family_auroc(confidence, right, families).auroc,
        "calibration_error": _calibration_error(columns).value,
        "auroc": auroc(confidence, right),
        "brier": brier(confidence, outcome),
    }


def _drawn_values(columns: Columns) -> dict[str, float]:
    graded = columns.is_graded
    confidence, outcome = columns.known
    families = columns.family_N[columns.is_known]
    parts, squared = brier_parts(confidence, outcome), brier(confidence, outcome)
    return {
        "informativeness": _mean(columns.informativeness_N[graded]),
        "parse_rate": _mean(~np.isnan(columns.confidence_N[graded])),
        "neither_rate": _mean(columns.neither_N[graded]),
        "confidence_mean": _mean(confidence),
        "confidence_std": float(confidence.std()) if len(confidence) else float("nan"),
        "ece10": ece(confidence, outcome),
        "ece_mass": adaptive_ece(confidence, outcome),
        "mce": mce(confidence, outcome),
        "brier": squared,
        "brier_all": _brier_of_all(columns),
        "brier_isotonic": squared - parts.reliability,
        "brier_reliability": parts.reliability,
        "brier_resolution": parts.resolution,
        "brier_uncertainty": parts.uncertainty,
        "nll": nll(confidence, outcome),
        "auroc_within": within_family_auroc(confidence, outcome >= 0.5, families).auroc,
        "auroc": auroc(confidence, outcome >= 0.5),
        "somers_d": somers_d(confidence, outcome),
        "risk_at_80": risk_at_coverage(confidence, outcome, 0.8),
        "aurc": aurc(confidence, outcome),
    }


def _calibration_error(columns: Columns) -> Estimate:
    return calibration_error(*columns.known, columns.context_N[columns.is_known])


def _brier_of_all(columns: Columns) -> float:
    stated_N = ~np.isnan(columns.confidence_N)
    counted_N = columns.is_known | ~stated_N
    return brier_of_all(
        columns.confidence_N[counted_N], columns.informativeness_N[counted_N], stated_N[counted_N]
    )


def summary(columns: Columns) -> dict[str, float]:
    """Return the numbers of graded answers and of their texts, and what a run is judged by."""
    values = metric_values(columns)
    sizes = {"n": int(columns.is_graded.sum()), "contexts": count_texts(columns)}
    return sizes | {name: values[name] for name in SUMMARY}


def measure(columns: Columns, draws: int = 1000, smooth_interval: bool = False) -> Measurement:
    """Return every metric with its 95 % interval by bootstrap over texts: see ``measurement``."""
    found = resample(columns, draws, _drawn_values)
    return measurement(columns, found, min(draws, _SMOOTH_DRAWS) if smooth_interval else 0)


def measure_difference(
    first: Columns, second: Columns, draws: int = 1000, values: Values = metric_values
) -> Measurement:
    """Return first less second for each of ``values``, on the same probes in the same order.

    Intervals and p-values are paired: each draw takes the same texts for both.
    """
    if first.context_N.tolist() != second.context_N.tolist():
        raise ValueError("a paired difference needs two measurements of the same items.")
    return difference(first, *(resample(columns, draws, values) for columns in (first, second)))


def resample(columns: Columns, draws: int = 1000, values: Values = metric_values) -> Resampled:
    """Compute ``values`` of the answers, and of those of resampled texts.

    What costs time in ``measure`` and ``measure_difference``, which many comparisons share.
    """
    coded = _coded(columns)
    return resampled(lambda index: values(coded.take(index)), coded.context_N, draws)


def measurement(columns: Columns, found: Resampled, smooth_draws: int = 0) -> Measurement:
    """Return every metric with its 95 % interval, of answers that were resampled as ``found``.

    ``calibration_error``, the primary one, has an interval of its own, since calibration errors are
    larger in a resample than in its sample. ``families`` counts the families with right and with
    wrong answers, which alone enter ``auroc_within``, ``families_left_out`` the others.
    ``ece_smooth`` has an interval only where it gets draws, since it is slow. ``ece10_perfect`` is
    the ECE of a perfect forecaster at these confidences, its mean and its 95 % interval.
    """
    estimates = {
        name: Estimate(value, *percentile_interval(found.drawn[name]))
        for name, value in found.values.items()
    }
    known = columns.only_known()
    estimates["calibration_error"] = _calibration_error(columns)
    estimates["ece10_perfect"] = perfect_ece_interval(*known.known, known.context_N)
    result = _sizes(columns) | {name: found._asdict() for name, found in estimates.items()}
    result["ece_smooth"] = _smooth(columns, smooth_draws)
    return result


def difference(columns: Columns, first: Resampled, second: Resampled) -> Measurement:
    """Return first less second, paired, where both were resampled from answers to the same probes.

    ``columns`` are the first's.
    """
    found = paired_differences(first, second)
    return _sizes(columns) | {name: told._asdict() for name, told in found.items()}


def auroc_by_family(
    answers: Sequence[Answer], least: int = FEW_TEXTS, draws: int = 1000
) -> dict[str, Difference]:
    """Return AUROC less one half in each family of at least ``least`` texts, right and wrong.

    p-values are adjusted for the number of families (Holm), intervals are not.
    """
    found = {}
    for family, members in parted(answers, lambda answer: answer.probe.family).items():
        known = _coded(Columns.of(members).only_known())
        if count_texts(known) >= least:
            found[family] = _less_one_half(known, draws)
    found = {family: told for family, told in found.items() if not np.isnan(told.value)}
    adjusted = holm({family: told.p for family, told in found.items()})
    return {family: told._replace(p=adjusted[family]) for family, told in found.items()}


def _less_one_half(columns: Columns, draws: int) -> Difference:
    confidence_N, outcome_N = columns.known

    def area(index_N: np.ndarray) -> dict[str, float]:
        return {"auroc": auroc(confidence_N[index_N], outcome_N[index_N] >= 0.5)}

    found = resampled(area, columns.context_N, draws)
    chance = Resampled({"auroc": 0.5}, {"auroc": np.full(draws, 0.5)})
    return paired_differences(found, chance)["auroc"]


def _coded(columns: Columns) -> Columns:
    """Number texts and families: a bootstrap compares them thousands of times."""
    families, contexts = (
        np.unique(names, return_inverse=True)[1] for names in (columns.family_N, columns.context_N)
    )
    return replace(columns, family_N=families, context_N=contexts)


def _sizes(columns: Columns) -> Measurement:
    confidence, outcome = columns.known
    within = within_family_auroc(confidence, outcome >= 0.5, columns.family_N[columns.is_known])
    return {
        "n": int(columns.is_graded.sum()),
        "contexts": count_texts(columns),
        "families": within.families,
        "families_left_out": within.left_out,
    }


def _smooth(columns: Columns, draws: int) -> dict[str, float | None]:
    def statistic(index: np.ndarray) -> float:
        return smooth_ece(*columns.take(index).known)

    value = statistic(np.arange(len(columns)))
    if not draws or np.isnan(value):
        return {"value": value, "low": None, "high": None}
    low, high = bootstrap_interval(statistic, columns.context_N, draws=draws)
    return {"value": value, "low": low, "high": high}


def count_texts(columns: Columns) -> int:
    """Return the number of texts that graded answers are about."""
    return len(np.unique(columns.context_N[columns.is_graded]))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _mean(values_N: np.ndarray) -> float:
    return float(values_N.mean()) if len(values_N) else float("nan")


def family_of(answer: Answer) -> str:
    """Name an answer's family with its kind; a family that is a kind is named once."""
    probe = answer.probe
    return probe.kind if probe.family == probe.kind else f"{probe.family}, {probe.kind}"


def by_kind(answers: Iterable[Answer]) -> dict[str, list[Answer]]:
    """Return the answers to closed questions, then to open ones: no headline pools them."""
    kinds = parted(answers, lambda answer: answer.probe.kind)
    return {kind: kinds[kind] for kind in sorted(kinds)}


def parted(answers: Iterable[Answer], key: Callable[[Answer], Any]) -> dict[str, list[Answer]]:
    """Divide answers by a key, in the order in which its values come."""
    parts: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        parts[str(key(answer))].append(answer)
    return dict(parts)
