"""The judge of a run: tried before anything expensive, watched while it grades."""

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from typing import cast

import torch
from accelerate.utils import gather
from torch import Tensor
from transformers import TrainerCallback

from grpo_ao.config import TrainConfig
from grpo_ao.judges.factory import make_judge
from grpo_ao.judges.local import LocalJudge
from grpo_ao.judges.protocol import CheckedJudge, Grade, GradeRequest, Judge, JudgeError
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.store import model_fingerprint
from grpo_ao.reward import CalibratedReward, ScoredCompletion

WINDOW = 10
_ADVICE = "No grade is lost: mend the judge and go on with --resume, or raise --max_unscored."


def tried_judge(config: TrainConfig, oracle: Oracle | None = None) -> CheckedJudge:
    """Make the run's judge and let it grade one answer for trial.

    ``local`` needs the oracle, whose base weights it is. Raises JudgeError or ChatError, in one
    sentence, where the judge cannot grade.
    """
    local = None
    if config.judge == "local" and oracle is not None:
        local = LocalJudge(oracle.model, oracle.tokenizer, model_fingerprint(config.model))
    cache = config.judge_cache or config.output_dir.parent / "grades.sqlite"
    judge = make_judge(config, local, cache)
    asyncio.run(judge.check())
    return judge


class LimitedJudge:
    """A judge for measurements: raises JudgeError where more than ``limit`` of a batch is None."""

    def __init__(self, judge: Judge, limit: float) -> None:
        self._judge = judge
        self._limit = limit

    async def grade(self, requests: Sequence[GradeRequest]) -> list[Grade]:
        """Grade, and refuse the batch if too much of it has no grade."""
        grades = await self._judge.grade(requests)
        unscored = [grade for grade in grades if grade.score is None]
        if len(unscored) > self._limit * len(grades):
            raise JudgeError(
                f"the judge left {len(unscored)} of {len(grades)} answers ungraded, above "
                f"--max_unscored {self._limit:g} (the most frequent reason: "
                f"{_main_reason(unscored)}). {_ADVICE}"
            )
        return grades


def _main_reason(unscored: Sequence[Grade]) -> str:
    return str(Counter(grade.reason for grade in unscored).most_common(1)[0][0])


def _unscored(scored: Sequence[ScoredCompletion]) -> list[Grade]:
    grades = [completion.grade for completion in scored]
    return [grade for grade in grades if grade is not None and grade.score is None]


class UnscoredLimit(TrainerCallback):
    """Stops a run, with a checkpoint, whose judge leaves too many completions ungraded.

    The limit holds for the mean of the last ten steps since the run was started or resumed: the
    steps of an outage do not stop a run that goes on after it. All processes decide alike.
    """

    def __init__(self, reward: CalibratedReward, limit: float) -> None:
        self._reward = reward
        self._limit = limit
        self._shares: deque[float] = deque(maxlen=WINDOW)
        self._reason = ""
        self._stopped_at: int | None = None

    def on_step_end(self, args, state, control, **kwargs):
        """Count the step; ask for a checkpoint and the end where the limit is passed."""
        scored = self._reward.last
        unscored = _unscored(scored)
        if unscored:
            self._reason = _main_reason(unscored)
        share = torch.tensor([len(unscored) / len(scored)], device=args.device)
        self._shares.append(float(cast("Tensor", gather(share)).mean()))
        if len(self._shares) == WINDOW and self._mean() > self._limit:
            self._stopped_at = state.global_step
            control.should_save = control.should_training_stop = True

    def _mean(self) -> float:
        return sum(self._shares) / len(self._shares)

    def check(self) -> None:
        """Raise JudgeError, after training, if it was this that ended it."""
        if self._stopped_at is not None:
            raise JudgeError(
                f"the judge left {self._mean():.0%} of the completions of the last {WINDOW} steps "
                f"ungraded, above --max_unscored {self._limit:g} (the latest reason: "
                f"{self._reason}), so the run stopped after step {self._stopped_at}, with a "
                f"checkpoint. {_ADVICE}"
            )
