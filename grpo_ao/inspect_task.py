"""Oracles in inspect (``inspect eval grpo_ao/oracle``): a solver, a scorer, calibration metrics.

Needs ``pip install '.[inspect]'`` in the clone. A sample's input is the question, its target the
right answer, and its metadata holds the ``text`` that the subject reads; ``family`` and ``choices``
may stand beside it. Put ``activation_oracle()`` and ``informativeness()`` into tasks of your own,
or run ``oracle``, which asks the benchmarks of ``grpo-ao evaluate``.
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
from grpo_ao.errors import UserError
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.measuring.ask import graded
from grpo_ao.measuring.metrics import SUMMARY, Columns, metric_values
from grpo_ao.oracle.hub import adapter_name
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.probe import Positions, Probe
from grpo_ao.probes.benchmarks import load_items
from grpo_ao.probes.items import Item
from grpo_ao.probes.names import BENCHMARKS

Layers = int | Sequence[int | str] | None


@cache
def _loaded(model: str | None, adapter: str | None) -> Oracle:
    if model is None or adapter is None:
        return Oracle.mini()
    return Oracle.from_pretrained(model, adapter)


@solver
def activation_oracle(
    base: str | None = None,
    oracle_lora_path: str | None = None,
    layers: Layers = None,
    positions: str = "last:20",
    subject_lora: str | None = None,
) -> Solver:
    """Answer a sample's question from the activations over its text; inspect's model is not asked.

    Without ``base`` and ``oracle_lora_path`` it is the mini oracle; ``layers``, ``positions`` and
    ``subject_lora`` are those of ``Oracle.ask``.
    """
    if (base is None) != (oracle_lora_path is None):
        raise UserError("give both base and oracle_lora_path, or neither for the mini oracle.")

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        oracle = _loaded(base, oracle_lora_path)
        read = oracle.layers_read(_indices(layers))
        (said,) = oracle.ask(
            [state.metadata["text"]],
            [state.input_text],
            read,
            positions,
            subject_lora=subject_lora,
        )
        state.output = ModelOutput.from_content("activation oracle", said.completion)
        state.metadata |= {"layers": read, "positions": positions}
        state.metadata |= {"subject": _subject(subject_lora)}
        state.completed = True
        return state

    return solve


def _indices(layers: Layers) -> int | list[int] | None:
    """Return layers as numbers: ``-T layers=7,15,22`` gives texts."""
    return layers if layers is None or isinstance(layers, int) else [int(one) for one in layers]


def _subject(subject_lora: str | None) -> str:
    return "" if subject_lora is None else adapter_name(subject_lora)


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
            about.get("subject", ""),
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
    layers: Layers = None,
    positions: str = "last:20",
    subject_lora: str | None = None,
    benchmarks: Sequence[str] = BENCHMARKS,
    num_contexts: int = 250,
    data_dir: str | None = None,
) -> Task:
    """Ask an oracle the benchmarks: the mini world's without ``base``, else the paper's."""
    asked = activation_oracle(base, oracle_lora_path, layers, positions, subject_lora)
    names = [benchmarks] if isinstance(benchmarks, str) else benchmarks
    folder = None if data_dir is None else Path(data_dir)
    suite = "mini" if base is None else "paper"
    items = load_items(suite, names, num_contexts, folder, _subject(subject_lora))
    return Task(
        dataset=MemoryDataset([_sample(item) for item in items]),
        solver=asked,
        scorer=informativeness(),
    )


def _sample(item: Item) -> Sample:
    about = {"text": item.text, "family": item.family, "choices": list(item.choices)}
    return Sample(input=item.question, target=str(item.target), metadata=about)
