import asyncio
import contextlib
import gzip
import json
import random
import sqlite3
import threading
import time
from email.utils import formatdate
from pathlib import Path

import anyio
import pytest

from grpo_ao.answer import Answer
from grpo_ao.chat import ChatError, ChatSettings
from grpo_ao.judges.api import ApiJudge
from grpo_ao.judges.cache import CachedJudge
from grpo_ao.judges.hostile import hostile_answers
from grpo_ao.judges.protocol import GradeRequest, JudgeError
from grpo_ao.judges.rubric import GRADES, rubric_version
from grpo_ao.measuring.ask import graded
from grpo_ao.probe import Positions, Probe
from tests.judges.conftest import KEY, KEY_ENV
from tests.judges.endpoint import (
    DROP,
    USAGE,
    Request,
    Response,
    error,
    grade,
    in_turn,
    reply,
    serving,
)

OPEN = GradeRequest("I move to Oslo.", "Where to?", "To Norway.", "open", None)
CLOSED = GradeRequest("I move to Oslo.", "Is it about cooking?", "No", "closed", None)


def answers(count: int) -> list[GradeRequest]:
    return [GradeRequest("A text.", "A question?", f"<{n}>", "open", None) for n in range(count)]


def stored(path: Path) -> int:
    """How many grades are in the cache."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT count(*) FROM paid_grades").fetchone()[0]


def number_of(request: Request) -> int:
    """The number that ``answers`` wrote into the answer."""
    return int(request.prompt.rpartition("\u2039")[2].partition("\u203a")[0])


def letter_of(number: int) -> str:
    return "ABCDE"[number % 5]


def by_number(request: Request) -> Response:
    return grade(letter_of(number_of(request)))


def run(judge: ApiJudge, *requests: GradeRequest):
    return asyncio.run(judge.grade(requests))


def test_a_grade_with_its_tokens_and_the_reply(judge_at):
    with serving(in_turn(grade("B"))) as endpoint:
        (found,) = run(judge_at(endpoint), OPEN)
    assert (found.score, found.reason, found.raw) == (0.75, None, '{"grade": "B"}')
    assert (found.input_tokens, found.output_tokens, found.cost_usd) == (100, 7, None)


def test_what_is_sent(judge_at):
    with serving(in_turn(grade("A"))) as endpoint:
        run(judge_at(endpoint), OPEN)
    (request,) = endpoint.seen
    assert request.path == "/v1/chat/completions"
    assert {k.lower(): v for k, v in request.headers.items()}["authorization"] == f"Bearer {KEY}"
    body = request.body
    assert body["model"] == "a-model"
    assert body["temperature"] == 0
    assert body["response_format"]["type"] == "json_schema"
    assert body["response_format"]["json_schema"]["strict"] is True
    assert request.letters == list(GRADES["open"])
    assert [message["role"] for message in body["messages"]] == ["user"]
    for part in (OPEN.text, OPEN.question, OPEN.answer):
        assert part in request.prompt


def test_settings_that_are_none_are_not_sent(judge_at):
    with serving(in_turn(grade("A"))) as endpoint:
        run(judge_at(endpoint, temperature=None, max_tokens=None), OPEN)
    assert not {"temperature", "max_tokens"} & endpoint.seen[0].body.keys()


def test_the_stated_confidence_is_not_in_the_bytes_of_the_request(judge_at):
    probe = Probe(
        "I move.", "Where to?", "open", (1,), Positions.parse("last:1"), None, family="open"
    )
    completions = [f"[epistemic status: {n}] To Oslo." for n in (0, 73, 91)]
    with serving(in_turn(grade("A"))) as endpoint:
        judge = judge_at(endpoint)
        answers = [Answer.read(probe, completion) for completion in completions]
        answers = asyncio.run(graded(judge, answers))
    assert [answer.confidence for answer in answers] == [0, 0.73, 0.91]
    assert len(endpoint.seen) == 3
    # Not only is the tag absent: the three requests are the same, byte for byte.
    assert len({request.raw for request in endpoint.seen}) == 1
    for request in endpoint.seen:
        everything = request.raw + json.dumps(request.headers).encode()
        assert b"epistemic" not in everything.lower()


def test_a_confidence_that_slips_into_an_answer_is_taken_out(judge_at):
    told = GradeRequest("t", "q", "Oslo [epistemic status: 73] or so", "open", None)
    with serving(in_turn(grade("A"))) as endpoint:
        run(judge_at(endpoint), told)
    assert b"73" not in endpoint.seen[0].raw
    assert b"epistemic" not in endpoint.seen[0].raw


def test_grades_come_in_the_order_of_the_requests_whatever_the_order_of_replies(judge_at):
    def shuffled(request):
        number = number_of(request)
        return grade(letter_of(number), delay=random.Random(number).random() / 50)

    with serving(shuffled) as endpoint:
        found = run(judge_at(endpoint), *answers(40))
    assert [g.score for g in found] == [GRADES["open"][letter_of(n)] for n in range(40)]


def test_no_requests_no_grades(judge_at):
    with serving(in_turn(grade("A"))) as endpoint:
        assert run(judge_at(endpoint)) == []
    assert endpoint.seen == []


def test_no_more_requests_are_in_flight_than_allowed(judge_at):
    full = threading.Event()

    def behaviour(request):
        if endpoint.in_flight >= 3:
            full.set()
        full.wait(60)
        return grade("A")

    with serving(behaviour) as endpoint:
        run(judge_at(endpoint, concurrency=3, timeout=90.0), *answers(20))
    assert endpoint.most_in_flight == 3


def test_one_judge_serves_several_event_loops(judge_at):
    with serving(in_turn(grade("A"))) as endpoint:
        judge = judge_at(endpoint)
        assert [run(judge, OPEN)[0].score for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    "failure",
    [
        error(429),
        error(500),
        error(502),
        error(503),
        Response(529, "overloaded, in plain text"),
        DROP,
        Response(body="<html>a proxy's page</html>"),
        Response(body='{"choices": [{"mess'),
        Response(body=json.dumps({"error": {"code": 429, "message": "busy"}})),
        Response(body=json.dumps({"error": {"code": "503", "message": "busy"}})),
    ],
)
def test_a_passing_failure_costs_nothing_but_time(judge_at, failure):
    with serving(in_turn(failure, failure, failure, grade("C"))) as endpoint:
        (found,) = run(judge_at(endpoint), OPEN)
    assert found.score == 0.5
    assert len(endpoint.seen) == 4


def test_a_slow_reply_is_given_up_and_asked_for_again(judge_at):
    with serving(in_turn(grade("A", delay=30.0), grade("C"))) as endpoint:
        (found,) = run(judge_at(endpoint, timeout=1.0), OPEN)
    assert found.score == 0.5


@pytest.fixture
def waits(monkeypatch):
    """The seconds that are waited between attempts, which pass at once."""
    asked = []

    async def sleep(seconds):
        asked.append(seconds)

    monkeypatch.setattr(anyio, "sleep", sleep)
    return asked


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_obeyed(judge_at, waits, as_date):
    date = formatdate(time.time() + 90, usegmt=True)
    busy = error(429, retry_after=date if as_date else "90")
    with serving(in_turn(busy, grade("A"))) as endpoint:
        (found,) = run(judge_at(endpoint), OPEN)
    assert found.score == 1
    assert waits[-1] == pytest.approx(90, abs=30)


def test_an_endpoint_that_asks_for_too_long_a_wait_is_not_waited_for(judge_at):
    with serving(in_turn(error(429, retry_after="3600"))) as endpoint:
        (found,) = run(judge_at(endpoint), OPEN)
    assert (found.score, found.reason) == (None, "HTTP 429: it is so")
    assert len(endpoint.seen) == 1


def test_a_retry_after_that_cannot_be_read_is_as_none(judge_at):
    with serving(in_turn(error(429, retry_after="soon"), grade("A"))) as endpoint:
        assert run(judge_at(endpoint), OPEN)[0].score == 1


def test_a_lasting_failure_is_none_with_its_reason(judge_at):
    with serving(in_turn(error(503, "overloaded"))) as endpoint:
        (found,) = run(judge_at(endpoint, max_attempts=3), OPEN)
    assert (found.score, found.reason) == (None, "HTTP 503: overloaded")
    assert found.cost_usd is None
    assert len(endpoint.seen) == 3


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
def test_a_refusal_is_not_tried_again(judge_at, status):
    with serving(in_turn(error(status, "not this one"))) as endpoint:
        (found,) = run(judge_at(endpoint), OPEN)
    assert (found.score, found.reason) == (None, f"HTTP {status}: not this one")
    assert len(endpoint.seen) == 1


UNREADABLE = [
    reply("The grade is A."),
    reply('Here you are: {"grade": "A"}'),
    reply('```json\n{"grade": "A"}\n```'),
    reply('{"grade": "A"'),
    reply('{"score": 7}'),
    reply('{"grade": "G"}'),
    reply('{"grade": "A", "grade": "E"}'),
    reply(""),
    reply(None),
    reply("9" * 100_000),
    Response(body='{"choices": []}'),
    Response(body="{}"),
]


@pytest.mark.parametrize("bad", UNREADABLE, ids=lambda bad: bad.body[-60:-1])
def test_a_reply_that_is_no_grade_is_asked_for_once_more_then_none(judge_at, bad):
    with serving(in_turn(bad, grade("B"))) as endpoint:
        assert run(judge_at(endpoint), OPEN)[0].score == 0.75
        first, second = (request.prompt for request in endpoint.seen)
    # At temperature 0 the same question would get the same reply.
    assert second.startswith(first)
    assert "An earlier reply" in second[len(first) :]
    with serving(in_turn(bad)) as endpoint:
        (found,) = run(judge_at(endpoint), OPEN)
    assert found.score is None
    assert found.reason
    assert len(endpoint.seen) == 2


def test_a_middle_grade_for_a_closed_question_is_no_grade(judge_at):
    with serving(in_turn(grade("C"))) as endpoint:
        (found,) = run(judge_at(endpoint), CLOSED)
    assert found.score is None
    assert endpoint.seen[0].letters == ["A", "E"]


def test_tokens_and_cost_of_both_replies_are_counted(judge_at):
    usage = USAGE | {"cost": 0.001}
    with serving(in_turn(reply("?", usage=usage), grade("A", usage=usage))) as endpoint:
        (found,) = run(judge_at(endpoint), OPEN)
    assert (found.input_tokens, found.output_tokens) == (200, 14)
    assert found.cost_usd == pytest.approx(0.002)


def test_prices_stand_in_where_the_endpoint_tells_no_cost(judge_at):
    with serving(in_turn(grade("A"))) as endpoint:
        (found,) = run(judge_at(endpoint, input_price=0.3, output_price=2.5), OPEN)
        assert found.cost_usd == pytest.approx((100 * 0.3 + 7 * 2.5) / 1e6)
    with serving(in_turn(grade("A", usage=None))) as endpoint:
        (found,) = run(judge_at(endpoint, input_price=0.3, output_price=2.5), OPEN)
        assert (found.input_tokens, found.cost_usd) == (None, None)


@pytest.mark.parametrize("status", [400, 422])
def test_an_endpoint_without_schemas_is_asked_without_from_then_on(judge_at, status, caplog):
    def old(request):
        if "response_format" in request.body:
            return error(status, "response_format.type 'json_schema' is not supported")
        return by_number(request)

    with serving(old) as endpoint:
        judge = judge_at(endpoint, concurrency=1)
        found = run(judge, *answers(5))
        later = run(judge, *answers(5))
    assert [g.score for g in found] == [g.score for g in later] == [1, 0.75, 0.5, 0.25, 0]
    with_schema = ["response_format" in request.body for request in endpoint.seen]
    assert sum(with_schema) == 5 or with_schema[0]
    assert not any(with_schema[10:])
    assert len(caplog.records) == 1


def test_another_400_does_not_turn_schemas_off(judge_at):
    with serving(in_turn(error(400, "the input was flagged"), grade("A"))) as endpoint:
        judge = judge_at(endpoint)
        assert [run(judge, OPEN)[0].score for _ in range(2)] == [None, 1]
    assert all("response_format" in request.body for request in endpoint.seen)


def refusing(*names):
    """An endpoint of OpenAI's reasoning models, or one that takes less."""

    def behave(request):
        for name in names:
            if name in request.body:
                instead = "max_completion_tokens" if name == "max_tokens" else "the default"
                return error(400, f"Unsupported parameter: '{name}'. Use {instead} instead.")
        return by_number(request)

    return behave


