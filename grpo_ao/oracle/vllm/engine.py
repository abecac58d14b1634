"""One vLLM engine in this process, whose model adds activations to its residual stream."""

import dataclasses
import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from grpo_ao.errors import UserError
from grpo_ao.oracle.layers import check_layer, num_decoder_layers
from grpo_ao.oracle.prompt import OraclePrompt, check_counts
from grpo_ao.oracle.sampling import Rollouts, Sampling
from grpo_ao.oracle.vllm.bank import BankSettings, chunks_that_fit, virtual_ids
from grpo_ao.oracle.vllm.models import injecting_class
from grpo_ao.oracle.vllm.plugin import injecting_name
from grpo_ao.oracle.vllm.weights import LoraFactors, linear_views, merge

ROWS = 8192
"""Vectors of one batch: 134 MB at width 4096. Larger requests are served in several batches."""
# What a user's own arguments may replace.
_DEFAULTS: dict[str, Any] = {
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "compilation_config": {
        "mode": 0,
        "cudagraph_mode": "FULL_DECODE_ONLY",
        "cudagraph_capture_sizes": [
            *(1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256)
        ],
    },
}


def check_installed() -> None:
    """Raise, in one sentence, where vLLM cannot run."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "--rollout vllm needs vLLM, which is not installed: pip install '.[vllm]' in the "
            "clone, or use --rollout transformers."
        )
    if not torch.cuda.is_available():
        raise UserError(
            "--rollout vllm needs a GPU, and torch sees none here: use --rollout transformers."
        )


def check_architecture(config: PretrainedConfig) -> str:
    """Return the model's architecture; UserError where vLLM has no injecting variant of it."""
    (architecture,) = config.architectures or ["a model whose config names no architecture"]
    injecting_name(architecture)
    return architecture


def bank_settings(
    config: PretrainedConfig, layer: int, coefficient: float, placeholder_id: int
) -> BankSettings:
    """Return the bank's settings for a model; UserError where the layer does not exist."""
    check_layer(num_decoder_layers(config), layer)
    vocabulary = int(config.get_text_config(decoder=True).vocab_size)
    return BankSettings(layer, float(coefficient), placeholder_id, vocabulary, ROWS)


@dataclass(frozen=True)
class EngineSettings:
    """How vLLM is started. ``memory`` is the share of the GPU that it takes in all.

    ``extra`` are further arguments of vLLM's ``LLM``, other than those that are set here.
    """

    model: str
    dtype: torch.dtype
    memory: float
    max_model_len: int
    extra: Mapping[str, Any] = field(default_factory=dict)


def check_arguments(extra: Mapping[str, Any]) -> None:
    """Raise UserError for arguments that vLLM does not know, or that rollouts rely on."""
    if not extra:
        return
    known = dataclasses.fields(importlib.import_module("vllm").EngineArgs)
    if unknown := extra.keys() - {argument.name for argument in known}:
        raise UserError(f"section vllm: has '{min(unknown)}', which vLLM's LLM does not know.")
    unset = EngineSettings("", torch.bfloat16, 0.5, 1), "", BankSettings(0, 0.0, 0, 0, 0)
    if settled := extra.keys() & _fixed_arguments(*unset).keys():
        raise UserError(
            f"'{min(settled)}' in section vllm: cannot be set: rollouts rely on its value."
        )


def _fixed_arguments(settings: EngineSettings, name: str, bank: BankSettings) -> dict[str, Any]:
    """Return the arguments of vLLM's ``LLM`` that rollouts rely on."""
    arguments = {
        "model": settings.model,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "gpu_memory_utilization": settings.memory,
        "max_model_len": settings.max_model_len,
        "hf_overrides": {"architectures": [name]},
        "additional_config": bank.to_config(),
        # Virtual ids lie beyond the vocabulary, which a tokenizer would refuse.
        "skip_tokenizer_init": True,
        "language_model_only": True,
        # Log-probabilities of the distribution that is sampled from, not before temperature.
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
    }
    # Where accelerate has started several processes, each has its own engine on its own GPU.
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        arguments["distributed_executor_backend"] = "external_launcher"
    return arguments


