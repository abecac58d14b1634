import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from grpo_ao.terminal import headed, terminal

MARKUP = [
    "[/INST] hi",
    "[bold]",
    "[/v2]",
    "a [/b] c",
    ":smile:",
    "[link=x]y[/link]",
    "\\[x]",
    "[[",
    "a\\",
]


def printed(*things) -> str:
    console = terminal()
    console.width = 200
    with console.capture() as captured:
        for thing in things:
            console.print(thing)
    return captured.get()


@pytest.mark.parametrize("text", MARKUP)
def test_other_peoples_text_is_printed_as_it_is(text):
    table = Table(title=text)
    table.add_column(text)
    table.add_row(text)
    assert printed(text) == text + "\n"
    assert printed(table).count(text) == 3
    assert printed(headed(f"{text}:", text)) == f"{text}: {text}\n"


@given(st.text("[]/\\abc=:# ", max_size=60))
def test_no_text_is_markup(text):
    assert printed(text).replace("\n", "") == text.replace("\n", "")


PRINTING = """
from grpo_ao.terminal import take_any_text, terminal
take_any_text()
print("Zürich … \\ud800")
terminal().print("Zürich … \\ud800 [/b]")
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_takes_any_text(encoding):
    environment = {
        "PYTHONIOENCODING": encoding,
        "LC_ALL": "POSIX",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", PRINTING], env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(b"\\ud800")
    assert b"rich" in done.stderr
    assert b"[/b]" in done.stderr
