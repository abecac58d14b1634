"""Pages of tables: an evaluation, and a comparison of runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from grpo_ao.errors import UserError
from grpo_ao.files import atomic_write_text, read_json
from grpo_ao.report.formats import Table
from grpo_ao.report.page import PAGE, page_environment
from grpo_ao.report.plots import page_svg
from grpo_ao.report.tables import difference_tables, oracle_tables


class Part(NamedTuple):
    """A section of a page."""

    title: str
    tables: Sequence[Table]
    sentences: Sequence[str] = ()
    figures: Sequence[Markup] = ()


def write_tables(path: Path, title: str, note: str, parts: Sequence[Part]) -> Path:
    """Write a page of tables, one file that fetches nothing, and return its path."""
    style = Markup((PAGE / "report.css").read_text(encoding="utf-8"))
    page = page_environment().get_template("tables.html.jinja")
    atomic_write_text(path, page.render(title=title, note=note, parts=parts, style=style))
    return path


def write_evaluation(folder: Path) -> Path:
    """Write ``report.html`` into the folder of an evaluation; UserError for an unfinished one."""
    if not (folder / "metrics.json").is_file():
        raise UserError(f"the evaluation in {folder} has no metrics.json yet: let it end first.")
    metrics = read_json(folder / "metrics.json")
    figures = [
        page_svg(path.read_text(encoding="utf-8"), path.stem.replace("_", " "))
        for path in sorted(folder.glob("*.svg"))
    ]
    parts = [
        Part(name, oracle_tables(oracle), oracle["findings"])
        for name, oracle in metrics["oracles"].items()
    ]
    parts += [Part("Figures", [], figures=figures), Part("", difference_tables(metrics))]
    note = "Benchmarks, greedy answers. Brackets: 95 % intervals, by bootstrap over texts."
    return write_tables(folder / "report.html", folder.resolve().name, note, parts)