def test_the_length_goes_by_the_name_that_the_endpoint_takes(judge_at):
    with serving(refusing("max_tokens")) as endpoint:
        judge = judge_at(endpoint)
        assert [g.score for g in run(judge, *answers(3))] == [1, 0.75, 0.5]
        assert run(judge, *answers(1))[0].score == 1
    body = endpoint.seen[-1].body
    assert body["max_completion_tokens"] == 1024
    assert "max_tokens" not in body


def test_what_an_endpoint_does_not_take_is_left_out(judge_at, caplog):
    names = ("max_tokens", "max_completion_tokens", "temperature", "response_format")
    with serving(refusing(*names)) as endpoint:
        found = run(judge_at(endpoint), *answers(3))
    assert [g.score for g in found] == [1, 0.75, 0.5]
    assert endpoint.seen[-1].body.keys() == {"model", "messages"}
    assert len(caplog.records) == len(names)


def test_a_text_that_is_too_long_costs_itself_alone(judge_at):
    said = "maximum context length is 4096 tokens, you requested 5000 (1024 in max_tokens)"
    with serving(in_turn(error(400, said), grade("A"))) as endpoint:
        judge = judge_at(endpoint)
        assert [run(judge, OPEN)[0].score for _ in range(2)] == [None, 1]
    assert endpoint.seen[-1].body["max_tokens"] == 1024


