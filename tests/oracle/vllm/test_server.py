import http.client
import json

import pytest
import torch
from safetensors.torch import save

from grpo_ao.errors import UserError
from grpo_ao.oracle.prompt import OraclePrompt
from grpo_ao.oracle.sampling import RolloutEngine, Sampling
from grpo_ao.oracle.vllm.client import (
    ServerRollouts,
    VllmRollouts,
    check_servers,
)
from grpo_ao.oracle.vllm.weights import LoraFactors, base_weights
from grpo_ao.oracle.vllm.wire import (
    RolloutRequest,
    pack_adapter,
    pack_request,
    unpack_adapter,
    unpack_request,
)
from tests.judges.endpoint import Response, in_turn, serving
from tests.oracle.vllm import fake_vllm
from tests.oracle.vllm.fake_vllm import served, tiny_oracle
from tests.tiny import WIDTH


@pytest.fixture
def engine(monkeypatch):
    """The engine of a server that was started for a tiny oracle."""
    fake_vllm.install(monkeypatch)
    return VllmRollouts(tiny_oracle(), 0.25, 200, {})._engine


def ask(rollouts: RolloutEngine, oracle, seed=0):
    torch.manual_seed(seed)
    vectors = [torch.randn(slots, WIDTH) for slots in (1, 3, 2)]
    prompts = [oracle.prompt((1, 2)[len(v) % 2 :], len(v), "Is it?") for v in vectors]
    return rollouts.rollouts(prompts, vectors, Sampling(2, 0.9, 5))


def scale_adapter(oracle, factor):
    for name, parameter in oracle.model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(factor)


def test_a_server_answers_as_vllm_beside_the_trainer_does_while_the_adapter_moves(engine):
    beside, away = tiny_oracle(), tiny_oracle()
    local = VllmRollouts(beside, 0.25, 200, {})
    # vLLM at the server has loaded the base weights that the trainer has.
    for name, weight in base_weights(away.model).items():
        engine.views[name].copy_(weight)
    with served(engine) as url:
        remote = ServerRollouts(away, url, 100)
        results = []
        for factor in (1.0, 3.0, 1 / 3):
            for oracle in (beside, away):
                scale_adapter(oracle, factor)
            results.append(ask(remote, away))
            assert results[-1].token_ids == ask(local, beside).token_ids
            torch.testing.assert_close(
                torch.tensor(results[-1].logprobs), torch.tensor(ask(local, beside).logprobs)
            )
    assert results[0].logprobs != results[1].logprobs


def test_a_request_survives_the_wire():
    prompts = [OraclePrompt("é ?", [1, 2, 3], [1]), OraclePrompt("b", [4, 5], [0, 1])]
    vectors = [torch.randn(1, 4).bfloat16(), torch.randn(2, 4).bfloat16()]
    sent = RolloutRequest(prompts, vectors, Sampling(3, 0.9, 7), [2], [11, 2**31 - 1])
    got = unpack_request(pack_request(sent))
    assert all(torch.equal(a, b) for a, b in zip(sent.vectors, got.vectors, strict=True))
    assert sent._replace(vectors=[]) == got._replace(vectors=[])


def test_an_adapter_survives_the_wire_in_the_dtype_that_it_is_merged_in():
    factors = {"layers.0.mlp.up_proj": LoraFactors(torch.randn(2, 4), torch.randn(6, 2), 2.0)}
    (got,) = unpack_adapter(pack_adapter(factors, torch.bfloat16)).values()
    sent = factors["layers.0.mlp.up_proj"]
    assert torch.equal(got.a_RI, sent.a_RI.bfloat16())
    assert torch.equal(got.b_OR, sent.b_OR.bfloat16())
    assert got.scale == 2.0


@pytest.mark.parametrize("body", [b"", b"nonsense", b"\x08\0\0\0\0\0\0\0{}      "])
def test_what_is_no_message_is_refused(body):
    with pytest.raises(ValueError, match="none of grpo_ao's rollout protocol"):
        unpack_request(body)


def test_a_message_of_another_kind_is_refused():
    adapter = pack_adapter({}, torch.float32)
    with pytest.raises(ValueError, match="another version of grpo_ao's rollout protocol"):
        unpack_request(adapter)


def test_a_server_that_injects_otherwise_is_refused(engine):
    with served(engine) as url:
        with pytest.raises(ValueError, match=r"its layer is 1, here it is 2"):
            ServerRollouts(tiny_oracle(hook_onto_layer=2), url, 100)
        with pytest.raises(ValueError, match=r"its coefficient is 1.0, here it is 2.0"):
            ServerRollouts(tiny_oracle(steering_coefficient=2.0), url, 100)


def test_a_server_for_shorter_prompts_is_refused(engine):
    with (
        served(engine) as url,
        pytest.raises(ValueError, match="start it with --max_model_len 201"),
    ):
        ServerRollouts(tiny_oracle(), url, 201)


def test_what_the_engine_refuses_is_said_by_the_server(engine):
    oracle = tiny_oracle()
    with served(engine) as url:
        rollouts = ServerRollouts(oracle, url, 100)
        prompt = oracle.prompt((2,), 2, "Is it?")
        with pytest.raises(ValueError, match=r"says: .* has 2 placeholders for 3 vectors"):
            rollouts.rollouts([prompt], [torch.ones(3, WIDTH)], Sampling(1, 1.0, 5))


