"""A stand-in for the package vLLM: its calls that the engine makes, around the fake decoder.

It caches by token ids, as prefix caching does, and answers with numbers made from the stream.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import make_dataclass
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from grpo_ao.oracle.layers import unwrap
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.oracle.vllm import models
from grpo_ao.oracle.vllm.engine import InjectingEngine
from grpo_ao.oracle.vllm.server import RolloutServer
from tests.oracle.vllm.fakes import FakeDecoder
from tests.tiny import tiny_peft, tiny_tokenizer


class FakeCausalLM(nn.Module):
    packed_modules_mapping: ClassVar = FakeDecoder.packed_modules_mapping

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        shape = vllm_config.shape
        self.model = FakeDecoder(shape["vocabulary"], 32, shape["layers"])


class FakeLLM:
    """Keeps what it was started with and asked; ``busy`` makes a reset of the cache fail."""

    registry: ClassVar[dict[str, Any]] = {}
    shape: ClassVar[dict[str, int]] = {"vocabulary": 260, "layers": 4}

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.busy = False
        self.asked: list[tuple[list[int], Any]] = []
        self._cache: dict[tuple[int, ...], torch.Tensor] = {}
        (name,) = settings["hf_overrides"]["architectures"]
        torch.manual_seed(1)
        self._model = self.registry[name](
            vllm_config=SimpleNamespace(
                additional_config=settings["additional_config"],
                scheduler_config=SimpleNamespace(
                    max_num_batched_tokens=settings["max_num_batched_tokens"]
                ),
                shape=self.shape,
            )
        )

    def apply_model(self, function: Any) -> list[Any]:
        return [function(self._model)]

    def reset_prefix_cache(self) -> bool:
        self._cache.clear()
        return not self.busy

    def generate(self, prompts: list[dict[str, list[int]]], params: list[Any], use_tqdm: bool):
        outputs = []
        for prompt, param in zip(prompts, params, strict=True):
            ids = prompt["prompt_token_ids"]
            self.asked.append((ids, param))
            if tuple(ids) not in self._cache:
                self._cache[tuple(ids)] = self._model.model(torch.tensor(ids))
            outputs.append(self._output(self._cache[tuple(ids)], param))
        return outputs

    def _output(self, stream: torch.Tensor, param: Any) -> Any:
        value = stream.sum().item()
        samples = [
            SimpleNamespace(
                index=n, token_ids=[n, 2], logprobs=[{n: logprob(value - n)}, {2: logprob(value)}]
            )
            for n in range(param.n)
        ]
        return SimpleNamespace(outputs=samples[::-1])  # vLLM's order is not that of the samples


def logprob(value: float) -> Any:
    return SimpleNamespace(logprob=value)


def install(monkeypatch: pytest.MonkeyPatch, architecture: str = "Qwen3ForCausalLM") -> None:
    """Put the stand-in where the engine looks for vLLM; a GPU is said to be there."""
    models.injecting_class.cache_clear()
    registry: dict[str, Any] = {}
    monkeypatch.setattr(FakeLLM, "registry", registry)
    package: Any = ModuleType("vllm")
    package.LLM, package.SamplingParams = FakeLLM, SimpleNamespace
    package.EngineArgs = make_dataclass("EngineArgs", ["model", "dtype", "attention_backend"])
    package.ModelRegistry = SimpleNamespace(
        register_model=registry.__setitem__, get_supported_archs=lambda: registry.keys()
    )
    package.__spec__ = SimpleNamespace(name="vllm")
    families: Any = ModuleType("qwen3")
    setattr(families, architecture, FakeCausalLM)
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.model_executor.models.qwen3", families)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@contextmanager
def served(engine: InjectingEngine) -> Iterator[str]:
    """A server of the engine on a free port; gives its address."""
    server = RolloutServer(("127.0.0.1", 0), engine, "a-model")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def tiny_oracle(**spec: Any) -> Oracle:
    """An oracle whose model vLLM (the stand-in) knows."""
    model = tiny_peft()
    unwrap(model).config.architectures = ["Qwen3ForCausalLM"]
    return Oracle(model, tiny_tokenizer(), OracleSpec(**spec))
