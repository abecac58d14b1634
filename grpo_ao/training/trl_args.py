"""The section ``trl:`` of a configuration: which fields of TRL's ``GRPOConfig`` a user may set."""

import math
from collections.abc import Mapping
from typing import Any, get_type_hints

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler
from transformers.training_args import trainer_log_levels
from trl.trainer.grpo_config import GRPOConfig

from grpo_ao.errors import UserError
from grpo_ao.files import typed

SET_BY_FLAG = {
    "output_dir": "--output_dir",
    "num_generations": "--num_generations",
    "beta": "--kl_penalty",
    "learning_rate": "--lr",
    "temperature": "--temperature",
    "max_completion_length": "--max_new_tokens",
    "max_steps": "--max_steps",
    "num_train_epochs": "--max_steps",
    "seed": "--seed",
    "scale_rewards": "--scale_rewards",
    "save_steps": "--save_steps",
    "save_strategy": "--save_steps",
    "report_to": "--report_to",
    "run_name": "--output_dir",
    "gradient_checkpointing": "--gradient_checkpointing",
    "activation_checkpointing": "--gradient_checkpointing",
    "push_to_hub": "--push_to_hub",
    "hub_model_id": "--push_to_hub",
    "resume_from_checkpoint": "--resume",
    "eval_steps": "--eval_steps",
}
_NOT_PASSED = {
    "completions are sampled from the distribution that their log-probabilities are of": (
        "top_p top_k min_p repetition_penalty generation_kwargs"
    ),
    "log-probabilities and completions are of the model without dropout": "disable_dropout",
    "TRL's own vLLM does not inject the activations; --rollout vllm does": (
        "use_vllm vllm_mode vllm_model_impl vllm_enable_sleep_mode vllm_structured_outputs_regex "
        "vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout "
        "vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length "
        "vllm_tensor_parallel_size"
    ),
    "completions come from the oracle's own rollouts": (
        "chat_template_kwargs cache_implementation use_transformers_continuous_batching "
        "transformers_continuous_batching_config use_transformers_paged "
        "max_tool_calling_iterations ds3_gather_for_generation use_cache"
    ),
    "a run has one reward": "reward_weights multi_objective_aggregation",
    "the KL reference is the oracle as GRPO finds it": (
        "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps"
    ),
    "the run loads the model": "model_init_kwargs trust_remote_code cast_lm_head_to_fp32",
    "the trainer addresses each row's activations itself": (
        "remove_unused_columns label_names train_sampling_strategy length_column_name "
        "dataloader_drop_last auto_find_batch_size neftune_noise_alpha label_smoothing_factor "
        "torch_compile torch_compile_backend torch_compile_mode use_liger_kernel "
        "liger_kernel_config"
    ),
    "the launcher decides it": (
        "parallelism_config fsdp fsdp_config deepspeed local_rank use_cpu bf16 fp16"
    ),
    "the run measures the oracle itself": (
        "eval_strategy eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start "
        "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps "
        "include_for_metrics batch_eval_metrics bf16_full_eval fp16_full_eval do_train do_eval "
        "do_predict load_best_model_at_end metric_for_best_model greater_is_better "
        "num_generations_eval"
    ),
    "the run keeps metrics.jsonl and rollouts.jsonl itself": (
        "logging_steps logging_strategy logging_first_step logging_nan_inf_filter log_on_each_node "
        "include_num_input_tokens_seen disable_tqdm log_completions log_multimodal "
        "num_completions_to_print log_unique_prompts log_completions_hub_repo project "
        "trackio_space_id trackio_bucket_id trackio_static_space_id"
    ),
    "a checkpoint holds all that a resumed run needs": (
        "save_only_model save_on_each_node enable_jit_checkpoint ignore_data_skip "
        "restore_callback_states_from_checkpoint"
    ),
    "--push_to_hub sends the adapter once, at the end": (
        "hub_token hub_private_repo hub_strategy hub_always_push hub_revision"
    ),
    "TRL calls it vllm_importance_sampling_clip_max": "vllm_importance_sampling_cap",
}
REFUSED = {name: reason for reason, names in _NOT_PASSED.items() for name in names.split()}
_PASSED_ON = (
    "per_device_train_batch_size gradient_accumulation_steps generation_batch_size "
    "steps_per_generation num_iterations shuffle_dataset data_seed full_determinism "
    "lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args optim_target_modules "
    "weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm average_tokens_across_devices "
    "loss_type epsilon epsilon_high delta importance_sampling_level top_entropy_quantile "
    "sapo_temperature_neg sapo_temperature_pos vespo_k_pos vespo_lambda_pos vespo_k_neg "
    "vespo_lambda_neg entropy_coef use_adaptive_entropy entropy_coef_min entropy_coef_max "
    "entropy_coef_delta entropy_target mask_truncated_completions off_policy_mask_threshold "
    "use_bias_correction_kl vllm_importance_sampling_correction vllm_importance_sampling_mode "
    "vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min router_aux_loss_coef "
    "gradient_checkpointing_kwargs activation_checkpointing_kwargs pad_to_multiple_of tf32 "
    "torch_empty_cache_steps log_level log_level_replica save_total_limit "
    "accelerator_config dataloader_num_workers dataloader_pin_memory dataloader_in_order "
    "dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context "
    "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph "
    "ddp_backend ddp_timeout debug skip_memory_metrics"
)
PASSED_ON = frozenset(_PASSED_ON.split())
# GRPOConfig takes any text here; the trainer would find out at its first step.
_CHOICES = {
    "log_level": tuple(trainer_log_levels),
    "log_level_replica": tuple(trainer_log_levels),
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "importance_sampling_level": ("token", "sequence"),
    "vllm_importance_sampling_mode": (
        *("token_truncate", "token_mask"),
        *("sequence_truncate", "sequence_mask"),
    ),
}
_SIZES = (
    *("weight_decay", "max_grad_norm", "warmup_steps", "epsilon", "epsilon_high", "delta"),
    *("sapo_temperature_neg", "sapo_temperature_pos", "top_entropy_quantile"),
)
_COUNTS = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "generation_batch_size"),
    *("steps_per_generation", "num_iterations", "pad_to_multiple_of"),
)


