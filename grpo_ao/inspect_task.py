"""Oracles in inspect (``inspect eval grpo_ao/oracle``): a solver, a scorer, calibration metrics.

Needs ``pip install 'grpo-ao[inspect]'``. A sample's input is the question, its target the right
answer, and its metadata holds the ``text`` that the subject reads; ``family`` and ``choices`` may
stand beside it. Put ``activation_oracle()`` and ``informativeness()`` into tasks of your own, or
run ``oracle``, which asks the benchmarks of ``grpo-ao evaluate``.
"""

# pyright: reportMissingImports=false
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import SampleScore, Score, Scorer, Target, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from grpo_ao.answer import Answer
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.measuring.ask import graded
from grpo_ao.measuring.metrics import SUMMARY, Columns, metric_values
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.probe import Positions, Probe
from grpo_ao.probes.benchmarks import load_items
from grpo_ao.probes.items import Item
from grpo_ao.probes.names import BENCHMARKS


@cache
def _loaded(model: str | None, adapter: str | None) -> Oracle:
    if model is None or adapter is None:
        return Oracle.mini()
    return Oracle.from_pretrained(model, adapter)


@solver
def activation_oracle(
    base: str | None = None,
    oracle_lora_path: str | None = None,
    layers: int | Sequence[int] | None = None,
    positions: str = "last:20",
) -> Solver:
    """Answer a sample's question from the activations over its text; inspect's model is not asked.

    Without ``base`` and ``oracle_lora_path`` it is the mini oracle; ``layers`` and ``positions``
    are those of ``Oracle.ask``.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        oracle = _loaded(base, oracle_lora_path)
        read = oracle.layers_read(layers)
        question = state.input_text
        (said,) = oracle.ask([state.metadata["text"]], [question], read, positions)
        state.output = ModelOutput.from_content("activation oracle", said.completion)
        state.metadata |= {"layers": read, "positions": positions}
        state.completed = True
        return state

    return solve


@metric
def calibration() -> Any:
    """Return the metrics of a run's summary, those that are defined."""

    def measured(scores: list[SampleScore]) -> dict[str, float]:
        rows = [score.score.metadata or {} for score in scores]
        values = metric_values(Columns.of([Answer.from_row(row) for row in rows]))
        return {name: values[name] for name in SUMMARY if values[name] == values[name]}

    return measured


@scorer(metrics=[calibration()])
def informativeness() -> Scorer:
    """Grade an oracle's answer against the target; metrics are of grade and stated confidence."""

    async def score(state: TaskState, target: Target) -> Score:
        about = state.metadata
        choices = tuple(about.get("choices", ()))
        probe = Probe(
            about["text"],
            state.input_text,
            "closed" if choices or target.text in ("Yes", "No") else "open",
            tuple(about["layers"]),
            Positions.parse(about["positions"]),
            target.text,
            about.get("family", "inspect"),
            choices,
        )
        read = Answer.read(probe, state.output.completion)
        (answer,) = await graded(ReferenceJudge(), [read])
        return Score(
            value=answer.informativeness or 0.0, answer=answer.answer, metadata=answer.to_row()
        )

    return score


@task
def oracle(
    base: str | None = None,
    oracle_lora_path: str | None = None,
    layers: int | Sequence[int] | None = None,
    positions: str = "last:20",
    benchmarks: Sequence[str] = BENCHMARKS,
    num_contexts: int = 250,
    data_dir: str | None = None,
) -> Task:
    """Ask an oracle the benchmarks: the mini world's without ``base``, else the paper's."""
    names = [benchmarks] if isinstance(benchmarks, str) else benchmarks
    folder = None if data_dir is None else Path(data_dir)
    items = load_items("mini" if base is None else "paper", names, num_contexts, folder)
    return Task(
        dataset=MemoryDataset([_sample(item) for item in items]),
        solver=activation_oracle(base, oracle_lora_path, layers, positions),
        scorer=informativeness(),
    )


def _sample(item: Item) -> Sample:
    about = {"text": item.text, "family": item.family, "choices": list(item.choices)}
    return Sample(input=item.question, target=str(item.target), metadata=about)
