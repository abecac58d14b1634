"""What a run refuses, or warns of, before a model is loaded: the cheapest first."""

import shutil
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from trl.trainer.grpo_config import GRPOConfig

from grpo_ao.config import RolloutFlags, TrainConfig
from grpo_ao.errors import UserError
from grpo_ao.oracle.context import context_length
from grpo_ao.oracle.hub import resolve_files
from grpo_ao.oracle.loading import (
    ADAPTER_FILES,
    OracleSources,
    adapter_config,
    check_sources,
    load_config,
)
from grpo_ao.oracle.merging import reason_not_plain
from grpo_ao.oracle.spec import load_spec
from grpo_ao.oracle.subject import check_subject
from grpo_ao.oracle.turn import writes_the_date
from grpo_ao.oracle.vllm.client import check_servers
from grpo_ao.oracle.vllm.engine import check_architecture, check_arguments, check_installed
from grpo_ao.probe import Layers
from grpo_ao.processes import Processes
from grpo_ao.reward import reward_rule
from grpo_ao.tracking import check_destinations
from grpo_ao.training.trl_args import grpo_config


def check_start(config: TrainConfig, processes: Processes, sharded: bool) -> OracleSources:
    """Return what the oracle is loaded from; UserError for what is missing or does not fit.

    ``sharded`` is the base (FSDP).
    """
    check_processes(config, processes.count)
    if sharded:
        check_sharded(config, processes.count)
    trainer_config(config, processes)
    reward_rule(config.calibration_lambda, config.reward)
    check_destinations(config.report_to)
    _check_context(config)
    if config.rollout == "vllm" and config.load_in_4bit:
        raise UserError(
            "--rollout vllm needs an unquantized base model: leave out --load_in_4bit, or use "
            "--rollout transformers."
        )
    check_rollouts(config, config.model, [config.oracle_lora_path], processes.count)
    if config.subject_lora is not None:
        check_subject(config.model, config.subject_lora)
    sources = check_sources(
        config.model,
        config.oracle_lora_path,
        processes.device,
        load_in_4bit=config.load_in_4bit,
    )
    _check_space(config, sources.adapter_size)
    return sources


def _check_space(config: TrainConfig, adapter_size: int) -> None:
    """Refuse a disk that lacks room for the checkpoints of GRPO that are still to be written.

    Each holds the adapter, AdamW's two moments and, with a KL penalty, the reference, all of them
    in float32, whatever the adapter was stored in.
    """
    weights = 4 * adapter_size
    count = -(-config.max_steps // config.save_steps)
    count = min(count, config.trl.get("save_total_limit") or count)
    kept = sum(p.stat().st_size for p in config.output_dir.glob("checkpoints/*/*") if p.is_file())
    needed = count * weights * (4 if config.kl_penalty else 3) - kept
    folder = next(p for p in config.output_dir.resolve().parents if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e9:.3g} GB left, and the checkpoints of this run need "
            f"{needed / 1e9:.3g}: free some, raise --save_steps, or set save_total_limit in the "
            "section trl:."
        )


def check_processes(config: TrainConfig, processes: int) -> None:
    """Refuse a step that cannot be divided evenly, and GPUs that no process of the run would use.

    Without a launcher transformers' trainer would spread a batch over all visible GPUs by itself.
    """
    if processes == 1 and torch.cuda.device_count() > 1:
        raise UserError(
            f"{torch.cuda.device_count()} GPUs are visible to one process: choose one by "
            "CUDA_VISIBLE_DEVICES=0, or start a process on each with `accelerate launch`."
        )
    size = config.questions_per_step * config.num_generations
    if size % processes and "per_device_train_batch_size" not in config.trl:
        raise UserError(
            f"{config.questions_per_step} questions x {config.num_generations} completions a step "
            f"are {size}, which cannot be divided over {processes} processes: change "
            "--questions_per_step or the number of processes."
        )


def check_questions(config: TrainConfig, processes: Processes, warm_start: int, grpo: int) -> None:
    """Refuse a stage with too few questions, whose numbers are given: it would do nothing.

    TRL's sampler drops a batch that is not full, and with it the only one of a small set.
    """
    if config.warm_start != "none" and not warm_start:
        raise UserError(
            "the question set is too small to be divided between the warm start, which gets no "
            "question, and GRPO: give a larger one, or leave the warm start out by "
            "--warm_start none."
        )
    if not config.max_steps:
        return
    args = trainer_config(config, processes)
    at_once = (args.generation_batch_size or 0) // config.num_generations
    if grpo < at_once:
        also = "" if at_once == config.questions_per_step else " or the batch in the section trl:"
        raise UserError(
            f"GRPO has {grpo} questions and asks {at_once} at once, so that it would make no step: "
            f"give a larger question set, or lower --questions_per_step{also}."
        )


