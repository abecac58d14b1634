"""An evaluation from beginning to end: benchmarks, answers, metrics, figures."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from grpo_ao.answer import Answer
from grpo_ao.checks import check_rollouts, date_warning
from grpo_ao.config import EvalConfig
from grpo_ao.errors import UserError
from grpo_ao.files import RunFolder, Stopwatch, holds_run
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.measuring.again import Controls
from grpo_ao.measuring.ask import Asking, ask
from grpo_ao.measuring.reading import CONTROLS, Controlled
from grpo_ao.oracle.activations import SubjectTexts
from grpo_ao.oracle.gguf import local_base
from grpo_ao.oracle.hub import adapter_names, resolve_files
from grpo_ao.oracle.layers import num_decoder_layers
from grpo_ao.oracle.loading import (
    ADAPTER_FILES,
    OracleSources,
    check_sources,
    choose_device,
)
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sampling import RolloutEngine
from grpo_ao.oracle.store import SubjectReader, model_fingerprint
from grpo_ao.oracle.subject import check_subject
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.oracle.turn import template_digest
from grpo_ao.oracle.vllm.client import start_vllm
from grpo_ao.probe import Positions, Probe
from grpo_ao.probes.benchmarks import groups, load_items
from grpo_ao.probes.items import probes_of
from grpo_ao.probes.limits import ProbeLimits, readable
from grpo_ao.probes.load import data_digest
from grpo_ao.processes import Processes, device_name
from grpo_ao.report.tables import SHOWN, in_short, oracle_tables, own_parts, write_results
from grpo_ao.terminal import headed, terminal
from grpo_ao.tracking import PhaseProgress, Reporter, make_reporter

_SAMPLED = 100
# The most tokens that asking whether an answer is right adds to question and answer.
_TRUTH_TOKENS = 64


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Evaluate the oracles that ``config`` names; return what ``metrics.json`` holds.

    Whatever can be refused without a model is refused before one is loaded. One base model serves
    all oracles: it reads the texts once for each subject, and the adapters take turns on it.
    """
    started = time.perf_counter()
    console = terminal()
    config = replace(config, model=str(local_base(config.model)))
    adapters = adapter_names([config.oracle_lora_path, *config.compare])
    check_rollouts(config, config.model, [*adapters.values()])
    subjects = adapter_names(config.subject_lora)
    for subject in subjects.values():
        check_subject(config.model, subject)
    device = choose_device(None)
    sources = [check_sources(config.model, path, device) for path in adapters.values()]
    texts = SubjectTexts(sources[0].tokenizer)
    probes = _probes(config, texts, sources, [*subjects] or [""], console)
    digests = {name: _digest(path) for name, path in adapters.items()}
    digests |= {f"of subject {name}": _digest(path) for name, path in subjects.items()}
    data = {f"adapter {name}": digest for name, digest in digests.items()}
    data |= {"items": data_digest(probes), "chat template": template_digest(texts.tokenizer)}
    folder = _open_folder(config, data)
    reporter = make_reporter(config.report_to, folder.path, config.settings())
    progress = PhaseProgress(console)
    stopwatch = Stopwatch(folder.path / "run.json", started)
    oracle = Oracle.load(sources[0])
    table = _table(config, oracle, probes, texts, subjects, progress)
    engine = _engine(config, oracle, table)
    answers, controlled = {}, {}
    for name, adapter in adapters.items():
        if answers:
            oracle = oracle.with_adapter(adapter)
            table = ProbeTable.of_vectors(oracle, probes, table.vectors)
        oracle.engine = engine
        answers[name] = _ask(config, oracle, name, table, progress)
        if config.controls:
            controlled[name] = _controlled(config, oracle, name, table, answers[name], progress)
        stopwatch.keep(progress.seconds(), device_name(device))
    pooled = groups(config.suite, list(dict.fromkeys(probe.family for probe in probes)))
    seconds = stopwatch.seconds
    metrics = write_results(
        folder.path, config.settings(), answers, pooled, seconds, controlled, progress.track
    )
    report_results(reporter, folder.path, metrics, next(iter(answers.values())))
    _tell(console, metrics, folder.path)
    return metrics


def _tell(console: Console, metrics: dict[str, Any], folder: Path) -> None:
    for name, measured in metrics["oracles"].items():
        for sentence in (in_short(measured), *measured["findings"]):
            console.print(headed(f"{name}:", sentence), highlight=False)
    console.print(f"tables: {folder / 'metrics.md'}   figures and rows: {folder}")


def _probes(
    config: EvalConfig,
    texts: SubjectTexts,
    sources: Sequence[OracleSources],
    subjects: Sequence[str],
    console: Console,
) -> list[Probe]:
    all_limits = [
        ProbeLimits.of(texts, config.model, of.adapter, config.max_new_tokens) for of in sources
    ]
    num_layers = num_decoder_layers(sources[0].config)
    layers = all_limits[0].spec.layers(num_layers, config.layers, config.layer_percents)
    warnings = [limits.spec.warning_of(layers) for limits in all_limits]
    for warning in filter(None, [date_warning(config.model, texts.tokenizer), *warnings]):
        console.print(headed("warning:", warning))
    positions = [Positions.parse(spec) for spec in config.positions]
    asked = (config.suite, config.benchmarks, config.num_contexts, config.data_dir)
    one_layer = config.one_layer and not (config.layers or config.layer_percents)
    probes = [
        replace(probe, subject=subject)
        for subject in subjects
        for probe in probes_of(load_items(*asked, subject), layers, positions, one_layer)
    ]
    return readable(all_limits, probes, report=console.print)


