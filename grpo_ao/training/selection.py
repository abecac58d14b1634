"""GRPO has to earn its place: what ships is the best on validation texts, the warm start included.

The measure is the Brier score of the stated confidences, greedy; answers may not have become worse
by more than chance explains. Validation texts are asked in no other stage, and no number that is
reported comes from them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from transformers import TrainerCallback, TrainerState

from grpo_ao.answer import Answer
from grpo_ao.errors import UserError
from grpo_ao.files import read_json, why_not_whole
from grpo_ao.measuring.metrics import Columns
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.processes import Processes
from grpo_ao.training.checkpoints import COMPLETE, load_adapter, mark_adapter

# Of the paired difference in informativeness, in standard errors.
_NOISE = 2.0


def is_better(candidate: Columns, best: Columns) -> bool:
    """Decide between two measurements of the same probes, in the same order.

    The candidate's Brier score has to be lower, where an output without a number counts as a
    confidence of one half in a wrong answer, and its informativeness not lower by more than two
    standard errors of the paired difference. Probes that either lacks a grade for are left out.
    """
    lost_N = squared_errors(candidate) - squared_errors(best)
    gained_N = candidate.informativeness_N - best.informativeness_N
    graded_N = ~np.isnan(gained_N)
    if not graded_N.any():
        return False
    gained_N = gained_N[graded_N]
    error = gained_N.std() / len(gained_N) ** 0.5
    return bool(lost_N[graded_N].mean() < 0 and gained_N.mean() >= -_NOISE * error)


def squared_errors(columns: Columns) -> Float[np.ndarray, "answers"]:
    """Return each answer's squared error of confidence; 1/4 where none is stated."""
    errors_N = (columns.confidence_N - columns.informativeness_N) ** 2
    return np.where(np.isnan(columns.confidence_N), 0.25, errors_N)


class Selection(TrainerCallback):
    """Keeps, in ``folder``, the best adapter of a run: the start's until another is better.

    ``ask`` answers the validation probes with the oracle as it is now and keeps the answers under
    the step that it is given: a run that is resumed finds those of the best there. Every
    ``every`` steps, and after the last, the oracle is asked and compared, once the checkpoint is
    whole: asking may take long, or end the run. Where it did, the step is asked when it is resumed.
    """

    def __init__(
        self,
        oracle: Oracle,
        processes: Processes,
        folder: Path,
        ask: Callable[[int], Sequence[Answer]],
        every: int,
    ) -> None:
        self._oracle = oracle
        self._processes = processes
        self._folder = folder
        self._ask = ask
        self._every = every
        self.best_step = 0

    def begin(self) -> None:
        """Measure the start, or find out what was best before the run was resumed."""
        mark = self._folder / COMPLETE
        if mark.exists():
            if (fault := why_not_whole(mark)) is not None:
                raise UserError(
                    f"the best adapter so far, in {self._folder}, is lost, for {fault}: restore "
                    "it, or delete the folder, to choose among the steps that are still to come."
                )
            self.best_step = read_json(mark)["step"]
            # Its answers may have to be asked anew. GRPO goes on from its checkpoint's adapter.
            load_adapter(self._oracle, self._folder)
        else:
            self._keep(0)
        self._best = Columns.of(self._ask(self.best_step))

    def on_train_begin(self, args: object, state: TrainerState, control: object, **kwargs: object):
        """Compare the step that a run goes on from."""
        if state.global_step:
            self.on_save(args, state, control)

    def on_save(self, args: object, state: TrainerState, control: object, **kwargs: object):
        """Compare the adapter that this step made, if it is time to."""
        if state.global_step % self._every == 0 or state.global_step >= state.max_steps:
            self.compare(state.global_step)

    def compare(self, step: int) -> None:
        """Keep the adapter, which ``step`` made, if it is better than the best so far."""
        found = Columns.of(self._ask(step))
        if is_better(found, self._best):
            self._best = found
            self._keep(step)

    def _keep(self, step: int) -> None:
        self.best_step = step
        if self._processes.is_main:
            self._oracle.save_adapter(self._folder)
            mark_adapter(self._folder, step=step)
        self._processes.wait()

    def restore(self) -> str | None:
        """Put the best adapter into the oracle; return which step of GRPO it is, None if none."""
        load_adapter(self._oracle, self._folder)
        return f"GRPO, step {self.best_step}" if self.best_step else None