def check_fields(section: Mapping[str, Any]) -> None:
    """Raise UserError for a field that may not be set, and for a value that it cannot have."""
    kinds = get_type_hints(GRPOConfig)
    for name, value in section.items():
        where = f"'{name}' in section trl:"
        if name in SET_BY_FLAG:
            raise UserError(f"{where} is set by {SET_BY_FLAG[name]}.")
        if name in REFUSED:
            raise UserError(f"{where} cannot be set: {REFUSED[name]}.")
        if name not in PASSED_ON or name not in kinds:
            raise UserError(f"section trl: has '{name}', which TRL's GRPOConfig does not know.")
        try:
            typed(value, kinds[name])
        except ValueError as error:
            raise UserError(f"{where} cannot be {value!r}.") from error
        if value not in _CHOICES.get(name, (value,)):
            raise UserError(f"{where} is {value!r}: choose from {', '.join(_CHOICES[name])}.")
        if name == "save_total_limit" and value is not None and not value >= 2:
            # The last but one is deleted before the last is known to be whole.
            raise UserError(f"{where} must be at least 2, got {value!r}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{where} must be finite, got {value!r}.")
        if name in _COUNTS and value is not None and not value >= 1:
            raise UserError(f"{where} must be at least 1, got {value!r}.")
        if name in _SIZES and value is not None and not value >= 0:
            raise UserError(f"{where} must be 0 or more, got {value!r}.")
        if name == "top_entropy_quantile" and value is not None and not value <= 1:
            raise UserError(f"{where} must lie between 0 and 1, got {value!r}.")


def grpo_config(settings: Mapping[str, Any], section: Mapping[str, Any]) -> GRPOConfig:
    """Build TRL's configuration of our settings and the section, which wins.

    Raises UserError, in one sentence, for what TRL or transformers refuse of the section.
    """
    check_fields(section)
    if not section:
        return GRPOConfig(**settings)
    try:
        args = GRPOConfig(**{**settings, **section})
        _try(args)
    except Exception as error:  # each optimizer and schedule has errors of its own
        said = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"TRL refuses the section trl: {said}.") from error
    return args


def _try(args: GRPOConfig) -> None:
    """Make what the trainer makes for its first step: optimizer, schedule, loader, and so on."""
    recomputing: Any = args.gradient_checkpointing_kwargs or {"use_reentrant": False}
    checkpoint(torch.neg, torch.zeros(1, requires_grad=True), **recomputing)
    if args.optim_target_modules is not None:  # optimizers of projections need the model
        return
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    weights = {"params": [nn.Parameter(torch.zeros(1))], "weight_decay": args.weight_decay}
    steps = args.max_steps
    schedule: Any = args.lr_scheduler_kwargs
    rows: Any = [0]
    get_scheduler(
        args.lr_scheduler_type,
        kind([weights], **settings),
        args.get_warmup_steps(steps),
        steps,
        schedule,
    )
    DataLoader(
        rows,
        num_workers=args.dataloader_num_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
        persistent_workers=args.dataloader_persistent_workers,
    )