def test_an_account_without_quota_ends_it_at_once_and_is_said(judge_at):
    body = {"error": {"message": "You exceeded your quota.", "code": "insufficient_quota"}}
    broke = Response(429, json.dumps(body))
    with serving(in_turn(broke)) as endpoint:
        judge = judge_at(endpoint, concurrency=1)
        found = run(judge, *answers(6))
        with pytest.raises(JudgeError, match="no quota left"):
            asyncio.run(judge.check())
    assert {g.score for g in found} == {None}
    assert all("no quota left" in str(g.reason) for g in found)
    assert len(endpoint.seen) == 2


def test_a_hanging_endpoint_is_given_up_inside_a_batch(judge_at):
    with serving(in_turn(grade("A", delay=30.0))) as endpoint:
        judge = judge_at(endpoint, timeout=1.0, patience=1.2, concurrency=4)
        found = run(judge, *answers(200))
        assert len(endpoint.seen) < 40  # of 200 grades with 12 attempts each
        assert {g.score for g in found} == {None}
        assert "given up after 1.2 s without a reply: no reply in time" in str(found[-1].reason)
        before = len(endpoint.seen)
        run(judge, *answers(200))
        # The next batch is tried once more, not for another while.
        assert len(endpoint.seen) - before <= 8


def test_an_endpoint_that_was_given_up_is_used_again_once_it_answers(judge_at):
    with serving(in_turn(grade("A", delay=30.0))) as endpoint:
        # One attempt alone is left to it, which a busy machine may answer late.
        judge = judge_at(endpoint, timeout=4.0, patience=1.2)
        (found,) = run(judge, *answers(1))
        assert "given up after 1.2 s without a reply" in str(found.reason)
        endpoint.behaviour = by_number
        assert run(judge, *answers(1))[0].score == 1