class InjectingEngine:
    """vLLM with a bank of vectors in its model; nothing else may use the engine meanwhile.

    It is started with CUDA graphs for decoding and without ``torch.compile``: 7 s instead of 38 s
    for 5 % of the speed.
    """

    def __init__(
        self, settings: EngineSettings, config: PretrainedConfig, bank: BankSettings
    ) -> None:
        architecture = check_architecture(config)
        name = injecting_name(architecture)
        # The bank is filled and weights are merged in place, which needs the model in this process.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        vllm: Any = importlib.import_module("vllm")
        # By its class, not its name, vLLM need not start a process to look at it.
        vllm.ModelRegistry.register_model(name, injecting_class(architecture))
        self.bank = bank
        self.max_model_len = settings.max_model_len
        self._new_params = vllm.SamplingParams
        fixed = _fixed_arguments(settings, name, bank)
        self._llm: Any = vllm.LLM(**{**_DEFAULTS, **settings.extra, **fixed})
        (self.model,) = self._llm.apply_model(lambda model: model)
        causal = self.model.causal_model()
        self.views = linear_views(causal.model, causal.packed_modules_mapping)

    def set_adapter(self, base: Mapping[str, Tensor], factors: Mapping[str, LoraFactors]) -> None:
        """Become ``base + adapter``: see ``weights.merge``."""
        merge(self.views, base, factors)
        self._forget()

    def rollouts(
        self,
        prompts: Sequence[OraclePrompt],
        vectors: Sequence[Tensor],
        sampling: Sampling,
        end_ids: Sequence[int],
        seeds: Sequence[int],
    ) -> Rollouts:
        """Sample completions, with a seed for each prompt; temperature 0 is greedy.

        Raises UserError for a prompt whose placeholders and vectors differ in number, or that
        leaves no room for ``max_new_tokens``.
        """
        check_counts(prompts, vectors)
        self._check_lengths(prompts, sampling.max_new_tokens)
        result = Rollouts([], [])
        for chunk in chunks_that_fit([len(row_KD) for row_KD in vectors], self.bank.rows):
            ids = self._load([prompts[i] for i in chunk], [vectors[i] for i in chunk])
            params = [
                self._new_params(
                    n=sampling.num_samples,
                    temperature=sampling.temperature,
                    max_tokens=sampling.max_new_tokens,
                    stop_token_ids=list(end_ids),
                    seed=seed,
                    logprobs=0,
                    detokenize=False,
                )
                for seed in seeds[chunk.start : chunk.stop]
            ]
            outputs = self._llm.generate(
                [{"prompt_token_ids": row} for row in ids], params, use_tqdm=False
            )
            _collect(outputs, result)
        return result

    def _load(self, prompts: Sequence[OraclePrompt], vectors: Sequence[Tensor]) -> list[list[int]]:
        """Put the vectors into the bank; return the prompts' ids with their rows in them."""
        self.model.bank.fill(torch.cat(list(vectors)))
        # Blocks cached so far are of the rows' last content.
        self._forget()
        ids, row = [], 0
        for prompt, row_KD in zip(prompts, vectors, strict=True):
            ids.append(virtual_ids(prompt.input_ids, prompt.positions, row, self.bank))
            row += len(row_KD)
        return ids

    def _forget(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM still holds cached blocks: it is used by something else.")

    def _check_lengths(self, prompts: Sequence[OraclePrompt], max_new_tokens: int) -> None:
        for prompt in prompts:
            if len(prompt.input_ids) + max_new_tokens > self.max_model_len:
                raise UserError(
                    f"a prompt of {len(prompt.input_ids)} tokens and {max_new_tokens} new ones "
                    f"exceed the {self.max_model_len} tokens that vLLM was started for."
                )


def _collect(outputs: Sequence[Any], result: Rollouts) -> None:
    """Append vLLM's outputs, in the order of the requests, to the result."""
    for output in outputs:
        samples = sorted(output.outputs, key=lambda sample: sample.index)
        result.token_ids.append([list(sample.token_ids) for sample in samples])
        assert result.logprobs is not None
        result.logprobs.append([_sampled_logprobs(sample) for sample in samples])


def _sampled_logprobs(sample: Any) -> list[float]:
    return [
        position[token].logprob
        for position, token in zip(sample.logprobs, sample.token_ids, strict=True)
    ]
