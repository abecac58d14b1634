import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import pytest

from grpo_ao.judges.cache import CachedJudge
from grpo_ao.judges.hostile import hostile_answers
from grpo_ao.judges.protocol import Grade, GradeRequest, JudgeError, discard
from grpo_ao.probe import text_key
from tests.judges.fakes import CountingJudge, request, score_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "grades.sqlite"


def run(judge: CachedJudge, *requests: GradeRequest) -> list[Grade]:
    return asyncio.run(judge.grade(requests))


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.judges.fakes", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def rows_in(path) -> int:
    database = sqlite3.connect(path)
    try:
        (integrity,) = database.execute("PRAGMA integrity_check").fetchone()
        assert integrity == "ok"
        return database.execute("SELECT count(*) FROM paid_grades").fetchone()[0]
    finally:
        database.close()


def test_what_was_graded_is_not_asked_again_and_is_free(path):
    first = CountingJudge()
    paid = run(CachedJudge(first, path), request(1), request(2))
    assert [g.cost_usd for g in paid] == [0.5, 0.5]
    second = CountingJudge()
    judge = CachedJudge(second, path)
    free = run(judge, request(2), request(3), request(1))
    assert second.asked == [request(3)]
    assert [g.score for g in free] == [score_of(f"answer {n}") for n in (2, 3, 1)]
    assert [g.cost_usd for g in free] == [0, 0.5, 0]
    assert [g.input_tokens for g in free] == [0, 10, 0]
    assert free[0].raw == paid[1].raw


def test_equal_requests_of_a_batch_are_graded_and_paid_once(path):
    inner = CountingJudge()
    found = run(CachedJudge(inner, path), *[request(n % 3) for n in range(12)])
    assert inner.asked == [request(0), request(1), request(2)]
    assert [g.score for g in found] == [score_of(f"answer {n % 3}") for n in range(12)]
    assert sum(g.cost_usd or 0.0 for g in found) == 1.5


def test_equal_requests_without_a_score_are_asked_once_too(path):
    inner = CountingJudge(unscored=frozenset(["answer 1"]))
    found = run(CachedJudge(inner, path), request(1), request(1))
    assert [g.score for g in found] == [None, None]
    assert [g.reason for g in found] == ["told to", "told to"]
    assert len(inner.asked) == 1


def test_none_is_never_stored(path):
    inner = CountingJudge(unscored=frozenset(["answer 1"]))
    judge = CachedJudge(inner, path)
    assert run(judge, request(1), request(2))[0].score is None
    inner.unscored = frozenset()
    assert run(judge, request(1), request(2))[0].score == score_of("answer 1")
    assert inner.asked == [request(1), request(2), request(1)]
    assert rows_in(path) == 2


ONE = GradeRequest("t", "q", "a", "open", None)


@pytest.mark.parametrize(
    "other",
    [
        replace(ONE, text="T"),
        replace(ONE, question="Q"),
        replace(ONE, answer="A"),
        replace(ONE, kind="closed"),
        replace(ONE, reference="a"),
        replace(ONE, reference=""),
        replace(ONE, text="t\x1fq", question="a", answer=""),
        replace(ONE, text='t", "q', question="a"),
    ],
)
def test_every_part_of_a_request_is_in_the_key(path, other):
    inner = CountingJudge()
    run(CachedJudge(inner, path), ONE, other)
    assert inner.asked == [ONE, other]
    assert rows_in(path) == 2


def test_another_judge_has_its_own_grades(path):
    inner = CountingJudge("another")
    run(CachedJudge(CountingJudge("one"), path), ONE)
    run(CachedJudge(inner, path), ONE)
    assert inner.asked == [ONE]


def test_hostile_answers_are_kept_apart_and_come_back_as_they_were_graded(path):
    # One for each key: some differ in white space alone.
    by_key = {text_key(h.answer): replace(ONE, answer=h.answer) for h in hostile_answers()}
    hostile = list(by_key.values())
    first, second = CountingJudge(), CountingJudge()
    graded = run(CachedJudge(first, path), *hostile)
    again = run(CachedJudge(second, path), *hostile)
    assert first.asked == hostile
    assert second.asked == []
    expected = [score_of(r.answer) for r in hostile]
    assert [g.score for g in graded] == [g.score for g in again] == expected
    assert rows_in(path) == len(hostile)


def test_each_grade_is_written_as_it_comes(path):
    class Dying(CountingJudge):
        async def grade(self, requests, keep=discard):
            await super().grade(requests[:8], keep)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run(CachedJudge(Dying(), path), *[request(n) for n in range(20)])
    assert rows_in(path) == 8


