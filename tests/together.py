"""What the test of several processes does in each of them, and once more in one alone."""

import os
import random
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from grpo_ao.cli import main as grpo_ao
from grpo_ao.files import MINI_WEIGHTS
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.measuring.ask import Asking, ask, complete
from grpo_ao.oracle.activations import read_residuals
from grpo_ao.oracle.layers import decoder_layers
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sampling import Rollouts, Sampling
from grpo_ao.oracle.sharding import together
from grpo_ao.processes import Processes
from grpo_ao.training import fine_tuning
from grpo_ao.training.fine_tuning import Start, Target, fine_tune
from tests.rigs import adapter_weights, make_oracle, make_trainer, planted_table
from tests.tiny import ARCHITECTURES, token_id
from tests.training.test_trainer import Readback

QUESTIONS, GENERATIONS, ACCUMULATION = 3, 4, 2


class WrittenRollouts:
    """The same completions whatever the number of processes: drawn by their place in the step."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.step = 0

    def rollouts(self, prompts, vectors, sampling: Sampling) -> Rollouts:
        num_samples = sampling.num_samples
        self.step += 1
        first = self.processes.index * len(prompts) * num_samples
        places = iter(range(first, first + len(prompts) * num_samples))
        completions = [[self._written(next(places)) for _ in range(num_samples)] for _ in prompts]
        return Rollouts(completions, None)

    def _written(self, place: int) -> list[int]:
        rng = random.Random(f"{self.step} {place}")
        tag = [rng.randrange(200) for _ in range(rng.randrange(3))]
        answer = [rng.randrange(200) for _ in range(1 + rng.randrange(5))]
        return [*tag, token_id("]"), *answer, token_id("<|im_end|>")]


def grpo(
    folder: Path, processes: Processes, divided: bool = False
) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Two GRPO steps; return the adapter, and the rows whose own vectors were read back."""
    oracle = make_oracle(divided=divided)
    table = planted_table(oracle, 7)
    readback = Readback(oracle, table)
    size = QUESTIONS * GENERATIONS // (processes.count * ACCUMULATION)
    trainer = make_trainer(
        folder,
        oracle,
        table,
        engine=WrittenRollouts(processes),
        # SGD, since Adam makes a step of the smallest difference.
        trl={
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": ACCUMULATION,
            "optim": "sgd",
        },
        questions_per_step=QUESTIONS,
        num_generations=GENERATIONS,
        kl_penalty=0.1,
        lr=0.3,
        gradient_checkpointing=True,
    )
    trainer.train()
    return adapter_weights(oracle), readback.rows_seen


def warm_start(
    processes: Processes, divided: bool = False
) -> tuple[dict[str, Tensor], list[float]]:
    """Three steps of fine-tuning; return the adapter and the losses."""
    oracle = make_oracle(divided=divided)
    table = planted_table(oracle, 7)
    targets = [
        Target(row, ids, [0.5 + row / 7] * len(ids), ids[1:], 2)
        for row in range(7)
        for ids in (list(range(10 + row, 14 + 2 * row)), list(range(40, 44)))
    ]
    losses = fine_tune(
        processes, oracle, Start(oracle), table, targets, 3, 5, 1e-2, 0, lambda _: None
    )
    return adapter_weights(oracle), losses


def check_shares(folder: Path, processes: Processes) -> None:
    """Rows that are measured by shares come back as if one process had measured them all."""
    oracle = make_oracle()
    table = planted_table(oracle, 7)
    whole = complete(oracle, table, range(7), 0.0, 6)
    assert processes.gathered(complete(oracle, table, processes.share(range(7)), 0.0, 6)) == (whole)
    path = folder / "samples.jsonl"
    wanted = table.part([6, 0, 3, 4, 2])
    how = Asking(max_new_tokens=6, temperature=1.0, num_samples=2)
    arguments = (oracle, wanted, ReferenceJudge(), how, processes, path)
    answers = ask(*arguments)
    assert [answer.probe for answer in answers] == [p for p in wanted.probes for _ in range(2)]
    processes.wait()
    assert len(path.read_text().splitlines()) == len(answers)
    assert ask(*arguments) == answers


