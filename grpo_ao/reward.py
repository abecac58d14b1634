"""The reward: informative answers, and a confidence that is right about them.

reward = informativeness - lambda * (confidence - informativeness)^2, all three in [0, 1]
"""

from dataclasses import replace

from grpo_ao.answer import Answer


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


def rewarded(answer: Answer, calibration_lambda: float) -> Answer:
    """Return the answer with its reward; an ungraded one has none, an unparsed one the floor."""
    if answer.confidence is None:
        return replace(answer, reward=unparsed_floor(calibration_lambda))
    if answer.informativeness is None:
        return answer
    term = calibration_term(answer.confidence, answer.informativeness, calibration_lambda)
    return replace(answer, calibration=term, reward=answer.informativeness + term)
