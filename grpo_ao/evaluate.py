"""An evaluation from beginning to end: items, answers, metrics, figures."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from grpo_ao.config import EvalConfig
from grpo_ao.errors import UserError
from grpo_ao.files import RunFolder, text_digest
from grpo_ao.measuring.ask import Asking, ask_probes, probes_of_items
from grpo_ao.oracle.activations import select_positions, subject_token_ids
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
from grpo_ao.probe import Positions, Probe
from grpo_ao.probes.benchmarks import groups, load_items
from grpo_ao.report.results import Rows, write_results
from grpo_ao.terminal import terminal
from grpo_ao.tracking import PhaseProgress, Reporter, make_reporter

_SHOWN = ("accuracy", "ece10", "auroc", "brier", "parse_rate")
_SAMPLED = 100


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Evaluate the oracles that ``config`` names; return what ``metrics.json`` holds.

    Whatever can be refused without a model is refused before one is loaded.
    """
    started = time.perf_counter()
    console = terminal()
    adapters = oracle_names([config.oracle_lora_path, *config.compare])
    items = load_items(config.suite, config.benchmarks, config.num_contexts, config.data_dir)
    model_config = load_config(config.model)
    layers = [layer_index(num_decoder_layers(model_config), p) for p in config.layer_percents]
    positions = [Positions.parse(spec) for spec in config.positions]
    probes = probes_of_items(items, layers, positions, config.one_layer)
    check_lengths(load_tokenizer(config.model), probes)
    digests = {name: _adapter_digest(config.model, path) for name, path in adapters.items()}
    folder = _open_folder(config, text_digest([p.id for p in probes]), digests)
    reporter = make_reporter(config.report_to, folder.path, config.settings())
    progress = PhaseProgress(console)
    asking = Asking(config.max_new_tokens, config.batch_size, agreement=True)
    rows: dict[str, Rows] = {}
    for name, adapter in adapters.items():
        oracle = Oracle.from_pretrained(config.model, adapter)
        with progress.phase(f"asking {name}", len(probes)) as bar:
            path = folder.path / "rows.jsonl"
            rows[name] = ask_probes(oracle, name, probes, path, asking, bar.advance)
        oracle.detach()
        _warn_unstated(console, name, rows[name])
    pooled = groups(config.suite, list(dict.fromkeys(item.benchmark for item in items)))
    count = len(rows) * (
        len(pooled) + sum(map(len, pooled.values())) + len(layers) + len(positions) + 13
    )
    with progress.phase("measuring", count) as bar:
        seconds = time.perf_counter() - started
        metrics = write_results(folder.path, config.settings(), rows, pooled, seconds, bar.advance)
    report_results(reporter, folder.path, metrics, rows, step=0)
    console.print(f"tables: {folder.path / 'metrics.md'}   figures and rows: {folder.path}")
    return metrics


def oracle_names(adapters: Sequence[str]) -> dict[str, str]:
    """Name each adapter by the end of its path, or by all of it where two ends are alike."""
    if len(set(adapters)) < len(adapters):
        raise UserError("an adapter is named twice: give each to compare once.")
    short = [_short(adapter) for adapter in adapters]
    return dict(zip(short if len(set(short)) == len(short) else adapters, adapters, strict=True))


def _short(adapter: str) -> str:
    parts = Path(adapter).parts
    return "/".join(parts[-2:]) if Path(adapter).is_dir() else adapter


def check_lengths(tokenizer: PreTrainedTokenizerBase, probes: Sequence[Probe]) -> None:
    """Raise UserError for the first text that is too short for the positions read of it."""
    seen = {(probe.text, probe.positions) for probe in probes}
    lengths = {text: len(subject_token_ids(tokenizer, text)) for text in {t for t, _ in seen}}
    for probe in probes:
        select_positions(tokenizer, range(lengths[probe.text]), probe.positions, probe.text)


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
    except ValueError as error:
        raise UserError(
            f"{config.output_dir} holds rows of another evaluation; {error} Give another "
            "--output_dir."
        ) from error
    return folder


def _warn_unstated(console: Console, name: str, rows: Rows) -> None:
    if not any(row["parsed"] for row in rows):
        console.print(
            f"none of the {len(rows)} outputs of {name} states a confidence, so that only its "
            "accuracy and the baselines are known: train it, or warm-start it, first.",
            style="bold",
        )


def report_results(
    reporter: Reporter, folder: Path, metrics: dict[str, Any], rows: dict[str, Rows], step: int
) -> None:
    """Send summary values, figures, the table of benchmarks and a sample of rows."""
    name, oracle = next(iter(metrics["oracles"].items()))
    values = {
        f"eval/{group}/{metric}": m[metric]["value"]
        for part in ("groups", "benchmarks")
        for group, m in oracle[part].items()
        for metric in _SHOWN
        if m[metric]["value"] == m[metric]["value"]
    }
    reporter.scalars(step, values)
    for picture in sorted(folder.glob("*.png")):
        reporter.image(step, f"eval/{picture.stem}", picture)
    table = [
        {"benchmark": key, "n": m["n"]} | {metric: m[metric]["value"] for metric in _SHOWN}
        for key, m in {**oracle["groups"], **oracle["benchmarks"]}.items()
    ]
    reporter.table(step, "eval/benchmarks", table)
    kept = ("benchmark", "question", "target", "completion", "confidence", "correct", "layer")
    every = max(1, len(rows[name]) // _SAMPLED)
    sample = [{key: row[key] for key in kept} for row in rows[name][::every]]
    reporter.table(step, "eval/rows", sample)
