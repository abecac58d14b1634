"""What is printed: other people's text as it is, on terminals of any encoding."""

import sys
from io import TextIOWrapper

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def take_any_text() -> None:
    """Let output escape what the terminal's encoding lacks, half of a surrogate pair among it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def terminal(stderr: bool = True, quiet: bool = False) -> Console:
    """Return a console for which "[/INST]", ":smile:" and the like are text."""
    return Console(stderr=stderr, quiet=quiet, markup=False, highlight=False, emoji=False)


def headed(heading: str, text: str) -> Text:
    """Return a line of text behind a heading that catches the eye."""
    return Text.assemble((heading, "bold yellow"), " ", text)


def progress_bar(console: Console, title: str, *notes: str) -> Progress:
    """Return a bar with its count, notes behind that, the time taken and the time left.

    Title and notes may name ``{task.description}``.
    """
    return Progress(
        TextColumn(title, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        *(TextColumn(note, markup=False) for note in notes),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
