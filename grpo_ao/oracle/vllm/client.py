"""The rollout engine ``--rollout vllm``: beside the oracle's model on its GPU, or on servers."""

import dataclasses
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from grpo_ao.errors import UserError
from grpo_ao.oracle.ends import end_token_ids
from grpo_ao.oracle.layers import unwrap
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.prompt import OraclePrompt, placeholder_id
from grpo_ao.oracle.sampling import RolloutEngine, Rollouts, Sampling
from grpo_ao.oracle.vllm.bank import BankSettings
from grpo_ao.oracle.vllm.engine import (
    EngineSettings,
    InjectingEngine,
    bank_settings,
    check_installed,
)
from grpo_ao.oracle.vllm.weights import base_weights, lora_factors
from grpo_ao.oracle.vllm.wire import RolloutRequest, pack_adapter, pack_request

_TIMEOUT = 600.0


def settings_of(oracle: Oracle) -> BankSettings:
    """Return what an engine must be started with to inject as this oracle does."""
    return bank_settings(
        unwrap(oracle.model).config,
        oracle.spec.hook_onto_layer,
        oracle.spec.steering_coefficient,
        placeholder_id(oracle.tokenizer, oracle.spec.special_token),
    )


def draw_seeds(count: int) -> list[int]:
    """Draw the seeds of a batch's prompts from torch's global generator."""
    return torch.randint(2**31, (count,)).tolist()


class VllmRollouts:
    """vLLM in the oracle's process, with a copy of the weights that follows the adapter.

    ``memory`` is vLLM's share of the GPU, its copy of the weights included; ``extra`` are further
    arguments of vLLM's ``LLM``. Raises UserError, before vLLM starts, where it is not installed,
    without a GPU, for a model that has no injecting variant, a quantised base, or an adapter other
    than plain LoRA.
    """

    def __init__(
        self, oracle: Oracle, memory: float, max_model_len: int, extra: Mapping[str, Any]
    ) -> None:
        check_installed()
        self.oracle = oracle
        self._ends = end_token_ids(oracle.model, oracle.tokenizer)
        base, _ = base_weights(oracle.model), lora_factors(oracle.model)
        config = unwrap(oracle.model).config
        settings = EngineSettings(
            model=str(unwrap(oracle.model).name_or_path),
            dtype=next(iter(base.values())).dtype,
            memory=memory,
            max_model_len=max_model_len,
            extra=extra,
        )
        self._engine = InjectingEngine(settings, config, settings_of(oracle))

    def rollouts(
        self, prompts: Sequence[OraclePrompt], vectors: Sequence[Tensor], sampling: Sampling
    ) -> Rollouts:
        """Merge the adapter as it is now, and sample; with log-probabilities."""
        self._engine.set_adapter(base_weights(self.oracle.model), lora_factors(self.oracle.model))
        seeds = draw_seeds(len(prompts))
        return self._engine.rollouts(prompts, vectors, sampling, self._ends, seeds)


def check_servers(urls: Sequence[str], processes: int) -> None:
    """Raise UserError unless each training process has a server of its own."""
    if len(urls) != processes:
        raise UserError(
            f"{len(urls)} --vllm_servers for {processes} processes: each needs one of its own."
        )


class ServerRollouts:
    """Rollouts by a ``grpo-ao vllm-serve`` at ``url``, which is sent the adapter each time.

    Raises UserError where nothing answers there, and where the server injects otherwise than the
    oracle does.
    """

    def __init__(self, oracle: Oracle, url: str, max_model_len: int) -> None:
        self.oracle = oracle
        self._url = url.rstrip("/")
        self._ends = end_token_ids(oracle.model, oracle.tokenizer)
        self._dtype = next(iter(base_weights(oracle.model).values())).dtype
        info = self._call("/info", None)
        if not isinstance(info, dict) or not {"bank", "max_model_len"} <= info.keys():
            raise UserError(f"what answers at {url} is no rollout server: check --vllm_servers.")
        ours = dataclasses.asdict(settings_of(oracle)) | {"rows": info["bank"]["rows"]}
        for name, value in ours.items():
            if info["bank"][name] != value:
                raise UserError(
                    f"the rollout server at {url} was started for another oracle: its {name} is "
                    f"{info['bank'][name]}, here it is {value}."
                )
        if info["max_model_len"] < max_model_len:
            raise UserError(
                f"the rollout server at {url} takes {info['max_model_len']} tokens, prompts and "
                f"completions need {max_model_len}: start it with --max_model_len {max_model_len}."
            )

    def rollouts(
        self, prompts: Sequence[OraclePrompt], vectors: Sequence[Tensor], sampling: Sampling
    ) -> Rollouts:
        """Send the adapter as it is now, then the prompts; with log-probabilities."""
        self._call("/adapter", pack_adapter(lora_factors(self.oracle.model), self._dtype))
        seeds = draw_seeds(len(prompts))
        request = RolloutRequest(list(prompts), list(vectors), sampling, self._ends, seeds)
        return Rollouts(**self._call("/rollouts", pack_request(request)))

    def _call(self, path: str, body: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(self._url + path, data=body)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise UserError(f"the rollout server at {self._url} says: {_said(error)}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UserError(
                f"no rollout server answers at {self._url} ({error}): start one with `grpo-ao "
                "vllm-serve`, or check --vllm_servers."
            ) from error


def _said(error: urllib.error.HTTPError) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.load(error)["error"])
    return f"HTTP {error.code}: it is another server, or fails (see its own output)."


def start_vllm(
    oracle: Oracle,
    prompts: Sequence[OraclePrompt],
    room: int,
    server: str | None,
    memory: float,
    extra: Mapping[str, Any],
) -> RolloutEngine:
    """Start vLLM for prompts that at most ``room`` tokens follow: on a server, or beside us."""
    length = max(len(prompt.input_ids) for prompt in prompts) + room
    if server is not None:
        return ServerRollouts(oracle, server, length)
    return VllmRollouts(oracle, memory, length, extra)