def check_divided(processes: Processes, architecture: str) -> None:
    """Divided weights give each process what whole ones do, however many passes each makes."""
    whole, oracle = make_oracle(architecture), make_oracle(architecture, divided=True)
    for layer, divided in zip(*map(base_layers, (whole, oracle)), strict=True):
        assert {name: p.numel() / 2 for name, p in layer.items()} == {
            name: p.to_local().numel() for name, p in divided.items() if isinstance(p, DTensor)
        }
    table = planted_table(whole, 7)
    expected = complete(whole, table, range(7), 0.0, 6)
    rows = range(7) if processes.is_main else range(2)
    with together(oracle.model):
        found = [complete(oracle, table, [row], 0.0, 6)[0] for row in rows]
    assert found == expected[: len(rows)]
    ids, reads = [[3, 4, 5, 6], [7, 8, 9]], [[((1,), range(2)), ((2,), range(1, 2))]] * 2
    # One process reads, the others take part in its passes; an injection that is bound stays so.
    oracle.hook.bind(table.injection([0, 1]))
    with together(oracle.model), together(oracle.model):
        if processes.is_main:
            resid = read_residuals(oracle.model, ids, reads, 1)
            assert torch.equal(resid[1][1], read_residuals(whole.model, ids, reads, 1)[1][1])
    assert oracle.hook.bound is not None


def base_layers(oracle: Oracle) -> list[dict[str, Tensor]]:
    """The base weights of each decoder layer by name."""
    layers = decoder_layers(oracle.model)
    return [{n: p for n, p in x.named_parameters() if "lora" not in n} for x in layers]


def grpo_alone(folder: Path) -> None:
    """GRPO and nothing else, under whatever the launcher has set."""
    processes = Processes()
    adapter, _ = grpo(folder, processes)
    torch.save(adapter, folder / f"process_{processes.index}.pt")


def oracle_flags(output: Path) -> list[str]:
    """How three steps of the supervised stage are asked for, of passes that processes divide."""
    flags = ["--model", str(MINI_WEIGHTS / "base"), "--benchmarks", "--questions", "mini"]
    flags += ["--lora_rank", "2", "--lr", "3e-3", "--examples", "45", "--batch_size", "15"]
    return ["make-oracle", *flags, "--eval_examples", "1", "--output_dir", str(output)]


def main(folder: Path) -> None:
    processes = Processes()
    check_shares(folder, processes)
    for architecture in ARCHITECTURES:
        check_divided(processes, architecture)
    adapter, rows_seen = grpo(folder / "together", processes)
    warmed, losses = warm_start(processes)
    result = {"adapter": adapter, "rows": rows_seen, "warmed": warmed, "losses": losses}
    divided, _ = grpo(folder / "divided", processes, divided=True)
    # With a pass for each question, one process makes two and the other three.
    with patch.object(fine_tuning, "_TOKENS", 1):
        result |= {"divided": divided, "divided_warmed": warm_start(processes, divided=True)[0]}
    torch.save(result, folder / f"process_{processes.index}.pt")
    small = {"eval_probes": 5, "validation_probes": 5, "warm_start_probes": 5, "plot_every": 2}
    small |= {"warm_start_steps": 1, "warm_start_batch": 3, "max_steps": 2, "save_steps": 2}
    small |= {"questions_per_step": 3, "num_generations": 2}
    flags = [text for name, value in small.items() for text in (f"--{name}", str(value))]
    train = ["train", "--preset", "mini", *flags, "--output_dir"]
    grpo_ao([*train, str(folder / "run")])
    grpo_ao(oracle_flags(folder / "oracle"))
    # What accelerate's launcher sets for configs/accelerate/fsdp.yaml.
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    grpo_ao([*train, str(folder / "divided_base" / "run")])


if __name__ == "__main__":
    {"all": main, "grpo": grpo_alone}[sys.argv[1]](Path(sys.argv[2]))
