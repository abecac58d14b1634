"""Our configuration in TRL's terms."""

from trl.trainer.grpo_config import GRPOConfig

from grpo_ao.config import TrainConfig
from grpo_ao.errors import UserError
from grpo_ao.processes import Processes


def check_divides(config: TrainConfig, processes: int) -> None:
    """Refuse a step whose completions cannot be divided evenly over the processes."""
    size = config.questions_per_step * config.num_generations
    if size % processes and "per_device_train_batch_size" not in config.trl:
        raise UserError(
            f"{config.questions_per_step} questions x {config.num_generations} completions a step "
            f"are {size}, which cannot be divided over {processes} processes: change "
            "--questions_per_step or the number of processes."
        )


def trainer_config(config: TrainConfig, processes: Processes) -> GRPOConfig:
    """Translate our configuration into TRL's; the section ``trl`` adds to it.

    A step's completions are divided over the processes: their number changes no step. Sampling is
    untruncated: log-probabilities of a truncated distribution would be of another one.
    """
    on_cuda = processes.device.type == "cuda"
    completions = config.questions_per_step * config.num_generations
    settings = {
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
        "max_steps": config.max_steps,
        "save_steps": config.save_steps,
        "seed": config.seed,
        "gradient_checkpointing": config.gradient_checkpointing,
        "bf16": on_cuda,
        "use_cpu": not on_cuda,
        # Every trained weight takes part in every step (see make_trainable).
        "ddp_find_unused_parameters": False,
        "disable_dropout": True,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return GRPOConfig(**(settings | config.trl))
