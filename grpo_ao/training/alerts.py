"""What can go wrong in calibration training, as conditions on a run's history of metrics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, pstdev

Metrics = dict[str, float | int | None]
WINDOW = 10
_AGAINST_COLLAPSE = (
    "start from a measured warm start, lower --lr, or raise entropy_coef in the section trl:"
)


@dataclass(frozen=True)
class Alert:
    """One condition that holds: what was seen, and what to do about it."""

    name: str
    message: str
    what_to_do: str


def check_alerts(history: Sequence[Metrics]) -> list[Alert]:
    """Return the alerts that hold after the last step of ``history`` (one dict per step)."""
    if not history:
        return []
    last = history[-1]
    checks = [
        _collapse(history),
        _outside(last, "advantage_std", 1e-4, math.inf, "no_advantage",
               "the completions of each group score alike",
               "raise --temperature or --num_generations, or choose harder questions"),
        _outside(last, "parse_rate", 0.9, 1.0, "parse_rate", "completions lack a well-formed tag",
               "lower --lr, or lengthen the warm start"),
        _outside(last, "unscored", 0.0, 0.2, "unscored", "the judge left many completions ungraded",
               "check the judge's endpoint and its limits"),
        _outside(last, "sampling_gap", -math.inf, 0.2, "sampling_gap",
               "completions are sampled by another model than the one that is trained",
               "run benchmarks/vllm_parity.py on this machine, or use --rollout transformers"),
        _short_answers(history),
        _exploding_kl(history),
    ]  # fmt: skip
    return [alert for alert in checks if alert is not None]


def _known(step: Metrics, key: str) -> float | None:
    value = step.get(key)
    return None if value is None or math.isnan(value) else value


def series(history: Sequence[Metrics], key: str) -> list[float]:
    """Return a metric's values at the steps at which it is known."""
    return [value for step in history if (value := _known(step, key)) is not None]


def _outside(
    last: Metrics, key: str, least: float, most: float, name: str, what: str, todo: str
) -> Alert | None:
    value = _known(last, key)
    if value is None or least <= value <= most:
        return None
    bound = f"below {least:g}" if value < least else f"above {most:g}"
    return Alert(name, f"{what}: {key} is {value:.3g}, {bound}", todo)


def _collapse(history: Sequence[Metrics]) -> Alert | None:
    """Standard deviation of the confidence under .1, in the mean of the last ten steps.

    One step asks few questions: by chance it may have easy ones only.
    """
    known = series(history, "confidence_std")[-WINDOW:]
    if len(known) < WINDOW or mean(known) >= 0.1:
        return None
    return Alert(
        "confidence_collapse",
        f"confidences are all alike: confidence_std is {mean(known):.3g}, below 0.1",
        _AGAINST_COLLAPSE,
    )


def greedy_collapse(confidences: Sequence[float]) -> Alert | None:
    """Standard deviation of greedy confidences under .05, where those that are sampled may vary."""
    spread = pstdev(confidences) if len(confidences) > 1 else 1.0
    if spread >= 0.05:
        return None
    return Alert(
        "greedy_collapse",
        "greedy confidences on validation texts are all alike: their standard deviation is "
        f"{spread:.3g}, below 0.05",
        _AGAINST_COLLAPSE,
    )


def _short_answers(history: Sequence[Metrics]) -> Alert | None:
    """Mean length of the last ten steps under 60 % of that of the first ten."""
    lengths = series(history, "answer_length")
    if len(lengths) < 2 * WINDOW:
        return None
    start, now = mean(lengths[:WINDOW]), mean(lengths[-WINDOW:])
    if now >= 0.6 * start:
        return None
    return Alert(
        "short_answers",
        f"answers have shrunk from {start:.1f} to {now:.1f} words",
        "look at the rollouts for vague answers; raise --kl_penalty or lower --lr",
    )


def _exploding_kl(history: Sequence[Metrics]) -> Alert | None:
    """KL above 0.5 nats a token and above ten times the median of the ten steps before."""
    values = series(history, "kl")
    if len(values) <= WINDOW or _known(history[-1], "kl") is None:
        return None
    before = median(values[-WINDOW - 1 : -1])
    if not (values[-1] > 0.5 and values[-1] > 10 * before):
        return None
    return Alert(
        "kl_explodes",
        f"the KL to the reference went from {before:.3g} to {values[-1]:.3g} nats a token",
        "lower --lr or raise --kl_penalty, and resume from the checkpoint before",
    )
