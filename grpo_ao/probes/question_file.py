"""A question set in the making: rows appended as they are made, and a log of what each took."""

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo_ao.chat_completion import Usage
from grpo_ao.errors import UserError
from grpo_ao.files import append_jsonl, read_faults, read_jsonl, write_faults
from grpo_ao.probe import stable_hash
from grpo_ao.probes.sources import LeftOut, SourceText


class QuestionFile:
    """The rows at ``path`` and, beside them, ``*.log.jsonl``: settings, costs, what is left out.

    A row is on the disk before its line in the log is: a kill between the two loses what the row
    cost from the sum, never the row. One process at a time writes, as long as the block lasts that
    this is used in. ``spent`` is what all texts took that were asked about, ``paid`` their number.

    Raises UserError if there is a set and ``resume`` is not given, if there is none to resume, if
    another process is at it, and if it was begun with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool) -> None:
        if not path.name:
            raise UserError(f"--output {path} names no file.")
        self.path = path
        self.log_path = path.with_name(path.name + ".log.jsonl")
        with write_faults(path):
            self._check_presence(resume)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self.log_path.open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is writing {path}: wait for it.") from error
        append_jsonl(path, [])  # cuts off what a kill left of a row
        self.spent = Usage()
        self.paid = 0
        self._numbers: set[int] = set()
        with read_faults(f"{self.log_path} or the set"):
            self.rows = read_jsonl(path)
            self._decided = {stable_hash(row["wildchat_question"]) for row in self.rows}
            self._read_log(settings)

    def _read_log(self, settings: dict[str, Any]) -> None:
        begun, *records = read_jsonl(self.log_path) or [{}]
        if not begun:
            append_jsonl(self.log_path, [{"settings": settings}])
        elif begun["settings"] != settings:
            raise UserError(_difference(self.path, begun["settings"], settings))
        for record in records:
            self._count(record)

    def __enter__(self) -> "QuestionFile":
        return self

    def __exit__(self, *_: object) -> None:
        """Free the lock."""
        self._lock.close()

    def _check_presence(self, resume: bool) -> None:
        if resume and not self.log_path.exists():
            raise UserError(f"there is no question set to resume at {self.path}.")
        if not resume and (self.path.exists() or self.log_path.exists()):
            raise UserError(
                f"{self.path} holds a question set already: go on with it by --resume, or give "
                "another --output."
            )

    def _count(self, record: dict[str, Any]) -> None:
        self._numbers.add(record["number"])
        if record["text"] is not None:
            self._decided.add(record["text"])
            self.paid += 1
        self.spent = self.spent.plus(Usage(*record["usage"]))

    def is_decided(self, text: str) -> bool:
        """Say whether a text has its row, or was asked about in vain and is left out for good."""
        return stable_hash(text) in self._decided

    def add(self, row: dict[str, Any], usage: Usage) -> None:
        """Append a row and what it took."""
        append_jsonl(self.path, [row])
        self.rows.append(row)
        self._note([_record(row["idx"], row["wildchat_question"], None, usage)])

    def leave_out(self, source: SourceText, reason: str, usage: Usage, final: bool) -> None:
        """Log a text that was asked about in vain, for good or for now, and what that took."""
        text = source.text if final else None
        self._note([_record(source.number, text, reason, usage)])

    def leave_out_unasked(self, left_out: Sequence[LeftOut]) -> None:
        """Log rows of the source that are not asked about, each once."""
        fresh = [row for row in left_out if row.number not in self._numbers]
        self._note([_record(row.number, None, row.reason, Usage()) for row in fresh])

    def _note(self, records: Sequence[dict[str, Any]]) -> None:
        append_jsonl(self.log_path, records)
        for record in records:
            self._count(record)


def _record(number: int, text: str | None, reason: str | None, usage: Usage) -> dict[str, Any]:
    digest = None if text is None else stable_hash(text)
    return {"number": number, "text": digest, "reason": reason, "usage": list(usage)}


def _difference(path: Path, before: dict[str, Any], now: dict[str, Any]) -> str:
    name = next(name for name in now if before.get(name) != now[name])
    return (
        f"cannot resume {path}: '{name}' was {before.get(name)!r} when it was begun and is "
        f"{now[name]!r} now."
    )
