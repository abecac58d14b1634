"""The reward: informative answers, and a confidence that is right about them.

reward = informativeness - lambda * (confidence - informativeness)^2, all three in [0, 1]
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from grpo_ao.answer import Answer
from grpo_ao.errors import UserError
from grpo_ao.extensions import load_function, own_code

RewardFunction = Callable[[float, float], float]
"""A reward as a function of confidence and informativeness, both in [0, 1]."""


def calibration_term(confidence: float, informativeness: float, calibration_lambda: float) -> float:
    """Return ``-lambda (confidence - informativeness)^2``, both in [0, 1]; never positive."""
    check_lambda(calibration_lambda)
    return -calibration_lambda * (confidence - informativeness) ** 2


def calibrated_reward(
    confidence: float, informativeness: float, calibration_lambda: float
) -> float:
    """Return the reward of a well-formed output: between -lambda and 1."""
    return informativeness + calibration_term(confidence, informativeness, calibration_lambda)


def unparsed_floor(calibration_lambda: float) -> float:
    """Return an unparsed output's reward: one below the least that a parsed one can get."""
    check_lambda(calibration_lambda)
    return -calibration_lambda - 1.0


def check_lambda(calibration_lambda: float) -> None:
    """Raise ValueError for a negative weight, which would reward miscalibration."""
    if not calibration_lambda >= 0:
        raise ValueError(f"lambda must be 0 or more, got {calibration_lambda}.")


@dataclass(frozen=True)
class RewardRule:
    """How an answer is rewarded: by its informativeness and a term of its calibration.

    ``calibration`` is the term that confidence and informativeness add, ``floor`` the reward of an
    output without a well-formed tag.
    """

    calibration: RewardFunction
    floor: float


def reward_rule(calibration_lambda: float, own: str | None = None) -> RewardRule:
    """Return the calibrated reward, or the reward that ``own`` (MODULE:FUNCTION) computes.

    The floor of a reward of one's own is one below the least that it gives to a stated confidence
    (0 to 100 %) with an informativeness of 0 to 1 in steps of .01.
    """
    if own is None:
        term = partial(calibration_term, calibration_lambda=calibration_lambda)
        return RewardRule(term, unparsed_floor(calibration_lambda))
    reward = load_function(own, "--reward")
    steps = [step / 100 for step in range(101)]
    with own_code(own, "--reward"):
        values = [float(reward(confidence, grade)) for confidence, grade in product(steps, steps)]
    if not all(map(math.isfinite, values)):
        raise UserError(f"--reward {own} gives what is not finite: mend it.")
    return RewardRule(lambda confidence, grade: reward(confidence, grade) - grade, min(values) - 1)


def rewarded(answer: Answer, rule: RewardRule) -> Answer:
    """Return the answer with its reward; an ungraded one has none, an unparsed one the floor."""
    if answer.confidence is None:
        return replace(answer, reward=rule.floor)
    if answer.informativeness is None:
        return answer
    term = rule.calibration(answer.confidence, answer.informativeness)
    return replace(answer, calibration=term, reward=answer.informativeness + term)
