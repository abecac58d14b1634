"""The section trl: what is passed on to TRL, and what is refused in one sentence."""

import dataclasses

import pytest
from trl.trainer.grpo_config import GRPOConfig

from grpo_ao.checks import trainer_config
from grpo_ao.config import TrainConfig, make_defaults
from grpo_ao.errors import UserError
from grpo_ao.processes import Processes
from grpo_ao.training.trl_args import PASSED_ON, REFUSED, SET_BY_FLAG

FIELDS = {field.name: field for field in dataclasses.fields(GRPOConfig) if field.init}
FLAGS = {field.name for field in dataclasses.fields(TrainConfig)}


def built(**section) -> GRPOConfig:
    config = dataclasses.replace(make_defaults("mini"), trl=section)
    return trainer_config(config, Processes())


@pytest.mark.parametrize("name", FIELDS)
def test_each_field_is_passed_on_or_refused_or_set_by_a_flag(name):
    assert [name in PASSED_ON, name in REFUSED, name in SET_BY_FLAG].count(True) == 1
    if name in PASSED_ON:
        return
    with pytest.raises(UserError, match=f"^'{name}' in section trl: .*\\.$") as caught:
        built(**{name: FIELDS[name].default})
    assert "\n" not in str(caught.value)


def test_the_flags_that_are_named_exist():
    assert {flag.removeprefix("--") for flag in SET_BY_FLAG.values()} <= FLAGS


def test_what_is_passed_on_arrives_and_our_settings_stay():
    args = built(max_grad_norm=0.5, optim="sgd", loss_type="grpo", num_iterations=2)
    assert (args.max_grad_norm, args.optim, args.loss_type) == (0.5, "sgd", "grpo")
    assert (args.num_iterations, args.learning_rate, args.beta) == (2, 3e-4, 0.0)
    assert (args.top_p, args.disable_dropout, args.save_steps) == (1.0, True, 50)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("loss_type", "dapoo", "is 'dapoo': choose from grpo, dr_grpo"),
        ("optim", "adamwww", "adamwww"),
        ("lr_scheduler_type", "cosin", "cosin"),
        ("num_iterations", "two", "cannot be 'two'"),
        ("num_iterations", 0, "must be at least 1, got 0"),
        ("max_grad_norm", True, "cannot be True"),
        ("save_strategy", "no", "is set by --save_steps"),
        ("logging_strategy", "no", "the run keeps metrics.jsonl"),
        ("push_to_hub", True, "is set by --push_to_hub"),
        ("reward_weights", [0], "a run has one reward"),
        ("max_gard_norm", 1.0, "which TRL's GRPOConfig does not know"),
        ("adam_beta1", 7.0, "TRL refuses the section trl: .*beta"),
        ("optim_args", "evil", "TRL refuses the section trl: "),
        ("lr_scheduler_kwargs", {"evil": 1}, "TRL refuses the section trl: .*evil"),
        ("dataloader_num_workers", -1, "TRL refuses the section trl: .*num_workers"),
        ("log_level", "evil", "is 'evil': choose from .*warning"),
        ("gradient_checkpointing_kwargs", {"evil": 1}, "TRL refuses the section trl: .*evil"),
        ("pad_to_multiple_of", 0, "must be at least 1, got 0"),
        ("top_entropy_quantile", 7.0, "must lie between 0 and 1, got 7.0"),
        ("weight_decay", -1.0, "must be 0 or more, got -1.0"),
        ("max_grad_norm", -1.0, "must be 0 or more, got -1.0"),
        ("generation_batch_size", 3, "TRL refuses the section trl: .*must be divisible"),
    ],
)
def test_a_value_that_cannot_be_is_one_sentence(name, value, said):
    with pytest.raises(UserError, match=said) as caught:
        built(**{name: value})
    assert "\n" not in str(caught.value)