def test_more_requests_than_one_statement_takes(path):
    requests = [request(n) for n in range(1300)]
    run(CachedJudge(CountingJudge(), path), *requests)
    inner = CountingJudge()
    found = run(CachedJudge(inner, path), *requests)
    assert inner.asked == []
    assert [g.score for g in found] == [score_of(r.answer) for r in requests]


TWIN = GradeRequest("It is late.\nCaf\u00e9.", "Is it?", "Yes, it is.", "closed", None)


@pytest.mark.parametrize(
    "twin",
    [
        replace(TWIN, text="It is late.\r\nCaf\u00e9."),
        replace(TWIN, text=" It is  late. Cafe\u0301.\n"),
        replace(TWIN, answer="Yes, it is. "),
        replace(TWIN, question="Is\u00a0it?"),
    ],
)
def test_twins_that_differ_in_white_space_or_composition_are_paid_once(path, twin):
    inner = CountingJudge()
    judge = CachedJudge(inner, path)
    assert run(judge, TWIN)[0].score == run(judge, twin)[0].score
    # The judge reads the text as it is.
    assert inner.asked == [TWIN]


def test_several_processes_share_one_file(path):
    writers = [start("shared", path, 200) for _ in range(4)]
    asked = [int(writer.communicate(timeout=300)[0]) for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4
    assert rows_in(path) == 200
    assert all(0 <= count <= 200 for count in asked)
    inner = CountingJudge()
    run(CachedJudge(inner, path), *[request(n) for n in range(200)])
    assert inner.asked == []


def test_what_was_returned_before_a_kill_is_there_after_it(path):
    writer = start("until_killed", path)
    assert writer.stdout is not None
    returned = 0
    while returned < 200:
        returned = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.communicate(timeout=300)[0].split("\n")
    returned = int(next((line for line in reversed(rest) if line), returned))
    assert writer.returncode == -signal.SIGKILL
    inner = CountingJudge()
    found = run(CachedJudge(inner, path), *[request(n) for n in range(returned)])
    assert inner.asked == []
    assert [g.score for g in found] == [score_of(f"answer {n}") for n in range(returned)]
    assert rows_in(path) >= returned


def filled(path, count=200):
    run(CachedJudge(CountingJudge(), path), *[request(n) for n in range(count)])
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def no_database(path):
    path.write_bytes(b"this is a text file, not a database" * 100)


def of_the_future(path):
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 9")


def a_table_of_someone_else(path):
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE paid_grades (mine TEXT)")


def cut_off(path):
    filled(path)
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 100)


def overwritten(path):
    filled(path)
    with path.open("rb+") as file:
        file.seek(4096 * 2)
        file.write(b"\xff" * 4096)


def a_folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    "spoil", [no_database, of_the_future, a_table_of_someone_else, cut_off, overwritten, a_folder]
)
def test_a_file_that_is_no_sound_cache_is_refused_in_one_sentence(path, spoil):
    path.parent.mkdir()
    spoil(path)
    with pytest.raises(
        JudgeError, match=r"grades\.sqlite cannot be used as a cache of grades"
    ) as told:
        CachedJudge(CountingJudge(), path)
    assert "\n" not in str(told.value)
    assert "--judge_cache" in str(told.value)


def test_a_cache_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(JudgeError, match="cannot be used as a cache of grades"):
        CachedJudge(CountingJudge(), tmp_path / "file" / "grades.sqlite")


@pytest.mark.parametrize("change", ["score = 7", "score = -1", "score = 0.123", "score = 'A lot'"])
def test_a_stored_grade_that_was_changed_is_asked_for_anew(path, change, caplog):
    filled(path, 5)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"UPDATE paid_grades SET {change}")
    inner = CountingJudge()
    judge = CachedJudge(inner, path)
    for _ in range(2):
        found = run(judge, *[request(n) for n in range(5)])
        assert [g.score for g in found] == [score_of(f"answer {n}") for n in range(5)]
    assert len(inner.asked) == 5
    assert "5 grades are damaged and asked for anew" in caplog.text


def test_a_locked_cache_is_one_sentence(path, monkeypatch):
    monkeypatch.setattr("grpo_ao.judges.cache._BUSY_SECONDS", 0.05)
    judge = CachedJudge(CountingJudge(), path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("BEGIN IMMEDIATE")
        with pytest.raises(JudgeError, match="database is locked"):
            run(judge, ONE)


def test_identity_and_trial_are_those_of_the_judge_inside(path):
    class Unusable(CountingJudge):
        async def check(self):
            raise JudgeError("not today.")

    judge = CachedJudge(Unusable("mine"), path)
    assert judge.identity == "mine"
    with pytest.raises(JudgeError, match="not today"):
        asyncio.run(judge.check())
