"""Grades that were paid for once: a SQLite file around any judge."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path

from grpo_ao.judges.protocol import CheckedJudge, Grade, GradeRequest, JudgeError

_SCHEMA_VERSION = 1
# A grade without a score is not stored: the table takes none.
_TABLE = """
CREATE TABLE IF NOT EXISTS grades (
    key TEXT PRIMARY KEY,
    judge TEXT NOT NULL,
    score REAL NOT NULL CHECK (score BETWEEN 0 AND 1),
    reason TEXT,
    raw TEXT,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cost_usd REAL,
    stored_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
) WITHOUT ROWID
"""
_INSERT = """
INSERT INTO grades
(key, judge, score, reason, raw, input_tokens, output_tokens, cost_usd)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING
"""
_BUSY_SECONDS = 60.0
_LOOKUP = 500  # SQLite takes at least 999 parameters in one statement
# What a kill can lose is what was asked for since the last write: at most this many grades.
_CHUNK = 512


class CachedJudge:
    """Any judge, asked once for each (text, question, answer, kind, reference).

    Grades are kept in a SQLite file in WAL mode, which any number of processes of one machine may
    use at once (not over a network file system). They are written before they are returned, so
    that neither a crash nor ``kill -9`` loses one that was seen; in long batches, after every 512.
    The key holds the judge's identity, and so the version of its rubric. A grade without a score is
    never stored. Tokens and cost of a stored grade, and of a repetition within a batch, are 0.
    """

    def __init__(self, judge: CheckedJudge, path: Path) -> None:
        self._judge = judge
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._create()
        except sqlite3.DatabaseError as error:
            raise JudgeError(f"{path} cannot be used as a cache of grades: {error}.") from error

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
        grades = self._read(set(keys))
        asked = {k: r for k, r in zip(keys, requests, strict=True) if k not in grades}
        for chunk in _chunks(list(asked), _CHUNK):
            answers = await self._judge.grade([asked[key] for key in chunk])
            fresh = dict(zip(chunk, answers, strict=True))
            self._write(fresh)
            grades |= fresh
        # The first of equal requests carries what they cost, the others are free.
        first = {key: n for n, key in reversed(list(enumerate(keys)))}
        return [
            grades[key] if first[key] == n else _free(grades[key]) for n, key in enumerate(keys)
        ]

    def _key(self, request: GradeRequest) -> str:
        # As JSON, so that no character in one part can be taken for the border to the next.
        parts = json.dumps([self.identity, *astuple(request)])
        return hashlib.sha256(parts.encode()).hexdigest()

    def _create(self) -> None:
        with self._open() as database:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _SCHEMA_VERSION):
                raise sqlite3.DatabaseError(f"it is of version {version}, not {_SCHEMA_VERSION}")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(_TABLE)
            database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # A connection for each use: one belongs to a thread, and does not survive a fork.
        database = sqlite3.connect(self._path, timeout=_BUSY_SECONDS)
        try:
            with database:
                yield database
        finally:
            database.close()

    def _read(self, keys: set[str]) -> dict[str, Grade]:
        found: dict[str, Grade] = {}
        with self._open() as database:
            for chunk in _chunks(sorted(keys), _LOOKUP):
                marks = ", ".join("?" * len(chunk))
                query = f"SELECT key, score, reason, raw FROM grades WHERE key IN ({marks})"
                for key, score, reason, raw in database.execute(query, chunk):
                    found[key] = Grade(score, reason, raw)
        return found

    def _write(self, grades: dict[str, Grade]) -> None:
        rows = [
            (key, self.identity, *astuple(g)) for key, g in grades.items() if g.score is not None
        ]
        # Where another process was faster its grade stays: a key has one score for good.
        with self._open() as database:
            database.executemany(_INSERT, rows)


def _free(grade: Grade) -> Grade:
    return replace(grade, input_tokens=0, output_tokens=0, cost_usd=0.0)


def _chunks(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))
