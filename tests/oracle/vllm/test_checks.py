import dataclasses

import pytest

from grpo_ao.checks import check_rollouts, check_start
from grpo_ao.config import TrainConfig, make_defaults
from grpo_ao.errors import UserError
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.processes import Processes
from tests.oracle.vllm import fake_vllm
from tests.tiny import tiny_peft, tiny_tokenizer


def mini(**settings) -> TrainConfig:
    return dataclasses.replace(make_defaults("mini", None), rollout="vllm", **settings)


def check(config: TrainConfig, processes: int = 1) -> None:
    check_rollouts(config, config.model, [config.oracle_lora_path], processes)


def test_a_run_that_vllm_can_serve_passes(monkeypatch):
    fake_vllm.install(monkeypatch)
    check(mini())
    check(mini(vllm={"attention_backend": "TRITON_ATTN"}), 2)


def test_a_run_with_servers_needs_no_vllm_here():
    check(mini(vllm_servers=("http://a:8000", "http://b:8000")), 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vllm": {"colour": "red"}}, "'colour', which vLLM's LLM does not know"),
        ({"vllm": {"dtype": "half"}}, "'dtype' in section vllm: cannot be set"),
        ({"vllm_servers": ("http://a:8000",)}, "1 --vllm_servers for 2 processes"),
    ],
)
def test_what_cannot_work_is_one_sentence_before_a_model_is_loaded(monkeypatch, settings, message):
    fake_vllm.install(monkeypatch)
    with pytest.raises(ValueError, match=message):
        check(mini(**settings), 2)


def test_a_base_in_4_bits_is_refused():
    with pytest.raises(UserError, match="--rollout vllm needs an unquantized base model"):
        check_start(mini(load_in_4bit=True), Processes(), sharded=False)


def test_adapters_that_are_injected_otherwise_are_refused(tmp_path):
    config = mini(vllm_servers=("http://a:8000",))
    for name, coefficient in (("a", 1.0), ("b", 1.0), ("other", 2.0)):
        spec = OracleSpec(steering_coefficient=coefficient)
        Oracle(tiny_peft(), tiny_tokenizer(), spec).save_adapter(tmp_path / name)
    a, b, other = (str(tmp_path / name) for name in ("a", "b", "other"))
    check_rollouts(config, config.model, [a, b])
    with pytest.raises(UserError, match="those of --compare differ in layer, coefficient"):
        check_rollouts(config, config.model, [a, other])


def test_without_vllm_a_run_stops_before_a_model_is_loaded():
    with pytest.raises(UserError, match=r"pip install '\.\[vllm\]' in the clone"):
        check(mini())


def test_servers_and_memory_belong_to_vllm():
    with pytest.raises(ValueError, match="used by --rollout vllm alone"):
        check(TrainConfig(vllm_servers=("http://a:8000",)))
    with pytest.raises(ValueError, match="used by --rollout vllm alone"):
        check(TrainConfig(vllm={"seed": 1}))
    with pytest.raises(ValueError, match="leave one out"):
        check(mini(vllm_servers=("http://a:8000",), vllm={"seed": 1}))
    with pytest.raises(ValueError, match="--vllm_gpu_memory must lie between 0 and 1, got 30"):
        TrainConfig(vllm_gpu_memory=30)
