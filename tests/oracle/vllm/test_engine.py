import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from grpo_ao.errors import UserError
from grpo_ao.oracle.sampling import Sampling
from grpo_ao.oracle.vllm import engine as engine_module
from grpo_ao.oracle.vllm import models, plugin
from grpo_ao.oracle.vllm.client import VllmRollouts
from grpo_ao.oracle.vllm.engine import check_architecture, check_installed
from tests.oracle.vllm import fake_vllm
from tests.oracle.vllm.fake_vllm import FakeLLM, tiny_oracle
from tests.tiny import WIDTH, tiny_config, tiny_tokenizer, token_id

PLACEHOLDER = token_id("Ġ?")
VOCABULARY = len(tiny_tokenizer())


@pytest.fixture
def rollouts(monkeypatch):
    """The engine over the stand-in for vLLM, for a tiny oracle."""
    fake_vllm.install(monkeypatch)
    monkeypatch.setattr(engine_module, "ROWS", 8)
    return VllmRollouts(tiny_oracle(), 0.25, 200, {"attention_backend": "FLASH_ATTN"})


def llm_of(rollouts) -> FakeLLM:
    return rollouts._engine._llm


def ask(rollouts, count, slots=2, samples=2, seed=0, question="Is it? ?"):
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(slots, WIDTH, generator=generator) for _ in range(count)]
    prompts = [rollouts.oracle.prompt((1, 2), slots, question) for _ in range(count)]
    return rollouts.rollouts(prompts, vectors, Sampling(samples, 0.9, 5))


def test_vllm_is_started_to_inject_as_the_oracle_does(rollouts):
    settings = llm_of(rollouts).settings
    assert settings["hf_overrides"] == {"architectures": ["InjectingQwen3ForCausalLM"]}
    assert settings["additional_config"]["activation_injection"] == {
        "layer": 1,
        "coefficient": 1.0,
        "placeholder_id": PLACEHOLDER,
        "first_id": VOCABULARY,
        "rows": 8,
    }
    assert settings["gpu_memory_utilization"] == 0.25
    assert settings["dtype"] == "float32"
    assert settings["logprobs_mode"] == "processed_logprobs"
    assert settings["attention_backend"] == "FLASH_ATTN"


def test_each_prompt_has_rows_of_its_own_and_a_placeholder_of_its_question_has_none(rollouts):
    ask(rollouts, 3)
    ids = [ids for ids, _ in llm_of(rollouts).asked]
    assert [[i - VOCABULARY for i in row if i >= VOCABULARY] for row in ids] == [
        [0, 1],
        [2, 3],
        [4, 5],
    ]
    assert all(row.count(PLACEHOLDER) == 1 for row in ids)


def test_completions_and_log_probabilities_come_in_the_order_of_samples(rollouts):
    result = ask(rollouts, 2, samples=3)
    assert result.token_ids == [[[0, 2], [1, 2], [2, 2]]] * 2
    for first, second, third in result.logprobs:
        assert first[0] - second[0] == pytest.approx(1) == second[0] - third[0]
        assert first[1] == pytest.approx(first[0])


def test_sampling_is_untruncated_seeded_and_ends_at_the_oracles_end_tokens(rollouts):
    torch.manual_seed(5)
    ask(rollouts, 2)
    params = [param for _, param in llm_of(rollouts).asked]
    assert all(p.temperature == 0.9 and p.max_tokens == 5 and p.n == 2 for p in params)
    assert all(p.stop_token_ids == [token_id("<|im_end|>")] for p in params)
    assert not any(hasattr(params[0], name) for name in ("top_p", "top_k", "min_p"))
    seeds = [p.seed for p in params]
    torch.manual_seed(5)
    ask(rollouts, 2)
    assert [p.seed for _, p in llm_of(rollouts).asked[2:]] == seeds and len(set(seeds)) == 2


