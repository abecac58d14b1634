"""What the README prints is what a reader can type."""

import re
import shlex
from pathlib import Path

import pytest

from grpo_ao.cli import COMMANDS, main, parse_eval_config, parse_train_config

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
LINES = re.findall(r"^    grpo-ao (.*)$", README, re.MULTILINE)
TYPED = [shlex.split(line, comments=True) for line in LINES]


def test_its_python_runs_and_states_a_confidence(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(block, {})
    out, err = capsys.readouterr()
    assert re.fullmatch(r"\S.* [01]\.\d+\n", out)
    assert err == ""  # no bar of a library


@pytest.mark.parametrize("words", TYPED, ids=" ".join)
def test_its_commands_are_understood(words, capsys, request):
    command, *arguments = words
    if "smollm2-135m" in words:  # its base comes from the Hub
        words = [*words, "--model", str(request.getfixturevalue("smollm2"))]
    assert command in COMMANDS
    if command in ("train", "budget"):
        parse_train_config(arguments)
    elif command == "evaluate":
        parse_eval_config(arguments)
    else:
        main(words)
        assert capsys.readouterr().out


def test_its_links_lead_somewhere():
    root = Path(__file__).resolve().parents[1]
    links = re.findall(r"\]\(([^)#]+)", README)
    assert links
    assert [link for link in links if not (root / link).exists()] == []
