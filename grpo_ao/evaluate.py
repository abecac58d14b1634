"""An evaluation from beginning to end: benchmarks, answers, metrics, figures."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from grpo_ao.answer import Answer
from grpo_ao.config import EvalConfig
from grpo_ao.errors import UserError
from grpo_ao.files import RunFolder, text_digest
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.measuring.ask import Asking, ask
from grpo_ao.oracle.layers import layer_index, num_decoder_layers
from grpo_ao.oracle.loading import (
    ADAPTER_FILES,
    check_adapter,
    load_config,
    load_tokenizer,
    meta_model,
)
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sources import resolve_files
from grpo_ao.oracle.store import ActivationStore, model_fingerprint
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probe import Positions, Probe
from grpo_ao.probes.benchmarks import groups, load_items
from grpo_ao.probes.load import check_lengths, probes_of_items
from grpo_ao.processes import Processes
from grpo_ao.report.tables import SHOWN, write_results
from grpo_ao.terminal import terminal
from grpo_ao.tracking import PhaseProgress, Reporter, make_reporter

_SAMPLED = 100


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Evaluate the oracles that ``config`` names; return what ``metrics.json`` holds.

    Whatever can be refused without a model is refused before one is loaded. One base model serves
    all oracles: it reads the texts once, and the adapters take turns on it.
    """
    started = time.perf_counter()
    console = terminal()
    adapters = oracle_names([config.oracle_lora_path, *config.compare])
    probes = _probes(config)
    digests = {name: _adapter_digest(config.model, path) for name, path in adapters.items()}
    folder = _open_folder(config, text_digest([p.id for p in probes]), digests)
    reporter = make_reporter(config.report_to, folder.path, config.settings())
    progress = PhaseProgress(console)
    first, *others = adapters.items()
    oracle = Oracle.from_pretrained(config.model, first[1])
    table = _table(config, oracle, probes, progress)
    answers = {first[0]: _ask(config, oracle, first[0], table, progress)}
    for name, adapter in others:
        oracle = oracle.with_adapter(adapter)
        table = ProbeTable.of_vectors(oracle, probes, table.vectors)
        answers[name] = _ask(config, oracle, name, table, progress)
    for name, given in answers.items():
        _warn_unstated(console, name, given)
    pooled = groups(config.suite, list(dict.fromkeys(probe.family for probe in probes)))
    rows = len(pooled) + len(pooled["all"]) + len(config.layer_percents) + len(config.positions)
    with progress.phase("measuring", len(answers) * (rows + 13)) as bar:
        seconds = time.perf_counter() - started
        metrics = write_results(
            folder.path, config.settings(), answers, pooled, seconds, bar.advance
        )
    report_results(reporter, folder.path, metrics, answers[first[0]], step=0)
    console.print(f"tables: {folder.path / 'metrics.md'}   figures and rows: {folder.path}")
    return metrics


def _probes(config: EvalConfig) -> list[Probe]:
    items = load_items(config.suite, config.benchmarks, config.num_contexts, config.data_dir)
    num_layers = num_decoder_layers(load_config(config.model))
    layers = [layer_index(num_layers, percent) for percent in config.layer_percents]
    positions = [Positions.parse(spec) for spec in config.positions]
    probes = probes_of_items(items, layers, positions, config.one_layer)
    check_lengths(load_tokenizer(config.model), probes)
    return probes


def _table(
    config: EvalConfig, oracle: Oracle, probes: Sequence[Probe], progress: PhaseProgress
) -> ProbeTable:
    texts = len({probe.text for probe in probes})
    with progress.phase("activations", texts) as bar:
        store = ActivationStore.build(
            config.output_dir.parent / "activations",
            oracle.model,
            oracle.tokenizer,
            probes,
            model_fingerprint(config.model),
            progress=bar.to,
        )
        bar.to(texts)
    return ProbeTable.build(oracle, probes, store)


def _ask(
    config: EvalConfig, oracle: Oracle, name: str, table: ProbeTable, progress: PhaseProgress
) -> list[Answer]:
    how = Asking(
        config.max_new_tokens,
        batch_size=config.batch_size,
        probabilities=True,
        agreement=len(table),
    )
    path = config.output_dir / "rows.jsonl"
    with progress.phase(f"asking {name}", len(table)) as bar:
        return ask(
            oracle, table, ReferenceJudge(), how, Processes(), path, {"oracle": name}, bar.advance
        )


def oracle_names(adapters: Sequence[str]) -> dict[str, str]:
    """Name each adapter by the end of its path, or by all of it where two ends are alike."""
    if len(set(adapters)) < len(adapters):
        raise UserError("an adapter is named twice: give each to compare once.")
    short = [_short(adapter) for adapter in adapters]
    return dict(zip(short if len(set(short)) == len(short) else adapters, adapters, strict=True))


def _short(adapter: str) -> str:
    parts = Path(adapter).parts
    return "/".join(parts[-2:]) if Path(adapter).is_dir() else adapter


def _adapter_digest(model: str, adapter: str) -> str:
    """Check that the adapter fits the model; return a hash of its weights."""
    folder = resolve_files(adapter, ADAPTER_FILES)
    check_adapter(model, meta_model(load_config(model)), folder)
    digest = hashlib.sha256()
    for path in sorted(folder.glob("adapter_model.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _open_folder(config: EvalConfig, items: str, adapters: dict[str, str]) -> RunFolder:
    """Open the output folder; UserError if its rows were made with other settings."""
    record = config.output_dir / "run.json"
    folder = RunFolder(config.output_dir, resume=record.exists())
    data = {"items": items} | {f"adapter {name}": digest for name, digest in adapters.items()}
    try:
        folder.write_record(config.settings(), data)
    except UserError as error:
        raise UserError(
            f"{config.output_dir} holds rows of another evaluation; {error} Give another "
            "--output_dir."
        ) from error
    return folder


def _warn_unstated(console: Console, name: str, answers: Sequence[Answer]) -> None:
    if not any(answer.parsed for answer in answers):
        console.print(
            f"none of the {len(answers)} outputs of {name} states a confidence, so that only its "
            "accuracy and the baselines are known: train it, or warm-start it, first.",
            style="bold",
        )


def report_results(
    reporter: Reporter,
    folder: Path,
    metrics: dict[str, Any],
    answers: Sequence[Answer],
    step: int,
) -> None:
    """Send the first oracle's summary values, figures, table of benchmarks and some answers."""
    oracle = next(iter(metrics["oracles"].values()))
    values = {
        f"eval/{group}/{metric}": m[metric]["value"]
        for part in ("groups", "benchmarks")
        for group, m in oracle[part].items()
        for metric in SHOWN
        if m[metric]["value"] == m[metric]["value"]
    }
    reporter.scalars(step, values)
    for picture in sorted(folder.glob("*.png")):
        reporter.image(step, f"eval/{picture.stem}", picture)
    table = [
        {"benchmark": key, "n": m["n"]} | {metric: m[metric]["value"] for metric in SHOWN}
        for key, m in {**oracle["groups"], **oracle["benchmarks"]}.items()
    ]
    reporter.table(step, "eval/benchmarks", table)
    kept = ("family", "question", "reference", "completion", "confidence", "informativeness")
    rows = [answer.to_row() for answer in answers[:: max(1, len(answers) // _SAMPLED)]]
    reporter.table(step, "eval/rows", [{key: row[key] for key in (*kept, "layer")} for row in rows])