def test_a_request_that_always_hangs_is_given_up_and_costs_no_other(judge_at):
    def behaviour(request):
        return grade("A", delay=30.0) if number_of(request) == 3 else by_number(request)

    with serving(behaviour) as endpoint:
        found = run(judge_at(endpoint, timeout=1.0, max_attempts=12), *answers(8))
        attempts = [number_of(request) for request in endpoint.seen].count(3)
    assert [g.score is None for g in found] == [n == 3 for n in range(8)]
    said = "no reply in time in 3 attempts, while other requests were answered"
    assert (attempts, found[3].reason) == (3, said)


def test_an_endpoint_that_sometimes_answers_is_not_given_up(judge_at):
    with serving(lambda r: by_number(r) if r.number % 3 == 0 else error(503)) as endpoint:
        found = run(judge_at(endpoint, patience=3.0, concurrency=2), *answers(30))
    assert [g.score for g in found] == [GRADES["open"][letter_of(n)] for n in range(30)]


def test_one_byte_after_the_other_does_not_outlast_the_timeout(judge_at):
    with serving(in_turn(grade("A", trickle=0.05))) as endpoint:
        (found,) = run(judge_at(endpoint, timeout=0.3, max_attempts=2), OPEN)
    assert (found.score, found.reason) == (None, "no reply in time")