def _table(
    config: EvalConfig,
    oracle: Oracle,
    probes: Sequence[Probe],
    texts: SubjectTexts,
    subjects: Mapping[str, str],
    progress: PhaseProgress,
) -> ProbeTable:
    """Read the probes of each subject, which follow one another."""
    base, folder = model_fingerprint(config.model), config.output_dir.parent / "activations"
    reader = SubjectReader(oracle.model, texts, base, folder, progress, Processes())
    vectors = []
    for name, adapter in (subjects or {"": None}).items():
        own = [probe for probe in probes if probe.subject == name]
        store = reader.read(f"activations {name}".strip(), own, adapter, name)
        vectors += [store.vectors(probe.id) for probe in own]
    return ProbeTable.of_vectors(oracle, probes, vectors)


def _engine(config: EvalConfig, oracle: Oracle, table: ProbeTable) -> RolloutEngine | None:
    """Start vLLM, if it completes prompts in the place of the oracle's model, for all adapters."""
    if config.rollout == "transformers":
        return None
    # One of the controls repeats an answer and asks whether it is right.
    room = config.max_new_tokens + _TRUTH_TOKENS + config.max_new_tokens
    server = config.vllm_servers[0] if config.vllm_servers else None
    return start_vllm(oracle, table.prompts, room, server, config.vllm_gpu_memory, config.vllm)


def _ask(
    config: EvalConfig, oracle: Oracle, name: str, table: ProbeTable, progress: PhaseProgress
) -> list[Answer]:
    how = _how(config)._replace(probabilities=True, agreement=len(table))
    path = config.output_dir / "rows.jsonl"
    with progress.phase(f"asking {name}", len(table)) as bar:
        return ask(
            oracle, table, ReferenceJudge(), how, Processes(), path, {"oracle": name}, bar.advance
        )


def _how(config: EvalConfig) -> Asking:
    return Asking(config.max_new_tokens, batch_size=config.batch_size)


def _controlled(
    config: EvalConfig,
    oracle: Oracle,
    name: str,
    table: ProbeTable,
    answers: Sequence[Answer],
    progress: PhaseProgress,
) -> Controlled:
    count = min(config.control_probes, len(table))
    with progress.phase(f"controls of {name}", count * (len(CONTROLS) + 2)) as bar:
        controls = Controls(
            oracle,
            table,
            answers,
            ReferenceJudge(),
            _how(config),
            Processes(),
            count,
            config.output_dir / "controls.jsonl",
            {"oracle": name},
            bar.advance,
        )
        return controls.controlled()


def _digest(adapter: str) -> str:
    """Hash an adapter's weights and what it says of its prompt."""
    digest, folder = hashlib.sha256(), resolve_files(adapter, ADAPTER_FILES)
    for path in sorted([*folder.glob("adapter_model.*"), *folder.glob("ao_config.json")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _open_folder(config: EvalConfig, data: dict[str, str]) -> RunFolder:
    """Open the output folder; UserError if its rows were made with other settings."""
    folder = RunFolder(config.output_dir, resume=holds_run(config.output_dir))
    try:
        changeable, known = {"controls", "control_probes"}, EvalConfig().settings()
        folder.write_record(config.settings(), data, changeable, known)
    except UserError as error:
        raise UserError(
            f"{config.output_dir} holds rows of another evaluation; {error} Give another "
            "--output_dir."
        ) from error
    return folder


def report_results(
    reporter: Reporter,
    folder: Path,
    metrics: dict[str, Any],
    answers: Sequence[Answer],
) -> None:
    """Send the first oracle's summary values, figures, tables and some answers.

    Where questions are closed and open, names have the kind in them.
    """
    parts = own_parts(metrics)
    for oracle in parts:
        head = "eval" if len(parts) == 1 else f"eval/{oracle['kind']}"
        values = {
            f"{head}/{group}/{metric}": m[metric]["value"]
            for part in ("groups", "benchmarks")
            for group, m in oracle[part].items()
            for metric in SHOWN
            if m[metric]["value"] == m[metric]["value"]
        }
        reporter.scalars(0, values)
        findings = [{"finding": sentence} for sentence in oracle["findings"]]
        reporter.table(0, f"{head}/findings", findings)
        for table in oracle_tables(oracle):
            lines = [[name, *cells] for name, cells in table.rows.items()]
            rows = [dict(zip(table.columns, line, strict=True)) for line in lines]
            reporter.table(0, f"{head}/{table.title}", rows)
    for picture in sorted(folder.glob("*.png")):
        reporter.image(0, f"eval/{picture.stem}", picture)
    kept = ("family", "question", "reference", "completion", "confidence", "informativeness")
    rows = [answer.to_row() for answer in answers[:: max(1, len(answers) // _SAMPLED)]]
    reporter.table(0, "eval/rows", [{key: row[key] for key in (*kept, "layer")} for row in rows])
