"""The folder of a run: one writer at a time, a record of what was run, files written whole."""

import codecs
import csv
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from grpo_ao import __version__
from grpo_ao.errors import UserError

MINI_WEIGHTS = Path(__file__).resolve().parent / "mini" / "weights"
# The calibrated oracle that ships: a LoRA adapter of a base model from the Hub.
SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_ORACLE = Path(__file__).resolve().parent / "shipped" / "smollm2-135m"
UNFINISHED = ".unfinished-"
_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EFBIG),
)
# torch.save and safetensors where there is no space left.
_FULL = ("unexpected pos", "No space left on device", "PytorchStreamWriter failed")
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")


@contextmanager
def read_faults(what: object) -> Iterator[None]:
    """Say in one sentence, a UserError, that a file of other people cannot be read.

    Damage may show in any exception, above all in libraries; only a lack of memory (torch's too) is
    no fault of the file.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"{what} cannot be read ({said:.300}): fetch it anew, or give another."
        ) from error


@contextmanager
def write_faults(path: Path) -> Iterator[None]:
    """Say in one sentence, a UserError, that a file cannot be written: a full disk, no permission.

    torch and safetensors have errors of their own for a full disk; others are left alone.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise _unwritten(path, error.strerror or str(error)) from error
    except Exception as error:
        if not any(said in str(error) for said in _FULL):
            raise
        raise _unwritten(path, "the disk is full") from error


def _unwritten(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} cannot be written: {reason}. What was written before is kept: mend this, and go "
        "on with --resume."
    )


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a file to write that takes the name ``path`` when the block ends, and not before.

    A reader, or whoever comes after a kill, finds the old file or the new one. What a kill leaves
    behind begins with ``UNFINISHED``.
    """
    if path.is_char_device() or path.is_fifo():  # for root, /dev/null would be a file from then on
        raise UserError(f"{path} cannot be written: it is a device or a pipe, not a file.")
    # In a folder of its own: safetensors writes a file of another name beside it first.
    folder = unfinished_name(path)
    unfinished = folder / path.name
    with write_faults(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            as_umask_says(unfinished)
            unfinished.replace(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def unfinished_name(path: Path) -> Path:
    """Return the name under which this process writes what will be ``path``."""
    return path.with_name(f"{UNFINISHED}{platform.node()}-{os.getpid()}-{path.name}")


def remove_unfinished(path: Path) -> None:
    """Take away what killed processes of this machine left of ``path``, in a folder of many runs.

    Another run may be writing it now.
    """
    host, name = re.escape(platform.node()), re.escape(path.name)
    for left_behind in path.parent.glob(f"{UNFINISHED}*"):
        # The name of another machine may begin with this one's.
        named = re.fullmatch(rf"{re.escape(UNFINISHED)}{host}-(\d+)-{name}", left_behind.name)
        if named and not _runs(int(named[1])):
            shutil.rmtree(left_behind, ignore_errors=True)


def _runs(process: int) -> bool:
    """Say whether a process of this machine runs, of whatever user."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def as_umask_says(path: Path) -> None:
    """Give a new file the mode of others: safetensors writes files for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a text whole, as UTF-8; half of a surrogate pair, which has none, becomes "?"."""
    with written_whole(path) as unfinished:
        unfinished.write_bytes(text.encode("utf-8", "replace"))


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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that ``atomic_write_json`` wrote; raises UserError where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}. Restore it, or begin anew.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no object. Restore it, or begin anew.")
    return value


def typed(value: Any, kind: Any) -> Any:
    """Return a value of a JSON or YAML file as one of type ``kind``; ValueError if it is none.

    A list may be a tuple and a text a path, but a text is never a number.
    """
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(kind).validate_json(json.dumps(value, default=repr), strict=True)
    except TypeError as error:
        raise ValueError(f"{value!r} cannot be written as JSON") from error


