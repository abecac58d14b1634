"""The folder of a run: one writer at a time, a record of what was run, files written whole."""

import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_ao.errors import UserError

# What may differ on resuming: the flag itself, and the folder, which may have been moved.
_FREE_ON_RESUME = {"resume", "output_dir"}
# Nor does a grade depend on how the judge is reached, and what an outage needs may change.
_FREE_ON_RESUME |= {"judge_api_key_env", "judge_concurrency", "judge_cache", "max_unscored"}
_FREE_ON_RESUME |= {"judge_input_price", "judge_output_price"}
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a killed writer, leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def atomic_write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically; NaN becomes null, which every reader understands."""
    atomic_write_text(path, json.dumps(finite(value), indent=2) + "\n")


def finite(value: Any) -> Any:
    """Replace NaN and infinities by ``None``, inside lists and dictionaries too."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def append_jsonl(path: Path, rows: Sequence[dict]) -> None:
    """Append rows and force them to the disk."""
    with path.open("a") as file:
        file.writelines(json.dumps(finite(row)) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(path: Path) -> list[dict]:
    """Read the whole lines of a file; half a line that a killed run left at the end is dropped."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().rpartition("\n")[0].splitlines()]


def text_digest(texts: Sequence[str]) -> str:
    """Hash a list of texts, in order, to sixteen hex digits."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\x00")
    return digest.hexdigest()[:16]


class RunFolder:
    """A run's folder, locked by this process until it ends.

    Raises UserError if a run is there and ``resume`` is not given, if there is none to resume, and
    if another process is at work in it.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        record = path / "run.json"
        if record.exists() and not resume:
            raise UserError(
                f"{path} holds a run already: go on with it by --resume, or give another "
                "--output_dir."
            )
        if resume and not record.exists():
            raise UserError(f"there is no run to resume in {path}.")
        path.mkdir(parents=True, exist_ok=True)
        self._lock = (path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is running in {path}: wait for it.") from error

    def write_record(self, config: dict, data: dict[str, str]) -> None:
        """Write ``run.json``, or, on resuming, refuse settings that differ from the first ones."""
        path = self.path / "run.json"
        if path.exists():
            _check_same(json.loads(path.read_text()), config, data)
            return
        record = {
            "command": sys.argv,
            "config": config,
            "data": data,
            "seed": config["seed"],
            "git_commit": git_commit(Path(__file__).resolve().parent),
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
            "python": platform.python_version(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        atomic_write_json(path, record)


def _check_same(record: dict, config: dict, data: dict[str, str]) -> None:
    now = json.loads(json.dumps({"config": config, "data": data}))
    for part in ("config", "data"):
        for name, value in now[part].items():
            before = record[part].get(name)
            if before != value and name not in _FREE_ON_RESUME:
                raise UserError(
                    f"cannot resume: '{name}' was {before!r} in this run and is {value!r} now."
                )


def record_judge(folder: Path, identity: str) -> None:
    """Write the judge's identity (JSON) into ``run.json``; on resuming, refuse another judge."""
    path = folder / "run.json"
    record, judge = json.loads(path.read_text()), json.loads(identity)
    if "judge" not in record:
        atomic_write_json(path, record | {"judge": judge})
    elif record["judge"] != judge:
        raise UserError(
            f"cannot resume: the judge was {record['judge']} in this run and is {judge} now."
        )


def git_commit(folder: Path) -> str | None:
    """Return the commit that is checked out, with "-dirty" behind it where files were changed."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