def trainer_config(config: TrainConfig, processes: Processes) -> GRPOConfig:
    """Translate our configuration into TRL's; the section ``trl`` adds to it.

    A step's completions are divided over the processes: their number changes no step. Sampling is
    untruncated: log-probabilities of a truncated distribution would be of another one.
    """
    on_cuda = processes.device.type == "cuda"
    completions = config.questions_per_step * config.num_generations
    settings: dict[str, Any] = {
        "output_dir": str(config.output_dir / "checkpoints"),
        "per_device_train_batch_size": completions // processes.count,
        "gradient_accumulation_steps": 1,
        "num_generations": config.num_generations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "beta": config.kl_penalty,
        "learning_rate": config.lr,
        "scale_rewards": config.scale_rewards,
        # A run without GRPO has its section checked all the same.
        "max_steps": max(config.max_steps, 1),
        "save_steps": config.save_steps,
        "seed": config.seed,
        "gradient_checkpointing": config.gradient_checkpointing,
        "bf16": on_cuda,
        "use_cpu": not on_cuda,
        # Every trained weight takes part in every step (see make_trainable).
        "ddp_find_unused_parameters": False,
        "disable_dropout": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return grpo_config(settings, config.trl)


def _check_context(config: TrainConfig) -> None:
    longest = context_length(load_config(config.model))
    if config.max_new_tokens >= longest:
        raise UserError(
            f"--max_new_tokens {config.max_new_tokens} does not fit into the {longest} positions "
            f"of {config.model}."
        )


def check_rollouts(
    flags: RolloutFlags, model: str, adapters: Sequence[str], processes: int = 1
) -> None:
    """Raise UserError where vLLM could not complete the prompts of one of the adapters."""
    if flags.rollout != "vllm":
        if flags.vllm_servers or flags.vllm:
            raise UserError(
                "--vllm_servers and the section vllm: are used by --rollout vllm alone: add it."
            )
        return
    if flags.vllm_servers and flags.vllm:
        raise UserError(
            "the section vllm: is for vLLM beside the oracle's model, and --vllm_servers run it "
            "elsewhere: leave one out."
        )
    check_architecture(load_config(model))
    if flags.vllm_servers:
        check_servers(flags.vllm_servers, processes)
    else:
        check_installed()
        check_arguments(flags.vllm)
    for adapter in adapters:
        if reason := reason_not_plain(adapter_config(resolve_files(adapter, ADAPTER_FILES))):
            raise UserError(f"--rollout vllm cannot merge {adapter}: {reason}.")
    specs = map(load_spec, adapters)
    if len({(s.hook_onto_layer, s.steering_coefficient, s.special_token) for s in specs}) > 1:
        raise UserError(
            "--rollout vllm serves adapters that are injected alike, but those of --compare differ "
            "in layer, coefficient or placeholder: evaluate them one by one."
        )


def check_sharded(config: TrainConfig, processes: int) -> None:
    """Raise UserError where this run cannot shard the base's weights (FSDP)."""
    if processes == 1:
        raise UserError(
            "FSDP divides the base model's weights over processes, but there is one alone: launch "
            "with --num_processes 2 or more, or without FSDP."
        )
    if config.load_in_4bit:
        raise UserError(
            "FSDP does not divide a base model in 4 bits: leave out --load_in_4bit, or launch "
            "without FSDP."
        )
    if config.subject_lora is not None:
        raise UserError(
            "a subject with an adapter of its own is not read where FSDP divides the base model: "
            "launch without FSDP."
        )
    if config.judge == "local":
        raise UserError(
            "--judge local reads with the base model while other processes may not, but FSDP "
            "divides it: use --judge api, or launch without FSDP."
        )
    if config.rollout == "vllm" and not config.vllm_servers:
        raise UserError(
            "vLLM in the trainer's process merges into whole base weights, but FSDP divides them: "
            "name --vllm_servers, or use --rollout transformers."
        )


def warnings_of(config: TrainConfig, sources: OracleSources, layers: Iterable[Layers]) -> list[str]:
    """Return a sentence for each setting that is allowed and probably not wanted."""
    found = []
    if config.reward is None and config.calibration_lambda > 0.5:
        least = 1 / (2 * config.calibration_lambda)
        found.append(
            f"--calibration_lambda {config.calibration_lambda:g} is above 0.5: an answer that is "
            f"better than the stated confidence by more than {least:.2f} loses reward, so that "
            "the oracle learns to answer worse than it can; 0.5 or less never does that."
        )
    if (notice := check_destinations(config.report_to)) is not None:
        found.append(notice)
    if (dated := date_warning(config.model, sources.tokenizer)) is not None:
        found.append(dated)
    if (unknown := sources.spec.warning_of(layers)) is not None:
        found.append(unknown)
    return found


def date_warning(model: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Say that a model's chat template writes the date, if it does."""
    if not writes_the_date(tokenizer):
        return None
    return (
        f"the chat template of {model} writes today's date, so that activations are others "
        "tomorrow: what is killed can be resumed today alone."
    )
