"""One way to ask: answers in order, each about its own activations, none asked or lost twice."""

import asyncio
import json

import pytest

from grpo_ao.answer import Answer
from grpo_ao.epistemic import render_oracle_output
from grpo_ao.judges.protocol import Grade, GradeRequest, discard
from grpo_ao.measuring import ask as asking
from grpo_ao.measuring.ask import Asking, ask, complete, graded
from grpo_ao.processes import Processes
from tests.judges.fakes import CountingJudge, score_of
from tests.rigs import make_oracle, planted_table, probe

HOW = Asking(max_new_tokens=4)
TWICE = Asking(max_new_tokens=4, temperature=1.0, num_samples=2)


@pytest.fixture(scope="module")
def oracle():
    return make_oracle()


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(asking, "_CHUNK", 2)
    monkeypatch.setattr(asking, "_CHUNK_WITH_AGREEMENT", 2)
    monkeypatch.setattr(asking, "AGREEMENT_SAMPLES", 3)


def asked(oracle, table, path=None, how=HOW, judge=None, label=None):
    judge, seen = judge or CountingJudge(), []
    found = ask(oracle, table, judge, how, Processes(), path, label, seen.append)
    assert sum(seen) == len(table)
    return found


# Grades


def test_the_judge_sees_text_question_answer_kind_and_reference_and_no_confidence():
    judge = CountingJudge()
    said = [render_oracle_output(confidence, "a cat") for confidence in (3, 71)]
    answers = asyncio.run(graded(judge, [Answer.read(probe(0), text) for text in said]))
    own = probe(0)
    request = GradeRequest(own.text, own.question, "a cat", own.kind, own.reference)
    assert judge.asked == [request, request]
    assert [answer.informativeness for answer in answers] == [score_of("a cat")] * 2
    assert [answer.confidence for answer in answers] == [0.03, 0.71]
    assert [answer.judge_reply for answer in answers] == ["raw of 'a cat'"] * 2


def test_a_completion_without_a_tag_is_graded_by_its_whole_text():
    judge = CountingJudge(unscored=frozenset({"no tag"}))
    (answer,) = asyncio.run(graded(judge, [Answer.read(probe(0), "no tag")]))
    assert [request.answer for request in judge.asked] == ["no tag"]
    assert (answer.informativeness, answer.reason) == (None, "told to")


def test_a_judge_that_leaves_requests_out_is_refused():
    class ShortJudge:
        async def grade(self, requests):
            return [Grade(1.0)] * (len(requests) - 1)

    with pytest.raises(ValueError, match=r"zip\(\)"):
        asyncio.run(graded(ShortJudge(), [Answer.read(probe(0), "a cat")] * 2))


# Answers


def test_every_probe_is_asked_once_in_order_and_about_its_own_activations(oracle):
    table, judge = planted_table(oracle, 7), CountingJudge()
    found = asked(oracle, table, judge=judge)
    assert [answer.probe for answer in found] == table.probes
    assert [request.question for request in judge.asked] == [p.question for p in table.probes]
    for row, answer in enumerate(found):
        ((alone,),) = complete(oracle, table, [row], 0.0, 4)
        assert (answer.completion, answer.token_ids) == (alone.completion, alone.token_ids)
        assert answer.informativeness == score_of(answer.answer)


def test_rows_are_completed_in_the_order_asked_for(oracle):
    table = planted_table(oracle, 6)
    whole = complete(oracle, table, range(6), 0.0, 5)
    assert complete(oracle, table, [4, 1], 0.0, 5, batch_size=1) == [whole[4], whole[1]]
    many = complete(oracle, table, [2, 0], 1.0, 5, num_samples=3)
    assert [[answer.probe for answer in samples] for samples in many] == [
        [table.probes[row]] * 3 for row in (2, 0)
    ]


def test_the_seed_decides_what_is_sampled(oracle):
    table = planted_table(oracle, 4)
    first = asked(oracle, table, how=TWICE)
    assert asked(oracle, table, how=TWICE) == first
    assert asked(oracle, table, how=TWICE._replace(seed=1)) != first