PLAIN = grade("A").body
ODD = {
    "endless": (Response(body=" " * 3_000_000 + PLAIN), "more than 1,000,000 bytes"),
    "gzip bomb": (
        Response(raw=gzip.compress(b" " * 10_000_000), headers={"content-encoding": "gzip"}),
        "a compressed reply",
    ),
    "odd charset": (
        Response(raw=b"\xff\xfe{", headers={"content-type": "application/json; charset=klingon"}),
        "not JSON",
    ),
    "a page": (
        Response(body="<html>sign in</html>", headers={"content-type": "text/html"}),
        "not JSON",
    ),
    "events": (Response(body=f"data: {PLAIN}\n\ndata: [DONE]\n"), "not JSON"),
    "a list of parts": (reply([{"type": "text", "text": '{"grade": "A"}'}]), "a list of parts"),
    "a refusal": (reply('{"grade": "A"}', refusal="I will not."), "the model refused"),
    "cut off": (reply('{"grade": "A"}', finish_reason="length"), "not whole"),
    "filtered": (reply('{"grade": "A"}', finish_reason="content_filter"), "not whole"),
    "digits": (Response(body='{"choices": [], "n": ' + "9" * 5_000 + "}"), "not JSON"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_reply_is_no_grade_of_its_own_and_costs_no_other(judge_at, name):
    odd, reason = ODD[name]
    with serving(lambda r: odd if number_of(r) == 1 else by_number(r)) as endpoint:
        found = run(judge_at(endpoint, max_attempts=2), *answers(3))
    assert [g.score for g in found] == [1, None, 0.5]
    assert reason in str(found[1].reason)


@pytest.mark.parametrize("usage", [{"prompt_tokens": 2**63, "cost": 10**400}, {"cost": -1}, [], 7])
def test_odd_usage_is_not_known_and_the_grade_counts(judge_at, tmp_path, usage):
    with serving(in_turn(grade("A", usage=usage))) as endpoint:
        judge = CachedJudge(judge_at(endpoint), tmp_path / "grades.sqlite")
        (found,) = asyncio.run(judge.grade([OPEN]))
    assert (found.score, found.input_tokens, found.cost_usd) == (1, None, None)


def test_another_model_than_before_gives_no_grade(judge_at):
    names = ["a-model-2026-01", "a-model-2026-01", "another", "another"]
    with serving(lambda r: grade("A", model=names[r.number])) as endpoint:
        judge = judge_at(endpoint)
        found = [run(judge, OPEN)[0] for _ in range(3)]
    assert [g.score for g in found] == [1, 1, None]
    assert "'another' answered, and 'a-model-2026-01' before" in str(found[2].reason)


def test_redirects_are_not_followed(judge_at):
    with serving(in_turn(grade("A"))) as elsewhere:
        moved = Response(307, headers={"location": f"{elsewhere.base_url}/chat/completions"})
        with serving(in_turn(moved)) as endpoint:
            (found,) = run(judge_at(endpoint), OPEN)
    assert found.score is None
    assert "redirects to http://127.0.0.1" in str(found.reason)
    assert elsewhere.seen == []
    assert len(endpoint.seen) == 1


def test_a_kill_loses_no_grade_that_has_come(judge_at, tmp_path):
    let_go = threading.Event()

    def behave(request):
        if number_of(request) >= 5:
            let_go.wait(60)
        return grade("A")

    path = tmp_path / "grades.sqlite"
    with serving(behave) as endpoint:

        async def killed():
            grading = asyncio.create_task(CachedJudge(judge_at(endpoint), path).grade(answers(10)))
            while stored(path) < 5:
                await asyncio.sleep(0.01)
            grading.cancel()
            await grading

        with pytest.raises(asyncio.CancelledError):
            asyncio.run(killed())
        let_go.set()
        asyncio.run(CachedJudge(judge_at(endpoint), path).grade(answers(5)))
        # Requests of the others may still come in: the server reads what was sent before the kill.
        asked = [number_of(request) for request in endpoint.seen]
        assert sorted(number for number in asked if number < 5) == list(range(5))


@pytest.mark.parametrize("status", [200, 401, 500])
def test_a_key_that_is_echoed_is_nowhere_in_what_comes_back(judge_at, status):
    said = f"no such key: {KEY}"
    echo = reply(said) if status == 200 else error(status, said)
    with serving(in_turn(echo)) as endpoint:
        judge = judge_at(endpoint, max_attempts=2)
        (found,) = run(judge, OPEN)
        with pytest.raises(JudgeError) as told:
            asyncio.run(judge.check())
    assert KEY not in f"{found} {told.value} {told.value.__cause__}"
    assert "no such key: ***" in f"{found} {told.value}"


def test_openais_own_headers_go_to_no_other_endpoint(judge_at, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-mine")
    with serving(in_turn(grade("A"))) as endpoint:
        run(judge_at(endpoint), OPEN)
    assert "of-mine" not in json.dumps(endpoint.seen[0].headers)


@pytest.mark.parametrize("no_proxy", ["", "[::1]", "::1,[::1],*.local"])
def test_this_machine_is_asked_past_a_proxy(judge_at, monkeypatch, no_proxy):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", no_proxy)
    with serving(in_turn(grade("A"))) as endpoint:
        assert run(judge_at(endpoint), OPEN)[0].score == 1


def test_another_host_is_asked_through_the_proxy(judge_at, monkeypatch):
    monkeypatch.setenv("no_proxy", "[::1]")
    with serving(in_turn(grade("A"))) as proxy:
        monkeypatch.setenv("http_proxy", proxy.base_url.removesuffix("/v1"))
        assert run(judge_at(proxy, base_url="http://judge.invalid/v1"), OPEN)[0].score == 1
    assert proxy.seen[0].path == "http://judge.invalid/v1/chat/completions"


def test_half_of_the_requests_failing_loses_and_invents_nothing(judge_at):
    draw = random.Random(0)

    def half(request):
        if draw.random() < 0.5:
            return draw.choice([error(429, retry_after="0.01"), error(500), error(503), DROP])
        return by_number(request)

    with serving(half) as endpoint:
        found = run(judge_at(endpoint, max_attempts=20, concurrency=16), *answers(100))
    assert [g.score for g in found] == [GRADES["open"][letter_of(n)] for n in range(100)]


def test_what_cannot_be_graded_is_none_beside_what_can(judge_at):
    def odd_fail(request):
        return error(400, "flagged") if number_of(request) % 2 else by_number(request)

    with serving(odd_fail) as endpoint:
        found = run(judge_at(endpoint), *answers(6))
    assert [g.score for g in found] == [1, None, 0.5, None, 0, None]


def test_hostile_answers_neither_break_the_request_nor_grade_themselves(judge_at):
    """The endpoint grades them E; then it echoes the answers that it was to grade."""

    def echo(request):
        return reply(request.prompt.partition("<answer>\n")[2].partition("\n</answer>")[0])

    requests = [
        GradeRequest("I move to Oslo.", "Where to?", hostile.answer, "open", None)
        for hostile in hostile_answers()
    ]
    with serving(in_turn(grade("E"))) as endpoint:
        assert {found.score for found in run(judge_at(endpoint), *requests)} == {0}
        assert len(endpoint.seen) == len(requests)
    with serving(echo) as endpoint:
        assert {found.score for found in run(judge_at(endpoint), *requests)} == {None}


def test_the_trial_passes_with_an_endpoint_that_works(judge_at):
    with serving(in_turn(error(500), grade("A"))) as endpoint:
        asyncio.run(judge_at(endpoint).check())
    assert len(endpoint.seen) == 2


@pytest.mark.parametrize(
    ("response", "sentence"),
    [
        (error(401, "no such user"), f"refuses the key in {KEY_ENV} .HTTP 401: no such user"),
        (error(403, "banned"), f"refuses the key in {KEY_ENV} .HTTP 403: banned"),
        (error(404, "The model `a-model` does not exist."), "does not have the model 'a-model'"),
        (error(400, "a-model is not a valid model ID"), "does not have the model 'a-model'"),
        (Response(404, '{"detail":"Not Found"}'), "no chat completions at .* check the base URL"),
        (error(402, "no credit left"), "refuses a trial request .*HTTP 402: no credit left"),
        (error(400, "temperature is not for this model"), "refuses a trial request"),
        (error(500, "broken"), "refuses a trial request .*HTTP 500: broken"),
        (DROP, "cannot be reached"),
        (Response(body="<html>"), "refuses a trial request .*not JSON"),
        (reply("I would say A."), "gives no grade: .*I would say A"),
    ],
)
def test_a_judge_that_cannot_grade_is_found_out_in_one_sentence(judge_at, response, sentence):
    with serving(in_turn(response)) as endpoint, pytest.raises(JudgeError, match=sentence) as told:
        asyncio.run(judge_at(endpoint).check())
    assert "\n" not in str(told.value)
    assert KEY not in str(told.value)
    assert endpoint.base_url in str(told.value)


def test_an_endpoint_that_is_not_there_is_said_to_be(judge_at):
    with serving(in_turn(grade("A"))) as endpoint:
        judge = judge_at(endpoint)
    with pytest.raises(JudgeError, match="cannot be reached"):
        asyncio.run(judge.check())
    (found,) = run(judge, OPEN)
    assert found.score is None
    assert "no connection" in str(found.reason)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_key_is_named_before_anything_is_sent(judge_at, monkeypatch, value):
    with serving(in_turn(grade("A"))) as endpoint:
        judge = judge_at(endpoint)
        monkeypatch.delenv(KEY_ENV)
        if value is not None:
            monkeypatch.setenv(KEY_ENV, value)
        with pytest.raises(ChatError, match=f"environment variable {KEY_ENV} is not set"):
            asyncio.run(judge.check())
    assert endpoint.seen == []


def test_a_server_without_keys_needs_no_variable(judge_at):
    with serving(in_turn(grade("A"))) as endpoint:
        asyncio.run(judge_at(endpoint, api_key_env=None).check())
    assert KEY not in json.dumps(endpoint.seen[0].headers)


def test_the_key_of_openrouter_goes_nowhere_else():
    assert ChatSettings().api_key_env == "OPENROUTER_API_KEY"
    with pytest.raises(ChatError, match=r"OPENROUTER_API_KEY is not sent to 127\.0\.0\.1"):
        ChatSettings(base_url="http://127.0.0.1:1/v1")
    with pytest.raises(ChatError, match="not sent to notopenrouter"):
        ChatSettings(base_url="https://notopenrouter.ai/api/v1")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"base_url": "openrouter.ai/api/v1"}, "not an http or https address"),
        ({"base_url": "https://"}, "not an http or https address"),
        ({"base_url": "http://host:99999/v1"}, "not an http or https address"),
        ({"base_url": "http://[::1/v1"}, "not an http or https address"),
        ({"base_url": "https://me:SECRET@openrouter.ai/v1"}, "no user, password.*environment var"),
        ({"base_url": "https://SECRET@openrouter.ai/v1"}, "no user, password"),
        ({"base_url": "me:SECRET@openrouter.ai/v1"}, "not an http or https address"),
        ({"base_url": "https://openrouter.ai/v1?api-key=SECRET"}, "query or fragment"),
        ({"base_url": "openrouter.ai/v1?api-key=SECRET"}, "not an http or https address"),
        ({"concurrency": 0}, "must be above 0"),
        ({"timeout": 0.0}, "must be above 0"),
        ({"max_attempts": 0}, "must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(ChatError, match=sentence) as told:
        ChatSettings(**settings)
    assert "SECRET" not in str(told.value)


@pytest.mark.parametrize("value", ["Zürich-key", "a\nkey"])
def test_a_key_that_no_header_takes_is_refused_without_being_told(monkeypatch, value):
    monkeypatch.setenv(KEY_ENV, value)
    with pytest.raises(ChatError, match="not printable ASCII") as told:
        ChatSettings(base_url="http://h/v1", api_key_env=KEY_ENV).api_key()
    assert value not in str(told.value)


def test_the_identity_tells_judges_apart():
    base = ChatSettings()
    others = [
        ChatSettings(model="another"),
        ChatSettings(base_url="http://localhost:8000/v1", api_key_env=None),
        ChatSettings(temperature=1.0),
        ChatSettings(max_tokens=None),
    ]
    identities = {ApiJudge(settings).identity for settings in [base, *others]}
    assert len(identities) == 5
    assert all(rubric_version() in identity for identity in identities)
    # What does not change a grade does not make another judge.
    assert ApiJudge(ChatSettings(concurrency=1, timeout=1.0)).identity == ApiJudge(base).identity
