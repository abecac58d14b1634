"""Programs that come with other people's files, tried in a process bounded in time and memory.

A regular expression in an adapter's configuration and a chat template may take for ever, or all
memory, and nothing stops them inside of this process.
"""

import json
import subprocess
import sys
from collections.abc import Collection
from functools import cache
from typing import Any

_BOUNDS = """
import json, os, resource, sys
bounds = {"CORE": 0, "CPU": 5} | ({"AS": 2**30} if sys.platform == "linux" else {})
for name, most in bounds.items():
    resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
sys.excepthook = lambda kind, *_: os._exit(kind is MemoryError)
given = json.load(sys.stdin)
"""
# As PEFT matches them.
_MATCH = """
import contextlib, re
patterns, names = given
for pattern in patterns:
    with contextlib.suppress(re.error, OverflowError):
        for name in names:
            re.fullmatch(pattern, name)
            re.match(rf"(.*\\.)?({pattern})$", name)
"""
# As transformers does, without loading it.
_FILL_IN = """
import re
from jinja2.sandbox import ImmutableSandboxedEnvironment
environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
)
environment.filters["tojson"] = json.dumps
own = {"strftime_now": str, "raise_exception": lambda *_: os._exit(0), "enable_thinking": False}
template = environment.from_string(re.sub(r"{%-?\\s*(end)?generation\\s*-?%}", "", given))
turns = [{"role": role, "content": "It is late."} for role in ("user", "assistant")]
for messages in (turns[:1], turns):
    template.render(messages=messages, add_generation_prompt=messages == turns[:1], **own)
"""


def matches_end(patterns: Collection[str], names: Collection[str]) -> bool:
    """Say whether matching regular expressions with names of modules ends soon."""
    return _ends(_MATCH, [[*patterns], [*names]])


@cache
def filling_in_ends(chat_template: str) -> bool:
    """Say whether a chat template is filled in soon, and without gigabytes."""
    return _ends(_FILL_IN, chat_template)


def _ends(program: str, given: Any) -> bool:
    """Say whether a program ends on ``given`` in 5 seconds of the CPU and a gigabyte, however."""
    command = [sys.executable, "-P", "-c", _BOUNDS + program]
    text = json.dumps(given)
    done = subprocess.run(command, input=text, text=True, stderr=subprocess.DEVNULL, check=False)
    return done.returncode == 0