def read_run_json(folder: Path) -> dict[str, Any]:
    """Read a run's ``run.json``; raises UserError where it is damaged or has no settings."""
    record = read_json(folder / "run.json")
    if not isinstance(record.get("config"), dict):
        raise UserError(f"{folder / 'run.json'} is damaged: it holds no settings. Restore it.")
    return record


def append_jsonl(path: Path, rows: Sequence[dict]) -> None:
    """Append rows and force them to the disk; first cut off half a line that a kill left."""
    lines = "".join(json.dumps(finite(row)) + "\n" for row in rows)
    with write_faults(path):
        path.touch()
        with path.open("rb+") as file:
            _cut_torn_line(file)
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())


def _cut_torn_line(file: BinaryIO) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if size and file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def read_jsonl(path: Path) -> list[dict]:
    """Read a file that ``append_jsonl`` wrote; half a line at its end is no row.

    An absent file has no rows. Raises UserError, with the row's number, where another line is
    broken.
    """
    if not path.exists():
        return []
    try:
        with path.open("rb") as file:
            return [_own_row(path, *entry) for entry in parse_jsonl(_whole_lines(file))]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _whole_lines(file: Iterable[bytes]) -> Iterator[bytes]:
    return (line for line in file if line.endswith(b"\n"))


def _own_row(path: Path, number: int, row: Any) -> dict:
    if isinstance(row, dict):
        return row
    reason = row if isinstance(row, ValueError) else "it is no object"
    raise UserError(f"{path} is damaged: row {number} cannot be read, for {reason}. Delete it.")


def keep_rows(path: Path, wanted: Callable[[dict], bool]) -> None:
    """Leave only those rows in a file that ``append_jsonl`` wrote which are ``wanted``."""
    if path.exists():
        with read_faults(path):
            kept = [row for row in read_jsonl(path) if wanted(row)]
        atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


