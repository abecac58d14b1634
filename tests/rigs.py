"""A small trainer on a tiny random model: planted vectors, a reward that needs no judge."""

from dataclasses import replace
from pathlib import Path

import torch

from grpo_ao.answer import Answer
from grpo_ao.checks import trainer_config
from grpo_ao.config import TrainConfig
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sampling import RolloutEngine
from grpo_ao.oracle.sharding import shard_base
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probe import Positions, Probe
from grpo_ao.processes import Processes
from grpo_ao.reward import reward_rule, rewarded
from grpo_ao.tracking import Reporter
from grpo_ao.training.monitor import Monitor
from grpo_ao.training.rewarding import CalibratedReward
from grpo_ao.training.trainer import OracleGRPOTrainer
from tests.tiny import WIDTH, add_adapter, tiny_model, tiny_tokenizer

LAYER = 2
SLOTS = 3


def probe(number: int) -> Probe:
    # Questions of different lengths, so that prompts are padded; some hold the placeholder.
    question = f"Is it {number} ? " + "so " * (5 * number % 4)
    # Every third reads two layers at once.
    layers = (LAYER - 1, LAYER) if number % 3 == 2 else (LAYER,)
    return Probe("a text", question, "closed", layers, Positions.parse("last:3"), "Yes", "family")


def planted_table(oracle: Oracle, rows: int) -> ProbeTable:
    """A table whose every vector is another one."""
    generator = torch.Generator().manual_seed(3)
    probes = [probe(number) for number in range(rows)]
    counts = [len(p.layers) * (1 + n % SLOTS) for n, p in enumerate(probes)]
    vectors = [torch.randn(count, WIDTH, generator=generator) for count in counts]
    return ProbeTable.of_vectors(oracle, probes, vectors)


class LetterReward(CalibratedReward):
    """Rewards completions by their letters: every completion differs, none needs a tag.

    ``unscored`` says which completions of a batch get no grade.
    """

    def __init__(self, unscored: tuple[int, ...] = ()) -> None:
        super().__init__(ReferenceJudge(), reward_rule(0.5))
        self._unscored = unscored
        self.completions: list[str] = []

    async def __call__(self, prompts, completions, completion_ids, **_):
        self.completions += completions
        self.last = [self._rewarded_by_letters(*given) for given in enumerate(self.last)]
        return [answer.reward for answer in self.last]

    def _rewarded_by_letters(self, index: int, answer: Answer) -> Answer:
        if index in self._unscored:
            return replace(answer, confidence=0.5, reason="no")
        grade = (sum(answer.completion.encode()) % 97) / 97
        return rewarded(replace(answer, confidence=0.5, informativeness=grade), self.rule)


def make_oracle(architecture: str = "qwen3", dropout: float = 0.0, divided: bool = False) -> Oracle:
    base = tiny_model(architecture)
    if divided:
        shard_base(base, torch.device("cpu"))
    model = add_adapter(base, dropout=dropout)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return Oracle(model, tiny_tokenizer(), OracleSpec())


def make_trainer(
    folder: Path,
    oracle: Oracle,
    table: ProbeTable,
    reward: CalibratedReward | None = None,
    trl: dict | None = None,
    engine: RolloutEngine | None = None,
    **settings,
) -> OracleGRPOTrainer:
    """A trainer as a run makes it, at a size of seconds."""
    defaults = {
        "output_dir": folder,
        "num_generations": 2,
        "questions_per_step": 4,
        "max_steps": 2,
        "max_new_tokens": 5,
        "lr": 1e-2,
        "kl_penalty": 0.0,
        "temperature": 1.0,
        "gradient_checkpointing": False,
        "save_steps": 1000,
        "plot_every": 1000,
        "max_unscored": 1.0,
        "trl": trl or {},
    }
    config = TrainConfig(**(defaults | settings))
    reward = LetterReward() if reward is None else reward
    processes = Processes()
    main = processes.is_main
    monitor = Monitor(folder, Reporter(), config.plot_every) if main else None
    return OracleGRPOTrainer(
        oracle,
        table,
        reward,
        engine or oracle,
        trainer_config(config, processes),
        config.credit,
        config.scale_rewards,
        config.tag_outcome,
        monitor,
        config.max_unscored,
    )


def adapter_weights(oracle: Oracle) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().clone()
        for name, parameter in oracle.model.named_parameters()
        if ".default." in name
    }
