"""What a run refuses, or warns of, before a model is loaded."""

from collections.abc import Iterable
from pathlib import Path

import torch

from grpo_ao.config import TrainConfig
from grpo_ao.errors import UserError
from grpo_ao.oracle.loading import ADAPTER_FILES, adapter_config, check_sources, load_config
from grpo_ao.oracle.sources import resolve_files
from grpo_ao.oracle.spec import load_spec
from grpo_ao.oracle.vllm.client import check_servers
from grpo_ao.oracle.vllm.engine import (
    check_architecture,
    check_arguments,
    check_installed,
)
from grpo_ao.tracking import check_destination


def check_start(config: TrainConfig, device: torch.device) -> None:
    """Raise, in one sentence, for what is missing or does not fit, the cheapest first."""
    check_destination(config.report_to)
    _check_oracle(config, device)


def _check_oracle(config: TrainConfig, device: torch.device) -> None:
    adapter = resolve_files(config.oracle_lora_path, ADAPTER_FILES)
    _check_rank(adapter, config.oracle_lora_path, config.lora_rank)
    check_sources(config.model, adapter, device, load_in_4bit=config.load_in_4bit)


def _check_rank(folder: Path, adapter: str, expected: int) -> None:
    rank = adapter_config(folder).r
    if rank != expected:
        raise UserError(
            f"the adapter {adapter} has LoRA rank {rank}, not {expected}: "
            f"give --lora_rank {rank} or another adapter."
        )


def check_rollouts(config: TrainConfig, processes: int) -> None:
    """Raise, in one sentence, where vLLM could not complete the prompts of this run."""
    if config.rollout != "vllm":
        if config.vllm_servers or config.vllm:
            raise UserError(
                "--vllm_servers and the section vllm: are used by --rollout vllm alone: add it."
            )
        return
    if config.load_in_4bit:
        raise UserError(
            "--rollout vllm needs an unquantized base model: leave out --load_in_4bit, or use "
            "--rollout transformers."
        )
    check_architecture(load_config(config.model))
    if config.vllm_servers:
        check_servers(config.vllm_servers, processes)
    else:
        check_installed()
        check_arguments(config.vllm)


def check_divided(config: TrainConfig, processes: int) -> None:
    """Raise, in one sentence, where this run cannot divide the base's weights (FSDP)."""
    if processes == 1:
        raise UserError(
            "FSDP divides the base model's weights over processes, but there is one alone: launch "
            "with --num_processes 2 or more, or without FSDP."
        )
    if config.load_in_4bit:
        raise UserError(
            "FSDP does not divide a base model in 4 bits: leave out --load_in_4bit, or launch with "
            "configs/accelerate/ddp.yaml."
        )
    if config.judge == "local":
        raise UserError(
            "--judge local reads with the base model while other processes may not, but FSDP "
            "divides it: use --judge api, or launch with configs/accelerate/ddp.yaml."
        )
    if config.rollout == "vllm" and not config.vllm_servers:
        raise UserError(
            "vLLM in the trainer's process merges into whole base weights, but FSDP divides them: "
            "name --vllm_servers, or use --rollout transformers."
        )


def warnings_of(config: TrainConfig, layers: Iterable[int]) -> list[str]:
    """Return a sentence for each setting that is allowed and probably not wanted."""
    found = []
    if config.calibration_lambda > 0.5:
        least = 1 / (2 * config.calibration_lambda)
        found.append(
            f"--calibration_lambda {config.calibration_lambda:g} is above 0.5: an answer that is "
            f"better than the stated confidence by more than {least:.2f} loses reward, so that "
            "the oracle learns to answer worse than it can; 0.5 or less never does that."
        )
    known = load_spec(config.oracle_lora_path).single_layers
    unknown = sorted(set(layers) - set(known)) if known else []
    if unknown:
        found.append(
            f"the adapter was trained to read layers {_listed(known)}, and this run reads "
            f"{_listed(unknown)}: set --layer_percents to depths that it knows."
        )
    return found


def _listed(layers: Iterable[int]) -> str:
    return ", ".join(map(str, layers))