def parse_jsonl(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Yield the rows of JSONL with their numbers, from 1; one that cannot be read is a ValueError.

    ``lines`` end at a line feed alone, as those of a binary file do: U+2028 and U+0085 are text.
    Empty lines count, but are no rows; a byte order mark is none of the text.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _parse_line(line)


def _parse_line(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        return ValueError(f"it is not valid JSON ({error.msg})")
    except UnicodeDecodeError:
        return ValueError("it is not UTF-8")
    except RecursionError:
        return ValueError("its brackets are nested too deep")
    except ValueError:
        return ValueError("it holds an integer of too many digits")


def read_foreign_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a file that a user gives, with their numbers, from 1.

    By its ending CSV, whose first line names the columns, or parquet; anything else is JSONL, as
    ``parse_jsonl`` reads it, or one JSON array. Raises UserError where there is no file and where
    it cannot be read.
    """
    try:
        if not path.is_file():
            raise UserError(f"there is no file at {path}: give JSONL, JSON, CSV or parquet.")
        if path.suffix == ".parquet":
            yield from enumerate(_parquet_rows(path), start=1)
        elif path.suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from enumerate(csv.DictReader(file, strict=True), start=1)
        else:
            with path.open("rb") as file:
                yield from _json_rows(path, file)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no CSV of UTF-8: {error}.") from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    # A library that takes half a second to import.
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        for batch in ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise UserError(f"{path} is no parquet file: {error}.") from error


def _json_rows(path: Path, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    array = file.read(1_000).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    file.seek(0)
    if not array:
        yield from parse_jsonl(file)
        return
    entries = _parse_line(file.read())
    if isinstance(entries, ValueError):
        raise UserError(f"{path} cannot be read as a JSON array: {entries}.")
    yield from enumerate(entries, start=1)


def text_digest(texts: Sequence[str]) -> str:
    """Hash a list of texts, in order, to sixteen hex digits."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\x00")
    return digest.hexdigest()[:16]


def mark_whole(mark: Path, files: Iterable[Path], **values: Any) -> None:
    """Force files beside or below ``mark`` to the disk, then write it: their sizes and digests."""
    folder, found = mark.parent, {}
    for path in sorted(files):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        found[str(path.relative_to(folder))] = [path.stat().st_size, digest]
    atomic_write_json(mark, values | {"files": found})


def why_not_whole(mark: Path) -> str | None:
    """Return what differs from what ``mark_whole`` wrote, or None."""
    if not mark.exists():
        return f"it has no {mark.name}"
    try:
        files = {mark.parent / name: (s, d) for name, (s, d) in read_json(mark)["files"].items()}
    except (UserError, KeyError, AttributeError, TypeError, ValueError):
        return f"{mark.name} is damaged"
    for path, (size, digest) in files.items():
        name = path.relative_to(mark.parent)
        if not path.is_file():
            return f"{name} is not there"
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == digest
        if not same or path.stat().st_size != size:
            return f"{name} is damaged"
    return None


class Stopwatch:
    """The seconds of a run, in ``run.json``: of this process, and of those before it.

    Those before count up to their last ``keep``. ``started`` is this process's
    ``time.perf_counter`` at its start.
    """

    def __init__(self, path: Path, started: float) -> None:
        self._path = path
        self._started = started
        record = read_json(path)
        self._before: float = record.get("seconds", 0.0)
        self._phases_before: dict[str, float] = record.get("phases", {})

    @property
    def seconds(self) -> float:
        """All seconds so far."""
        return self._before + time.perf_counter() - self._started

    def phases(self, now: Mapping[str, float]) -> dict[str, float]:
        """Return the seconds of each phase, those of this process being ``now``."""
        before = self._phases_before
        names = {**before, **now}
        return {name: before.get(name, 0.0) + now.get(name, 0.0) for name in names}

    def keep(self, phases: Mapping[str, float], device: str) -> None:
        """Write the seconds so far, this process's by phase, and the device that they were on."""
        record = read_json(self._path)
        sums = self.phases(phases)
        kept = {
            "seconds": round(self.seconds, 1),
            "phases": {name: round(seconds, 1) for name, seconds in sums.items()},
            "devices": sorted({*record.get("devices", []), device}),
        }
        atomic_write_json(self._path, record | kept)


class RunFolder:
    """A run's folder, locked by this process until the block ends, or the process.

    Nothing is written before ``write_record``: a start that is refused leaves no folder behind.
    Raises UserError if a run is there and ``resume`` is not given, if there is none to resume, if
    another process is at work in it, and for a path that cannot hold a run.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self._lock = None
        try:
            self._check(resume)
            if path.exists():
                self._take()
        except OSError as error:
            raise _unusable(path, error.strerror or "it cannot be written") from error
        except RuntimeError as error:  # pathlib's, of a symbolic link that leads to itself
            raise _unusable(path, str(error)) from error

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()

    def _check(self, resume: bool) -> None:
        record = self.path / "run.json"
        if "\0" in str(self.path):
            raise _unusable(self.path, "no path holds a null character")
        if self.path.resolve() in (Path.cwd(), Path("/")):
            raise _unusable(self.path, "a run needs a folder of its own")
        if record.exists() and not resume:
            raise UserError(
                f"{self.path} holds a run already: go on with it by --resume, or give another "
                "--output_dir."
            )
        if resume and not record.exists():
            raise UserError(f"there is no run to resume in {self.path}.")
        above = next(p for p in (self.path, *self.path.resolve().parents) if p.exists())
        if not above.is_dir():
            raise _unusable(self.path, f"{above} is a file")
        if not os.access(above, os.W_OK):
            raise _unusable(self.path, f"{above} cannot be written to")

    def _take(self) -> None:
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is running in {self.path}: wait for it.") from error
        for left_behind in list(self.path.rglob(f"{UNFINISHED}*")):  # by a start that was killed
            if left_behind.is_dir():
                shutil.rmtree(left_behind)
            else:
                left_behind.unlink(missing_ok=True)

    def write_record(
        self,
        config: dict[str, Any],
        data: dict[str, str],
        changeable: Collection[str] = (),
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Write ``run.json``, or, on resuming, refuse settings that differ from the first ones.

        Those of ``changeable`` may differ, and are recorded as they are now; one that the record
        of an older version lacks counts as its default.
        """
        path = self.path / "run.json"
        now = {"config": json.loads(json.dumps(config, default=str)), "data": data}
        if path.exists() and self._lock is not None:
            record = read_run_json(self.path)
            _check_same(record, now, changeable, defaults or {})
            kept = {"resume", "output_dir"}.union(now["config"].keys() - set(changeable))
            changed = {name: v for name, v in now["config"].items() if name not in kept}
            atomic_write_json(path, record | {"config": record["config"] | changed})
            return
        try:
            if self._lock is None:
                self.path.mkdir(parents=True, exist_ok=True)
                self._take()
            atomic_write_json(path, now | {"seed": config.get("seed")} | _circumstances())
        except OSError as error:
            raise _unusable(self.path, error.strerror or "it cannot be written") from error


def holds_run(folder: Path) -> bool:
    """Say whether a run began in a folder."""
    return holds_file(folder, "run.json")


def holds_file(folder: Path, name: str) -> bool:
    """Say whether a folder holds a file; one whose name no folder can have holds none."""
    with suppress(OSError):
        return (folder / name).is_file()
    return False


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(f"--output_dir {path} cannot be used: {reason}.")


def _circumstances() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "id": secrets.token_hex(8),
        "command": sys.argv,
        "git_commit": git_commit(Path(__file__).resolve().parent),
        "versions": {"grpo_ao": __version__} | versions,
        "python": platform.python_version(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _check_same(
    record: dict, now: dict, changeable: Collection[str], defaults: Mapping[str, Any]
) -> None:
    known = json.loads(json.dumps(dict(defaults), default=str))
    version = record.get("versions", {}).get("grpo_ao", "an older version")
    by = "" if version == __version__ else f", by grpo_ao {version} (this is {__version__}),"
    differences = [
        f"{what}'{name}' was {before!r} in this run{by} and is {value!r} now"
        for part, what in (("config", ""), ("data", "the digest of "))
        for name, value in now[part].items()
        if (before := record.get(part, {}).get(name, known.get(name))) != value
        and name not in changeable
    ]
    if differences:
        raise UserError(f"cannot resume: {'; '.join(differences)}.")


def adapter_of(folder: Path) -> Path:
    """Return a run's final adapter; UserError if there is none."""
    if not (folder / "adapter" / "adapter_config.json").is_file():
        raise UserError(
            f"there is no trained adapter in {folder}: a run writes it when training ends; "
            "go on with it by --resume."
        )
    return folder / "adapter"


def record_judge(folder: Path, identity: str) -> None:
    """Write the judge's identity (JSON) into ``run.json``; on resuming, refuse another judge.

    The same judge may have moved to another address.
    """
    path = folder / "run.json"
    record, judge = read_json(path), json.loads(identity)
    if "judge" not in record:
        atomic_write_json(path, record | {"judge": judge})
    elif record["judge"] | {"endpoint": None} != judge | {"endpoint": None}:
        raise UserError(
            f"cannot resume: the judge was {record['judge']} in this run and is {judge} now."
        )


def record_activations(folder: Path, name: str, source: str) -> None:
    """Write into ``run.json`` what the probes ``name`` were read from; on resuming, refuse another.

    ``source`` is the name of the store, which depends on the model, its number format and tokens.
    """
    path = folder / "run.json"
    record = read_json(path)
    known = record.get("activations", {})
    if known.get(name, source) != source:
        raise UserError(
            f"cannot resume: the activations of the {name} texts were {known[name]} and are "
            f"{source} now, from another device, number format, tokenizer or chat template (one "
            "that writes today's date?): go on as the run began, or begin anew."
        )
    atomic_write_json(path, record | {"activations": known | {name: source}})


def git_commit(folder: Path) -> str | None:
    """Return the commit that is checked out, with "-dirty" behind it where files were changed."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
