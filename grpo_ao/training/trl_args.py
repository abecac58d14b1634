"""Our configuration in TRL's terms."""

from trl.trainer.grpo_config import GRPOConfig

from grpo_ao.training.config import TrainConfig


def trainer_config(config: TrainConfig, on_cuda: bool) -> GRPOConfig:
    """Translate our configuration into TRL's; the section ``trl`` adds to it.

    Sampling is untruncated: log-probabilities of a truncated distribution would be of another one.
    """
    settings = {
        "output_dir": str(config.output_dir / "checkpoints"),
        "per_device_train_batch_size": config.questions_per_step * config.num_generations,
        "gradient_accumulation_steps": 1,
        "num_generations": config.num_generations,
        "max_completion_length": config.max_new_tokens,
        "temperature": config.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "beta": config.kl_penalty,
        "learning_rate": config.lr,
        "scale_rewards": config.scale_rewards,
        "max_steps": config.max_steps,
        "save_steps": config.save_steps,
        "seed": config.seed,
        "gradient_checkpointing": config.gradient_checkpointing,
        "bf16": on_cuda,
        "use_cpu": not on_cuda,
        "disable_dropout": True,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return GRPOConfig(**(settings | config.trl))