def test_the_first_probes_are_answered_more_often_and_the_seed_decides_how(oracle, small_chunks):
    table = planted_table(oracle, 5)
    how = HOW._replace(agreement=3, probabilities=True)
    found = asked(oracle, table, how=how)
    sizes = [answer.agreement and answer.agreement.samples for answer in found]
    assert sizes == [3, 3, 3, None, None]
    assert all(0 < (answer.answer_probability or 0) <= 1 for answer in found)
    assert asked(oracle, table, how=how) == found


def test_every_sample_of_a_probe_has_its_agreement(oracle):
    found = asked(oracle, planted_table(oracle, 3), how=TWICE._replace(agreement=2))
    assert [answer.agreement is not None for answer in found] == [True] * 4 + [False] * 2


# What is kept


def test_each_answer_is_a_row_of_its_file_under_its_label(oracle, tmp_path):
    table, path = planted_table(oracle, 3), tmp_path / "rows.jsonl"
    first = asked(oracle, table, path, label={"oracle": "first"})
    second = asked(oracle, table, path, label={"oracle": "second"})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["oracle"] for row in rows] == ["first"] * 3 + ["second"] * 3
    assert [Answer.from_row(row) for row in rows] == [*first, *second]


def test_nothing_is_asked_where_all_is_there(oracle, tmp_path):
    table, path, judge = planted_table(oracle, 3), tmp_path / "rows.jsonl", CountingJudge()
    first = asked(oracle, table, path, TWICE)
    assert asked(oracle, table, path, TWICE, judge) == first
    assert not judge.asked


@pytest.mark.parametrize("half", ["", '{"probe_id": "ab', "one answer of two"])
def test_what_a_killed_run_has_answered_is_not_asked_again(oracle, tmp_path, half, small_chunks):
    table, path, judge = planted_table(oracle, 5), tmp_path / "rows.jsonl", CountingJudge()
    first = asked(oracle, table.part([0, 1]), path, TWICE)
    if half.startswith("one"):
        half = json.dumps(first[0].to_row() | {"probe_id": table.probes[4].id} | question(table, 4))
        half += "\n"
    with path.open("a") as file:
        file.write(half)
    found = asked(oracle, table, path, TWICE, judge)
    assert [answer.probe for answer in found] == [p for p in table.probes for _ in range(2)]
    assert found[:4] == first
    assert len(judge.asked) == 6
    assert [Answer.from_row(json.loads(line)) for line in path.open()] == found


@pytest.mark.parametrize("how", [TWICE, HOW._replace(agreement=5)], ids=["sampled", "greedy"])
@pytest.mark.parametrize("kept", [0.1, 0.35, 0.5, 0.75, 0.99])
def test_a_file_that_is_cut_anywhere_becomes_what_it_would_have_been(
    oracle, tmp_path, small_chunks, how, kept
):
    table, path = planted_table(oracle, 5), tmp_path / "rows.jsonl"
    whole = asked(oracle, table, path, how)
    written = path.read_bytes()
    path.write_bytes(written[: int(kept * len(written))])
    assert asked(oracle, table, path, how) == whole
    assert path.read_bytes() == written


def question(table, row):
    return {"question": table.probes[row].question}


def test_a_file_of_another_version_is_refused(oracle, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"probe_id": "a", "answers": [], "scores": []}\n')
    with pytest.raises(ValueError, match="another version of this program wrote it"):
        asked(oracle, planted_table(oracle, 2), path)


def test_the_judge_is_awaited_once_for_a_chunk(oracle, tmp_path, small_chunks):
    class Batches(CountingJudge):
        sizes: list[int] = []  # noqa: RUF012

        async def grade(self, requests, keep=discard):
            self.sizes.append(len(requests))
            return await super().grade(requests, keep)

    judge = Batches()
    asked(oracle, planted_table(oracle, 5), tmp_path / "s.jsonl", TWICE, judge)
    assert judge.sizes == [4, 4, 2]
