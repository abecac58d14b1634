"""The generator of question sets, against a real HTTP server that plays the language model."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
from rich.console import Console

from grpo_ao.chat import ChatError
from grpo_ao.chat_completion import ReplyError
from grpo_ao.cli import main
from grpo_ao.errors import UserError
from grpo_ao.probes import generate as module
from grpo_ao.probes import question_requests as asking
from grpo_ao.probes.generate import generate_questions
from grpo_ao.probes.question_file import QuestionFile
from grpo_ao.probes.question_prompt import OPEN, SCHEMA, parse_questions
from grpo_ao.probes.questions_config import QuestionsConfig
from grpo_ao.probes.rows import load_rows, parse_row
from grpo_ao.probes.sources import SourceText
from tests.judges.endpoint import (
    USAGE,
    Behaviour,
    Endpoint,
    Request,
    Response,
    error,
    reply,
    serving,
)

ROOT = Path(__file__).resolve().parents[2]
KEY_ENV = "GRPO_AO_TEST_KEY"
PRICED = USAGE | {"cost": 0.001}


def text_of(number: int) -> str:
    # Different enough from each other that none is a near duplicate.
    return f"Message {number}: " + " ".join(f"w{number * 37 + n}" for n in range(12))


def number_in(request: Request) -> int:
    return int(request.prompt.partition("Message ")[2].partition(":")[0])


def content(number: int = 0, **changes: Any) -> dict[str, Any]:
    pairs = [{"question": f"What is the {n} of {number}?", "answer": f"{n} {number}"} for n in OPEN]
    return {
        "language": "english",
        "yes": [f"Is it message {number}?", "Does the user count?"],
        "no": [f"Is it message {number + 1}?", "Does the user cook?"],
        **dict(zip(OPEN, pairs, strict=True)),
        **changes,
    }


def good(request: Request, **options) -> Response:
    return reply(json.dumps(content(number_in(request))), usage=PRICED, **options)


class Maker:
    """Runs the generator; ``seen`` holds the requests of the last start, ``printed`` its words."""

    def __init__(self, folder: Path, endpoint: Endpoint) -> None:
        self.folder = folder
        self.endpoint = endpoint
        self.seen: list[Request] = []
        self.printed = ""

    def __call__(self, behaviour: Behaviour, texts: int = 12, **settings: Any) -> str:
        source = self.folder / "texts.jsonl"
        lines = [json.dumps({"text": text_of(n)}) + "\n" for n in range(1, texts + 1)]
        source.write_text("".join(lines))
        given: dict[str, Any] = {"source": str(source), "column": "text", "model": "m"}
        given |= {"output": self.folder / "set.jsonl", "api_key_env": KEY_ENV}
        given |= {"base_url": self.endpoint.base_url}
        config = QuestionsConfig(**(given | settings))
        self.endpoint.behaviour, before = behaviour, len(self.endpoint.seen)
        console = Console(width=300)
        console.begin_capture()
        try:
            generate_questions(config, console)
        finally:
            self.printed = console.end_capture()
            self.seen = self.endpoint.seen[before:]
        return self.printed


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_ENV, "a-key")
    with serving(good) as endpoint:
        yield Maker(tmp_path, endpoint)


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "set.jsonl").read_text().splitlines()]


def log_of(folder: Path) -> list[dict]:
    lines = (folder / "set.jsonl.log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# Rows


def test_a_set_is_made_and_loads(made, tmp_path):
    printed = made(good)
    loaded = load_rows(str(tmp_path / "set.jsonl"), strict=True)
    assert sorted(row[0].text for row in loaded.rows) == sorted(text_of(n) for n in range(1, 13))
    for row in loaded.rows:
        found = {item.question: (item.kind, item.target) for item in row}
        assert len(row) == len(found) == 8
        assert [kind for kind, _ in found.values()].count("closed") == 4
        assert found["Does the user count?"] == ("closed", "Yes")
        assert found["Does the user cook?"] == ("closed", "No")
        assert next(a for q, a in found.items() if q.startswith("What is the topic"))[0] == "open"
    assert {row["language"] for row in rows_of(tmp_path)} == {"english"}
    # The order of the questions tells nothing.
    orders = [[item.question for item in row] for row in loaded.rows]
    assert len({order.index("Does the user count?") for order in orders}) > 2
    for words in (
        "12 texts to do: about 1,2",
        "and 84 to write, about $0.012",
        "8.00 a row",
        "50.0%",
    ):
        assert words in printed


def test_what_is_asked(made):
    made(good, texts=1)
    (request,) = made.seen
    assert "<message>\nMessage 1: w37 w38" in request.prompt
    assert request.body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert request.body["temperature"] == 0.7


SOURCE = SourceText(7, "A text.", None, False)


def test_a_reply_is_a_row():
    row = parse_questions(json.dumps(content(3, language=" French ")), SOURCE)
    assert (row["wildchat_question"], row["language"], row["idx"]) == ("A text.", "french", 7)
    asked = dict(zip(row["oracle_questions"], row["reference_answers"], strict=True))
    assert asked["Is it message 4?"] == "No"
    assert asked["What is the inference of 3?"] == "inference 3"
    assert (
        parse_questions(json.dumps(content(3)), SOURCE)["oracle_questions"]
        == (row["oracle_questions"])
    )
    # What the source says of the language goes before what the model says.
    assert (
        parse_questions(json.dumps(content()), SOURCE._replace(language="Dutch"))["language"]
        == "dutch"
    )


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("I will not.", "not one JSON object"),
        ("```json\n{}\n```", "not one JSON object"),
        ("[]", "exactly the keys"),
        ("{}", "exactly the keys"),
        (content(extra=1), "exactly the keys"),
        ('{"yes": [], "yes": []}', "a key is given twice"),
        (content(yes=["Is it?"]), "'yes' is not a list of 2"),
        (content(yes="Is it?"), "'yes' is not a list of 2"),
        (content(no=["Is it?", 7]), "'no' holds no text"),
        (content(no=["Is it?", " "]), "'no' holds no text"),
        (content(no=["Is it?", "Name it?"]), "'Name it\\?', which is no yes/no question"),
        (content(no=["Is it?", "Is it red or blue?"]), "no yes/no question"),
        (content(no=["Is it?", "Is it so."]), "does not end with a question mark"),
        (content(no=["Is it?", "Is it " + "so " * 100 + "?"]), "more than 300"),
        (content(yes=["Is it?", "is it?"]), "two questions are the same"),
        (content(topic={"question": "What is it?"}), "'topic' is not an object of"),
        (content(topic={"question": "Is it?", "answer": "a"}), "which is a yes/no question"),
        (content(topic={"question": "What is it?", "answer": ""}), "'topic' holds no text"),
        (content(topic={"question": "What is it?", "answer": "a" * 201}), "more than 200"),
        (
            content(topic={"question": "What is it?", "answer": "\ud800"}),
            "half of a surrogate",
        ),
        (content(language=None), "'language' holds no text"),
    ],
)
def test_a_reply_that_is_not_as_asked_for_is_refused_with_the_reason(reply, reason):
    with pytest.raises(ReplyError, match=reason):
        parse_questions(reply if isinstance(reply, str) else json.dumps(reply), SOURCE)


# Failures


def test_a_bad_reply_is_asked_for_once_more_and_then_left_out_with_its_reason(made, tmp_path):
    tries: dict[int, int] = {}

    def behave(request):
        number = number_in(request)
        tries[number] = tries.get(number, 0) + 1
        if number == 3 or (number == 5 and tries[5] == 1):
            return reply("I would rather not.", usage=PRICED)
        return good(request)

    printed = made(behave)
    assert (tries[3], tries[5], sum(tries.values())) == (2, 2, 14)
    assert "row 3 is left out: the model's reply was refused twice: it is not one JSON" in printed
    assert sorted(row["idx"] for row in rows_of(tmp_path)) == [1, 2, *range(4, 13)]
    # The second time the model is told what was wrong; both replies are paid.
    assert "An earlier reply was refused: it is not one JSON object." in made.seen[
        -1
    ].prompt or any(
        "An earlier reply was refused: it is not one JSON object." in r.prompt for r in made.seen
    )
    costs = {record["number"]: record["usage"][2] for record in log_of(tmp_path)[1:]}
    assert (costs[3], costs[5], costs[1]) == (0.002, 0.002, 0.001)
    # Left out for good: it is not paid for again.
    made(good, resume=True)
    assert made.seen == []


def test_texts_in_another_language_are_left_out_by_what_the_model_says(made, tmp_path):
    def behave(request):
        number = number_in(request)
        language = "french" if number == 2 else "english"
        return reply(json.dumps(content(number, language=language)), usage=PRICED)

    assert "row 2 is left out: its language is french, not english" in made(behave, texts=3)
    assert sorted(row["idx"] for row in rows_of(tmp_path)) == [1, 3]


def test_filtered_rows_are_counted_and_logged_with_their_reasons(made, tmp_path):
    printed = made(good, texts=4, min_characters=len(text_of(1)) + 1, num_texts=2, language=None)
    with pytest.raises(ValueError, match="no text that passes the filters"):
        made(good, texts=4, max_characters=21, output=tmp_path / "other.jsonl")
    left_out = [record for record in log_of(tmp_path)[1:] if record["reason"]]
    assert len(left_out) >= 1
    assert f"{len(left_out)} rows of" in printed
    assert left_out[0]["reason"] == f"it has {len(text_of(1))} characters"
    before = log_of(tmp_path)
    made(good, texts=4, min_characters=len(text_of(1)) + 1, num_texts=2, language=None, resume=True)
    assert log_of(tmp_path) == before


def test_an_endpoint_that_does_not_work_is_one_sentence_and_costs_nothing(made, monkeypatch):
    with pytest.raises(ChatError, match=f"refuses the key in {KEY_ENV} .HTTP 401"):
        made(lambda _: error(401, "no such user"))
    assert len(made.seen) == 1
    monkeypatch.delenv(KEY_ENV)
    with pytest.raises(ChatError, match=f"{KEY_ENV} is not set"):
        made(good)
    assert made.seen == []


def test_texts_whose_requests_fail_are_told_and_asked_about_again(made, tmp_path):
    def behave(request):
        return error(402, "no credit left") if number_in(request) in (4, 5) else good(request)

    with pytest.raises(ChatError, match=r"failed for 2 texts \(2 times: HTTP 402.*--resume"):
        made(behave)
    assert len(rows_of(tmp_path)) == 10
    made(good, resume=True)
    assert sorted(map(number_in, made.seen)) == [4, 5]
    assert len(rows_of(tmp_path)) == 12


def test_what_a_reply_cost_counts_though_the_next_request_failed(made, tmp_path):
    def behave(request):
        if number_in(request) != 2:
            return good(request)
        again = "An earlier reply was refused" in request.prompt
        return error(402, "no credit left") if again else reply("No.", usage=PRICED)

    with pytest.raises(ChatError, match="failed for 1 texts"):
        made(behave, texts=3)
    assert "2 rows, 1 failed, 321 tokens, $0.0030" in made.printed
    made(good, texts=3, resume=True)
    assert [number_in(request) for request in made.seen] == [2]
    assert sum(record["usage"][2] for record in log_of(tmp_path)[1:]) == pytest.approx(0.004)


def test_an_endpoint_that_is_gone_is_not_asked_for_ever(made, tmp_path):
    def behave(request):
        return good(request) if number_in(request) <= 3 else error(402, "no credit left")

    with pytest.raises(ChatError, match=f"the endpoint failed {asking._GONE} times in a row"):
        made(behave, texts=60, concurrency=2)
    assert len(made.seen) <= 3 + asking._GONE + 2
    assert len(rows_of(tmp_path)) == 3


# Costs


def test_a_set_that_will_cost_too_much_is_not_begun_beyond_the_trial(made, tmp_path):
    with pytest.raises(ValueError, match=r"will cost about \$0\.012\d, above --max_cost 0\.01"):
        made(good, max_cost=0.01)
    assert len(made.seen) == 1
    assert len(rows_of(tmp_path)) == 1
    made(good, max_cost=0.02, resume=True)
    assert len(made.seen) == 11


def test_no_more_is_spent_than_max_cost_whatever_the_estimate_said(made, tmp_path):
    def dearer(request):
        price = 0.001 if request.number == 0 else 0.01
        return reply(json.dumps(content(number_in(request))), usage=USAGE | {"cost": price})

    with pytest.raises(ChatError, match=r"spent, and --max_cost is 0\.05.*--resume"):
        made(dearer, texts=40, max_cost=0.05, concurrency=4)
    spent = sum(record["usage"][2] for record in log_of(tmp_path)[1:])
    # The first price was a tenth of the others: what was in flight then could not be foreseen.
    assert spent <= 0.05 + 4 * 0.01
    assert len(rows_of(tmp_path)) < 10


def test_prices_stand_in_where_no_cost_is_told_and_max_cost_needs_one_of_both(made):
    def silent(request):
        return reply(json.dumps(content(number_in(request))), usage=USAGE)

    printed = made(silent, texts=2, input_price=1.0, output_price=10.0)
    assert "about $0.000" in printed
    assert "cost not known" in made(silent, texts=3, resume=True)
    with pytest.raises(ValueError, match="--max_cost cannot be kept where the cost is not known"):
        made(silent, texts=4, resume=True, max_cost=1.0)


# Files


def test_a_set_is_not_overwritten_and_not_mixed(made, tmp_path):
    made(good, texts=2)
    with pytest.raises(UserError, match=r"holds a question set already.*--resume"):
        made(good, texts=2)
    with pytest.raises(ValueError, match="'model' was 'm' when it was begun and is 'n' now"):
        made(good, texts=2, resume=True, model="n")
    with pytest.raises(UserError, match="no question set to resume"):
        made(good, texts=2, resume=True, output=tmp_path / "other.jsonl")


def test_a_set_can_be_made_longer(made, tmp_path):
    made(good, texts=8, num_texts=3)
    made(good, texts=8, num_texts=5, resume=True)
    assert sorted(row["idx"] for row in rows_of(tmp_path)) == [1, 2, 3, 4, 5]
    assert sorted(map(number_in, made.seen)) == [4, 5]


def test_all_that_shapes_a_row_is_compared_on_resuming():
    names = set(QuestionsConfig().of_the_set()) - {"prompt"}
    free = {"output", "resume", "num_texts", "api_key_env", "concurrency", "input_price"}
    free |= {"output_price", "max_cost", "push_to_hub", "push_public"}
    assert names | free == {field.name for field in dataclasses.fields(QuestionsConfig)}


def test_two_processes_do_not_write_one_set(tmp_path):
    path = tmp_path / "set.jsonl"
    refused = pytest.raises(UserError, match="another process is writing")
    with QuestionFile(path, {}, resume=False), refused:
        QuestionFile(path, {}, resume=True)
    with QuestionFile(path, {}, resume=True) as file:
        assert file.rows == []


def test_the_finished_set_is_pushed(made, monkeypatch):
    monkeypatch.setattr(module, "get_token", lambda: None)
    with pytest.raises(ValueError, match="--push_to_hub needs a token"):
        made(good, push_to_hub="someone/questions")
    pushed = []
    monkeypatch.setattr(module, "get_token", lambda: "a-token")

    def push(rows: datasets.Dataset, name: str, private: bool) -> None:
        pushed.append((name, private, list(rows)))

    monkeypatch.setattr(datasets.Dataset, "push_to_hub", push)
    made(good, texts=3, push_to_hub="someone/questions")
    ((name, private, rows),) = pushed
    assert (name, private) == ("someone/questions", True)
    assert [parse_row(row)[0].text for row in sorted(rows, key=lambda row: row["idx"])] == [
        text_of(n) for n in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_texts": 0}, "--num_texts must be above 0, got 0"),
        ({"min_characters": 5, "max_characters": 4}, "--max_characters must be at least"),
        ({"max_cost": 0.0}, "--max_cost must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        QuestionsConfig(**settings)


@pytest.mark.parametrize("output", ["", "/", "file/set.jsonl", "x" * 300])
def test_an_output_that_no_file_can_be_is_one_sentence(tmp_path, output):
    (tmp_path / "file").write_text("")
    path = tmp_path / output if "file" in output else Path(output)
    with pytest.raises(UserError, match=r"names no file|cannot be written"):
        QuestionFile(path, {}, resume=False)


def test_the_command_says_in_one_sentence_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    with pytest.raises(SystemExit, match=r"error: .*OPENROUTER_API_KEY is not set"):
        main(["questions", "--output", str(tmp_path / "set.jsonl")])
    assert not (tmp_path / "set.jsonl").exists()


# A kill

# The command itself, without the imports of all the others.
COMMAND = """
import tyro
from rich.console import Console
from grpo_ao.probes.generate import generate_questions
from grpo_ao.probes.questions_config import QuestionsConfig
generate_questions(tyro.cli(QuestionsConfig), Console())
"""


def test_what_was_made_before_a_kill_is_not_paid_for_again(tmp_path):
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text_of(n)}) + "\n" for n in range(1, 41)))
    output = tmp_path / "set.jsonl"
    killed = threading.Event()

    def behaviour(request):
        if request.number >= 12:  # so that the set is not finished before the kill
            killed.wait(300)
        return good(request)

    with serving(behaviour) as endpoint:
        flags = f"--source {source} --column text --output {output} --api_key_env None"
        flags += f" --base_url {endpoint.base_url} --concurrency 3"
        command = [sys.executable, "-c", COMMAND, *flags.split()]
        run = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 600
        while run.poll() is None and time.monotonic() < end:
            # All that was answered is written, and all that is under way has come in.
            written = output.read_bytes().count(b"\n") if output.exists() else 0
            if (written, len(endpoint.seen)) == (12, 15):
                break
            time.sleep(0.01)
        assert run.poll() is None, "the command ended before it could be killed"
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        killed.set()
        with output.open("ab") as file:  # as a kill in the middle of a write would leave it
            file.write(b'{"wildchat_question": "half a li')
        kept = [json.loads(line)["idx"] for line in output.read_bytes().splitlines()[:-1]]
        before = len(endpoint.seen)
        done = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        again = [number_in(request) for request in endpoint.seen[before:]]
    assert len(kept) == 12
    assert sorted(again) == sorted(set(range(1, 41)) - set(kept))
    assert sorted(row["idx"] for row in rows_of(tmp_path)) == list(range(1, 41))
    # Only what was in flight was asked about twice.
    assert before - len(kept) == 3