def test_a_server_without_an_adapter_does_not_answer_as_the_base_model(engine):
    with served(engine) as url:
        rollouts = ServerRollouts(tiny_oracle(), url, 100)
        body = pack_request(
            RolloutRequest(
                [OraclePrompt("", [1], [])], [torch.ones(0, WIDTH)], Sampling(1, 1.0, 5), [2], [0]
            )
        )
        with pytest.raises(ValueError, match="no adapter has been sent yet"):
            rollouts._call("/rollouts", body)


def test_an_adapter_on_layers_that_vllm_has_not_is_refused(engine):
    factors = {"layers.9.mlp.up_proj": LoraFactors(torch.ones(1, 32), torch.ones(48, 1), 1.0)}
    with served(engine) as url:
        rollouts = ServerRollouts(tiny_oracle(), url, 100)
        with pytest.raises(ValueError, match=r"layers\.9\.mlp\.up_proj, which vLLM has not"):
            rollouts._call("/adapter", pack_adapter(factors, torch.float32))


def message(values, **tensors):
    text = torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)
    return save({"json": text, **tensors})


REQUEST = {"prompts": [["a", [1], []]], "sampling": {}, "end_ids": [2], "seeds": [0], "counts": [1]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        message([1]),
        message(REQUEST),
        message(REQUEST | {"counts": "x"}, vectors=torch.ones(1, 4)),
        message(REQUEST | {"counts": [7]}, vectors=torch.ones(1, 4)),
        message(REQUEST | {"prompts": [["a"]]}, vectors=torch.ones(1, 4)),
        message(REQUEST | {"prompts": 3}, vectors=torch.ones(1, 4)),
        message(REQUEST | {"sampling": {"top_k": 3}}, vectors=torch.ones(1, 4)),
        message(REQUEST | {"sampling": {"temperature": "hot"}}, vectors=torch.ones(1, 4)),
        message(REQUEST | {"sampling": {"num_samples": 0}}, vectors=torch.ones(1, 4)),
        *(message(REQUEST | {"prompts": [["a", ids, []]]}) for ids in (["x"], [[1]], 3, [1.5])),
        message(REQUEST | {"seeds": []}, vectors=torch.ones(1, 4)),
        message(REQUEST | {"end_ids": ["x"]}, vectors=torch.ones(1, 4)),
        message({"scales": [1]}),
        message({"scales": {"layers.0.mlp.up_proj": 1.0}}),
    ],
)
@pytest.mark.parametrize("path", ["/rollouts", "/adapter"])
def test_an_odd_message_is_refused_by_a_server_that_goes_on(engine, path, body):
    with served(engine) as url:
        assert status(url + path, body) == 400
        assert status(url + "/info") == 200


@pytest.mark.parametrize("spoilt", ["a", "b", "scale"])
def test_an_adapter_that_is_not_finite_is_refused(spoilt):
    factors = LoraFactors(torch.ones(1, 32), torch.ones(48, 1), 1.0)
    if spoilt == "scale":
        factors = LoraFactors(factors.a_RI, factors.b_OR, float("nan"))
    else:
        getattr(factors, {"a": "a_RI", "b": "b_OR"}[spoilt])[0, 0] = float("inf")
    with pytest.raises(UserError, match=r"not finite on layers\.0\.mlp\.up_proj"):
        unpack_adapter(pack_adapter({"layers.0.mlp.up_proj": factors}, torch.float32))


@pytest.mark.parametrize("length", ["-1", "", "many", "1e3", "٣", str(2**40), "9" * 5_000])
def test_a_length_that_is_none_is_refused_at_once(engine, length):
    with served(engine) as url:
        assert status(url + "/rollouts", b"x", {"Content-Length": length}) == 400


@pytest.mark.parametrize(
    "headers",
    [
        *({"Origin": "https://evil.example"}, {"Origin": "null"}),
        *({"Host": "evil.example"}, {"Host": "[::1"}),
    ],
)
def test_what_a_web_page_sends_is_refused(engine, headers):
    with served(engine) as url:
        assert status(url + "/adapter", b"x", headers) == 403
        assert status(url + "/info", headers=headers) == 403


def status(url, body=None, headers=None):
    """The status of an answer; ``headers`` are sent as they are."""
    address, path = url.removeprefix("http://").split("/", 1)
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.putrequest("POST" if body is not None else "GET", f"/{path}", skip_host=True)
    given = {"Host": address, "Content-Length": str(len(body or b""))} | (headers or {})
    for name, value in given.items():
        connection.putheader(name, value.encode())
    connection.endheaders(body)
    found = connection.getresponse().status
    connection.close()
    return found


def test_what_the_engine_fails_at_is_told_to_the_trainer(engine, monkeypatch):
    monkeypatch.setattr(fake_vllm.FakeLLM, "reset_prefix_cache", lambda _: False)
    oracle = tiny_oracle()
    with served(engine) as url:
        rollouts = ServerRollouts(oracle, url, 100)
        with pytest.raises(UserError, match="says: it failed with RuntimeError: vLLM still holds"):
            ask(rollouts, oracle)


def test_another_server_is_one_sentence():
    with serving(in_turn(Response())) as other, pytest.raises(UserError, match="another server"):
        ServerRollouts(tiny_oracle(), other.base_url, 100)


def test_no_server_is_one_sentence():
    with pytest.raises(UserError, match="start one with `grpo-ao vllm-serve`"):
        ServerRollouts(tiny_oracle(), "http://127.0.0.1:9", 100)


def test_each_training_process_needs_a_server():
    check_servers(["http://a:1", "http://b:1"], 2)
    with pytest.raises(ValueError, match="1 --vllm_servers for 2 processes"):
        check_servers(["http://a:1"], 2)
