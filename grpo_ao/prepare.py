"""What a run does before a model is loaded: find probes, try the judge, refuse what cannot be."""

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console

from grpo_ao.checks import check_questions, check_start, warnings_of
from grpo_ao.config import TrainConfig, changeable_names
from grpo_ao.files import RunFolder, record_judge
from grpo_ao.judges.factory import with_cache
from grpo_ao.judges.limits import tried_judge
from grpo_ao.judges.protocol import CheckedJudge
from grpo_ao.judges.reference import check_references
from grpo_ao.oracle.activations import SubjectTexts
from grpo_ao.oracle.hub import adapter_name
from grpo_ao.oracle.layers import num_decoder_layers
from grpo_ao.oracle.loading import OracleSources, load_config
from grpo_ao.oracle.turn import template_digest
from grpo_ao.probe import Positions, Probe
from grpo_ao.probes.benchmarks import load_items
from grpo_ao.probes.division import few_lessons, few_texts, shortage
from grpo_ao.probes.items import probes_of
from grpo_ao.probes.limits import ProbeLimits, readable
from grpo_ao.probes.load import Asked, ProbeLoader, RunProbes, data_digest
from grpo_ao.probes.names import Suite
from grpo_ao.processes import Processes, take_over_fsdp
from grpo_ao.report.card import check_push
from grpo_ao.terminal import headed, terminal
from grpo_ao.training.checkpoints import COMPLETE

# Where the paper's evaluation, for which the public oracles were trained, reads the subject.
_POSITIONS = ("token@-3", "window:50@-1")


@dataclass(frozen=True)
class Prepared:
    """What a run begins with: its probes, and its judge unless that is the model itself.

    ``lock`` keeps other processes out of the run's folder until it is left.
    """

    lock: AbstractContextManager[Any]
    processes: Processes
    console: Console
    sharded: bool
    sources: OracleSources
    texts: SubjectTexts
    probes: RunProbes
    benchmarks: list[Probe]
    judge: CheckedJudge | None


def prepare(config: TrainConfig) -> Prepared:
    """Load the probes and refuse, before a model is loaded, all that can be refused without one."""
    sharded = take_over_fsdp()
    processes = Processes()
    console = terminal(quiet=not processes.is_main)
    # What is downloaded is downloaded once; and no process goes on where the folder is refused.
    with processes.main_first():
        folder = RunFolder(config.output_dir, config.resume) if processes.is_main else None
        judge = None if config.judge == "local" else tried_judge(config)
        sources = check_start(config, processes, sharded)
        texts = SubjectTexts(sources.tokenizer)
        probes, benchmarks = probes_of_run(config, texts, console)
        check_questions(config, processes, len(probes.warm_start), len(probes.grpo))
        everything = [*chain(*probes)]
        if config.judge == "reference":
            check_references(everything)
        warnings = warnings_of(config, sources, {probe.layers for probe in everything})
        for warning in [*warnings, *_shortages(config, probes)]:
            console.print(headed("warning:", warning))
        if config.push_to_hub is not None and processes.is_main:
            check_push(config.push_to_hub, config.push_public)
        if judge is not None:
            judge = with_cache(judge, grades_file(config))
        if folder is not None:
            data = _digests(probes, benchmarks, texts)
            _record(config, folder, data, judge)
    found = (processes, console, sharded, sources, texts, probes, benchmarks, judge)
    return Prepared(folder or nullcontext(), *found)


def grades_file(config: TrainConfig) -> Path:
    """Return the file that keeps the judge's grades."""
    return config.judge_cache or config.output_dir.parent / "grades.sqlite"


def questions_asked(config: TrainConfig) -> tuple[int, int]:
    """Return how many questions the warm start asks, and how many GRPO."""
    warm_start = 0 if config.warm_start == "none" else config.warm_start_probes
    return warm_start, config.max_steps * config.questions_per_step


def _shortages(config: TrainConfig, probes: RunProbes) -> list[str]:
    warm_start, grpo = questions_asked(config)
    warnings = [
        few_lessons(warm_start, len(probes.warm_start)),
        shortage(grpo, len(probes.grpo)),
        few_texts(probes.heldout),
    ]
    return [warning for warning in warnings if warning]


def probes_of_run(
    config: TrainConfig, texts: SubjectTexts, console: Console
) -> tuple[RunProbes, list[Probe]]:
    """Return the probes of each stage, and those of the benchmarks."""
    limits = ProbeLimits.of(texts, config.model, config.oracle_lora_path, config.max_new_tokens)
    num_layers = num_decoder_layers(load_config(config.model))
    layers = limits.spec.layers(num_layers, config.layers, config.layer_percents)
    loader = ProbeLoader(
        limits,
        layers,
        Positions.parse(config.positions),
        config.strict,
        config.strict_positions,
        console.print,
    )
    asked = Asked(*questions_asked(config), config.validation_probes, config.eval_probes)
    probes = loader.load(config.questions, asked, config.heldout, config.num_prompts)
    probes = RunProbes._make(_of_subject(config, found) for found in probes)
    if not config.benchmarks:
        return probes, []
    suite = suite_of(config)
    of_subject = (config.eval_contexts, config.data_dir, _subject_name(config))
    items = load_items(suite, config.benchmarks, *of_subject)
    specs = (config.positions,) if suite == "mini" else _POSITIONS
    positions = [Positions.parse(spec) for spec in specs]
    benchmarks = probes_of(items, layers, positions)
    benchmarks = readable([limits], benchmarks, config.strict, report=console.print)
    return probes, _of_subject(config, benchmarks)


def _of_subject(config: TrainConfig, probes: Sequence[Probe]) -> list[Probe]:
    return [dataclasses.replace(probe, subject=_subject_name(config)) for probe in probes]


def _subject_name(config: TrainConfig) -> str:
    return "" if config.subject_lora is None else adapter_name(config.subject_lora)


def suite_of(config: TrainConfig) -> Suite:
    """Return whose benchmarks a run is measured on."""
    return "mini" if config.questions == "mini" else "paper"


def _digests(probes: RunProbes, benchmarks: Sequence[Probe], texts: SubjectTexts) -> dict[str, str]:
    data = {name: data_digest(found) for name, found in probes._asdict().items()}
    data |= {"benchmarks": data_digest(benchmarks)} if benchmarks else {}
    return data | {"chat template": template_digest(texts.tokenizer)}


def _record(
    config: TrainConfig, folder: RunFolder, data: dict[str, str], judge: CheckedJudge | None
) -> None:
    free = changeable_names(TrainConfig)
    # A value that stopped the run before GRPO can be mended without losing the warm start.
    if not any((folder.path / "checkpoints").glob(f"checkpoint-*/{COMPLETE}")):
        free |= {"trl"}
    defaults = dataclasses.asdict(TrainConfig())
    folder.write_record(dataclasses.asdict(config), data, free, defaults)
    if judge is not None:
        record_judge(folder.path, judge.identity)