def test_rows_that_are_used_again_are_not_answered_from_the_cache(rollouts):
    first, other, again = (ask(rollouts, 2, seed=seed) for seed in (0, 1, 0))
    # The ids of the three requests are the same, their vectors are not.
    ids = [ids for ids, _ in llm_of(rollouts).asked]
    assert ids[:2] == ids[2:4] == ids[4:]
    assert first.logprobs == again.logprobs != other.logprobs


def test_more_vectors_than_rows_are_served_in_batches_with_the_same_answers(rollouts):
    together = ask(rollouts, 7)
    alone = [ask(rollouts, 1, seed=0)]
    assert len(together.token_ids) == len(together.logprobs) == 7
    assert together.logprobs[0] == alone[0].logprobs[0]
    assert len({tuple(row[0]) for row in together.logprobs}) == 7


def test_weights_follow_the_adapter(rollouts):
    before = ask(rollouts, 1)
    for name, parameter in rollouts.oracle.model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(2)
    after = ask(rollouts, 1)
    assert before.logprobs != after.logprobs


def test_a_cache_that_cannot_be_emptied_is_an_error(rollouts):
    llm_of(rollouts).busy = True
    with pytest.raises(RuntimeError, match="still holds cached blocks"):
        ask(rollouts, 1)


def test_prompts_that_do_not_fit_are_refused(rollouts):
    prompt = rollouts.oracle.prompt((2,), 2, "Is it?")
    with pytest.raises(ValueError, match="has 2 placeholders for 3 vectors"):
        rollouts.rollouts([prompt], [torch.ones(3, WIDTH)], Sampling(1, 1.0, 5))
    with pytest.raises(ValueError, match="1 prompts, but activations for 0"):
        rollouts.rollouts([prompt], [], Sampling(1, 1.0, 5))
    with pytest.raises(ValueError, match="and 190 new ones exceed the 200 tokens"):
        rollouts.rollouts([prompt], [torch.ones(2, WIDTH)], Sampling(1, 1.0, 190))


def test_the_plugin_registers_names_alone_and_keeps_what_is_there(monkeypatch):
    fake_vllm.install(monkeypatch)
    FakeLLM.registry["InjectingLlamaForCausalLM"] = "mine"
    plugin.register()
    assert FakeLLM.registry.pop("InjectingLlamaForCausalLM") == "mine"
    assert len(FakeLLM.registry) == len(plugin.FAMILIES) - 1
    for name, where in FakeLLM.registry.items():
        assert where == f"grpo_ao.oracle.vllm.models:{name}"


def test_the_plugin_is_declared_and_loads_nothing_of_its_own():
    root = Path(__file__).resolve().parents[3]
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]
    module, _, function = declared["vllm.general_plugins"]["grpo_ao"].partition(":")
    code = f"import sys, {module} as m; assert callable(m.{function}); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )
    assert "torch" not in loaded.stdout.split()


def test_a_registered_name_leads_to_the_class(monkeypatch):
    fake_vllm.install(monkeypatch)
    found = models.InjectingQwen3ForCausalLM
    assert found.__name__ == "InjectingQwen3ForCausalLM"
    assert issubclass(found, fake_vllm.FakeCausalLM)
    with pytest.raises(AttributeError, match="InjectingGPT2"):
        _ = models.InjectingGPT2


def test_vllm_that_is_not_installed_is_one_sentence(monkeypatch):
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    with pytest.raises(UserError, match=r"pip install '\.\[vllm\]' in the clone"):
        check_installed()


def test_a_machine_without_a_gpu_is_one_sentence(monkeypatch):
    fake_vllm.install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--rollout vllm needs a GPU"):
        check_installed()


def test_a_model_without_an_injecting_variant_is_refused_by_name():
    config = tiny_config("qwen3")
    config.architectures = ["GPT2LMHeadModel"]
    with pytest.raises(ValueError, match="do not know GPT2LMHeadModel: they support Qwen3For"):
        check_architecture(config)
    config.architectures = None
    with pytest.raises(ValueError, match="names no architecture"):
        check_architecture(config)
