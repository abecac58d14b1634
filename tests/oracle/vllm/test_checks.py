import dataclasses

import pytest

from grpo_ao.checks import check_rollouts
from grpo_ao.config import TrainConfig, make_defaults
from grpo_ao.errors import UserError
from tests.oracle.vllm import fake_vllm


def mini(**settings) -> TrainConfig:
    return dataclasses.replace(make_defaults("mini", None), rollout="vllm", **settings)


def test_a_run_that_vllm_can_serve_passes(monkeypatch):
    fake_vllm.install(monkeypatch)
    check_rollouts(mini(), 1)
    check_rollouts(mini(vllm={"attention_backend": "TRITON_ATTN"}), 2)


def test_a_run_with_servers_needs_no_vllm_here():
    check_rollouts(mini(vllm_servers=("http://a:8000", "http://b:8000")), 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_in_4bit": True}, "--rollout vllm needs an unquantized base model"),
        ({"vllm": {"colour": "red"}}, "'colour', which vLLM's LLM does not know"),
        ({"vllm": {"dtype": "half"}}, "'dtype' in section vllm: cannot be set"),
        ({"vllm_servers": ("http://a:8000",)}, "1 --vllm_servers for 2 training processes"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_a_model_is_loaded(monkeypatch, settings, message):
    fake_vllm.install(monkeypatch)
    with pytest.raises(ValueError, match=message):
        check_rollouts(mini(**settings), 2)


def test_without_vllm_a_run_stops_before_a_model_is_loaded():
    with pytest.raises(UserError, match=r"pip install 'grpo-ao\[vllm\]'"):
        check_rollouts(mini(), 1)


def test_servers_and_memory_belong_to_vllm():
    with pytest.raises(ValueError, match="used by --rollout vllm alone"):
        check_rollouts(TrainConfig(vllm_servers=("http://a:8000",)), 1)
    with pytest.raises(ValueError, match="used by --rollout vllm alone"):
        check_rollouts(TrainConfig(vllm={"seed": 1}), 1)
    with pytest.raises(ValueError, match="leave one out"):
        check_rollouts(mini(vllm_servers=("http://a:8000",), vllm={"seed": 1}), 1)
    with pytest.raises(ValueError, match="--vllm_gpu_memory must lie between 0 and 1, got 30"):
        TrainConfig(vllm_gpu_memory=30)
