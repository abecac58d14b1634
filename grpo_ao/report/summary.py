"""What a run measured before and after training: rows, table, figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from grpo_ao.measuring.heldout import arrays
from grpo_ao.report.plots import Panel, reliability_diagram, save
from grpo_ao.reward import ScoredCompletion

MODES = ("sampled", "greedy")


def draw_reliability(
    path: Path, measured: Mapping[str, Mapping[str, Sequence[ScoredCompletion]]]
) -> None:
    """Draw the reliability diagram of each measurement's sampled answers, side by side."""
    panels = [
        Panel(when, *_stated(modes["sampled"]), tone=when) for when, modes in measured.items()
    ]
    save(reliability_diagram(panels), path)


def _stated(scored: Sequence[ScoredCompletion]) -> tuple[np.ndarray, np.ndarray]:
    confidence, score, parsed = arrays(scored)
    return confidence[parsed], score[parsed]


def summary_table(summary: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Lay out the summary: one line a metric, one column a measurement."""
    table = Table(title="held-out probes")
    table.add_column("metric", no_wrap=True)
    columns = [(when, mode) for mode in MODES for when in summary]
    for when, mode in columns:
        table.add_column(f"{when}, {mode}", justify="right")
    for metric in next(iter(summary.values()))["sampled"]:
        values = [summary[when][mode][metric] for when, mode in columns]
        shown = [str(v) if isinstance(v, int) else f"{v:.3f}" for v in values]
        table.add_row(metric, *shown)
    return table
