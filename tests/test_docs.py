"""What the documents and the messages name is there: pages, files, modules, flags."""

import contextlib
import io
import re
from functools import cache
from pathlib import Path

import pytest

from grpo_ao.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md"]
PAGES += sorted(DOCS.rglob("*.md"))
SOURCES = sorted((ROOT / "grpo_ao").rglob("*.py"))
ELSEWHERE = {
    *("preset", "config", "help", "version"),  # read before the fields are
    *("step_seconds", "completions_per_second", "fine_tune_seconds"),  # of `budget`
    *("extra", "gpus", "check", "num_processes", "config_file", "nproc_per_node"),  # of others
    *("abbrev", "always", "dirty", "exclude"),  # of git
    *("layer", "lora_rank"),  # which the changes say are gone
}


@cache
def flags() -> set[str]:
    """Every flag of the commands, of the benchmarks and of the tools."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        for command in COMMANDS:
            with contextlib.suppress(SystemExit):
                main([command, "--help"])
    names = set(re.findall(r"--(\w+)", shown.getvalue()))
    for path in (*(ROOT / "benchmarks").glob("*.py"), ROOT / "tools" / "mini_world" / "build.py"):
        source = path.read_text()
        names |= set(re.findall(r'add_argument\(\s*"--(\w+)"', source))
        names |= set(re.findall(r"^    (\w+): ", source, re.MULTILINE))
    return names | ELSEWHERE


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_flag_that_is_named_exists(path):
    named = re.findall(r"(?<![\w-])--([a-z][\w-]*)", path.read_text())
    assert {name for name in named if name.replace("-", "_") not in flags()} == set()


def is_there(name: str) -> bool:
    """Whether a dotted name is a package or a module, or what a module's file speaks of."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        source = ROOT.joinpath(*parts[:cut]).with_suffix(".py")
        if source.exists():
            return all(part in source.read_text() for part in parts[cut:])
    return ROOT.joinpath(*parts).is_dir()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_and_module_that_is_named_exists(page):
    text = page.read_text()
    files = re.findall(r"\b((?:grpo_ao|tests|tools|benchmarks|configs)/[\w./-]*\w)", text)
    assert [file for file in files if not (ROOT / file).exists()] == []
    names = re.findall(r"(?<![\w/])((?:grpo_ao|benchmarks|tools)(?:\.[a-z]\w*)+)", text)
    assert [n for n in names if not is_there(n) and not (page.parent / n).exists()] == []


def test_the_site_has_every_page_and_its_links_lead_somewhere():
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert (
        set(re.findall(r"- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)) == pages
    )
    broken = {
        f"{page}: {link}"
        for page in pages
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", (DOCS / page).read_text())
        if not (DOCS / page).parent.joinpath(link).exists()
    }
    assert not broken
