"""A run that is no longer made of numbers ends, before it is counted or saved."""

from collections.abc import Iterable

from torch import Tensor, nn
from transformers import TrainerCallback

from grpo_ao.errors import UserError


class FiniteCheck(TrainerCallback):
    """Raises UserError where a gradient, or a weight that a step has made, is not finite.

    Gradients are looked at before they are applied and weights before they are saved; both are
    alike in all processes, which end together.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        """Look up what is trained: it takes longer than looking at it."""
        self._trained = [p for p in kwargs["model"].parameters() if p.requires_grad]

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Look at the gradients."""
        gradients = (parameter.grad for parameter in self._trained)
        check_finite((g for g in gradients if g is not None), "the gradient", state.global_step + 1)

    def on_step_end(self, args, state, control, **kwargs):
        """Look at the weights."""
        check_finite((p.detach() for p in self._trained), "the adapter", state.global_step)


def check_finite(tensors: Iterable[Tensor], what: str, step: int) -> None:
    """Raise UserError if one of ``what``'s numbers is NaN or infinite."""
    if not nn.utils.get_total_norm(tensors).isfinite():
        raise UserError(
            f"{what} is not finite at GRPO step {step}, and the run stopped before it was saved: "
            "begin anew with a lower --lr and another --output_dir."
        )
