"""Grades that were paid for once: a SQLite file around any judge."""

import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path

from grpo_ao.judges.protocol import (
    Grade,
    GradeRequest,
    JudgeError,
    PaidJudge,
)
from grpo_ao.probe import text_key

_LOG = logging.getLogger(__name__)
_SCHEMA_VERSION = 2
_TABLE = """
CREATE TABLE IF NOT EXISTS paid_grades (
    key TEXT PRIMARY KEY,
    digest TEXT NOT NULL,
    judge TEXT NOT NULL,
    score REAL NOT NULL,
    raw TEXT,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cost_usd REAL,
    stored_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
) WITHOUT ROWID
"""
_INSERT = """
INSERT INTO paid_grades (key, digest, judge, score, raw, input_tokens, output_tokens, cost_usd)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING
"""
_SELECT = "SELECT key, digest, score, raw FROM paid_grades"
_BUSY_SECONDS = 30.0
_LOOKUP = 500  # SQLite takes at least 999 parameters in one statement


class CachedJudge:
    """Any judge, asked once for each (text, question, answer, kind, reference).

    Grades are kept in a SQLite file in WAL mode, which any number of processes of one machine may
    use at once (not over a network file system). Each is written as it comes, so that no kill loses
    one. The key holds the judge's identity, and so the version of its rubric; texts that differ in
    white space or in the composition of their letters alone share it. A grade without a score is
    never stored, one that is not as it was stored is asked for again. Tokens and cost of a stored
    grade, and of a repetition within a batch, are 0.

    Raises JudgeError where the file is damaged, none of ours, locked, full or out of reach.
    """

    def __init__(self, judge: PaidJudge, path: Path) -> None:
        self._judge = judge
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error.strerror) from error
        with self._open() as database:
            (found,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            (version,) = database.execute("PRAGMA user_version").fetchone()
            (page,) = database.execute("PRAGMA page_size").fetchone()
            # SQLite takes the missing end of a page for zeros.
            if found != "ok" or self._path.stat().st_size % page:
                raise sqlite3.DatabaseError("it is damaged")
            if version > _SCHEMA_VERSION:
                raise sqlite3.DatabaseError(f"it is of version {version}, not {_SCHEMA_VERSION}")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(_TABLE)
            database.execute(f"{_SELECT} LIMIT 0")
            database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    @property
    def identity(self) -> str:
        """The identity of the judge inside."""
        return self._judge.identity

    async def check(self) -> None:
        """Try the judge inside."""
        await self._judge.check()

    async def grade(self, requests: Sequence[GradeRequest]) -> list[Grade]:
        """Return stored grades, and ask the judge for the others, once for equal requests."""
        keys = [self._key(request) for request in requests]
        with self._open() as database:
            grades = self._read(database, set(keys))
            asked = {k: r for k, r in zip(keys, requests, strict=True) if k not in grades}
            missing = list(asked)

            def store(index: int, grade: Grade) -> None:
                self._write(database, missing[index], grade)

            fresh = await self._judge.grade(list(asked.values()), store)
        grades |= dict(zip(missing, fresh, strict=True))
        # The first of equal requests carries what they cost, the others are free.
        first = {key: n for n, key in reversed(list(enumerate(keys)))}
        return [
            grades[key] if first[key] == n else _free(grades[key]) for n, key in enumerate(keys)
        ]

    def _key(self, request: GradeRequest) -> str:
        # As JSON, so that no character in one part can be taken for the border to the next.
        *given, choices = astuple(request)
        parts = [part if part is None else text_key(part) for part in (*given, *choices)]
        return hashlib.sha256(json.dumps([self.identity, *parts]).encode()).hexdigest()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # A connection for each use: one belongs to a thread, and does not survive a fork.
        try:
            database = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                # What is committed survives every kill; a power cut may take the last grades.
                database.execute("PRAGMA synchronous = NORMAL")
                yield database
            finally:
                database.close()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, reason: object) -> JudgeError:
        return JudgeError(
            f"{self._path} cannot be used as a cache of grades ({reason}): mend it or move it "
            "away, or name another by --judge_cache."
        )

    def _read(self, database: sqlite3.Connection, keys: set[str]) -> dict[str, Grade]:
        found: dict[str, Grade] = {}
        damaged: list[str] = []
        for chunk in _chunks(sorted(keys), _LOOKUP):
            query = f"{_SELECT} WHERE key IN ({', '.join('?' * len(chunk))})"
            for key, digest, score, raw in database.execute(query, chunk):
                if digest == _digest(key, score, raw) and 0 <= score <= 1:
                    found[key] = Grade(score, None, raw)
                else:
                    damaged.append(key)
        if damaged:
            _LOG.warning("%s: %d grades are damaged and asked for anew", self._path, len(damaged))
            delete = "DELETE FROM paid_grades WHERE key = ?"
            database.executemany(delete, [(key,) for key in damaged])
        return found

    def _write(self, database: sqlite3.Connection, key: str, grade: Grade) -> None:
        if grade.score is None:
            return
        score = float(grade.score)
        raw = None if grade.raw is None else grade.raw.encode("utf-8", "replace").decode()
        took = (grade.input_tokens, grade.output_tokens, grade.cost_usd)
        # Where another process was faster its grade stays: a key has one score for good.
        database.execute(_INSERT, (key, _digest(key, score, raw), self.identity, score, raw, *took))


def _digest(key: str, score: object, raw: object) -> str:
    return hashlib.sha256(json.dumps([key, score, raw], default=str).encode()).hexdigest()[:16]


def _free(grade: Grade) -> Grade:
    return replace(grade, input_tokens=0, output_tokens=0, cost_usd=0.0)


def _chunks(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))
