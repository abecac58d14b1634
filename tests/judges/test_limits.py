"""The judge of a run: its trial, its limits, and an outage in the middle of a real run."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_ao import prepare
from grpo_ao import run as run_module
from grpo_ao.cli import main, parse_train_config
from grpo_ao.judges.factory import with_cache
from grpo_ao.judges.flags import JudgeFlags
from grpo_ao.judges.limits import LimitedJudge, tried_judge
from grpo_ao.judges.local import LocalJudge
from grpo_ao.judges.protocol import JudgeError
from grpo_ao.judges.rubric import rubric_version
from grpo_ao.run import run
from tests.judges.endpoint import Endpoint, Request, Response, error, grade, serving
from tests.judges.fakes import CountingJudge, request
from tests.rigs import make_oracle

KEY_ENV = "GRPO_AO_TEST_KEY"


# The limits


def test_a_batch_above_the_limit_is_refused_with_the_most_frequent_reason():
    judge = CountingJudge(unscored=frozenset({"answer 0", "answer 1"}))
    requests = [request(number) for number in range(10)]
    grades = asyncio.run(LimitedJudge(judge, 0.2).grade(requests))
    assert [g.score is None for g in grades] == [True, True] + [False] * 8
    with pytest.raises(
        JudgeError, match=r"left 2 of 10 answers ungraded.* 0\.19 .*told to.*--resume"
    ):
        asyncio.run(LimitedJudge(judge, 0.19).grade(requests))
    assert asyncio.run(LimitedJudge(judge, 0.0).grade([])) == []


# The trial


def test_the_judge_is_tried_before_anything_is_loaded(tmp_path, monkeypatch):
    def load(*_):
        raise AssertionError("something was loaded")

    monkeypatch.setattr(run_module, "Oracle", load)
    for name in ("check_start", "ProbeLoader"):
        monkeypatch.setattr(prepare, name, load)
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    arguments = ["--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"error: .*OPENROUTER_API_KEY is not set"):
        main(["train", *arguments])
    monkeypatch.setenv(KEY_ENV, "wrong")
    with serving(lambda _: error(401, "no such user")) as endpoint:
        arguments += ["--judge_base_url", endpoint.base_url, "--judge_api_key_env", KEY_ENV]
        with pytest.raises(SystemExit, match=rf"error: .*refuses the key in {KEY_ENV}"):
            main(["train", *arguments])
    assert len(endpoint.seen) == 1


def test_a_judge_that_was_tried_keeps_its_grades_in_the_file_it_was_given(tmp_path):
    oracle = make_oracle()
    local = LocalJudge(oracle.model, oracle.tokenizer, "tiny")
    judge = with_cache(tried_judge(JudgeFlags(judge="local"), local), tmp_path / "mine.sqlite")
    (found,) = asyncio.run(judge.grade([request(0)]))
    (direct,) = asyncio.run(local.grade([request(0)]))
    assert found.score == direct.score
    assert (tmp_path / "mine.sqlite").is_file()


# An outage


class Outage:
    """An endpoint whose credit is used up once the run has made some steps, until it is mended."""

    def __init__(self, metrics: Path, after: int) -> None:
        self.metrics = metrics
        self.after = after
        self.mended = False

    def __call__(self, request: Request) -> Response:
        made = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        if sum('"alert"' not in row for row in made) >= self.after and not self.mended:
            return error(402, "no credit left")
        return grade("AE"[request.number % 2])


@pytest.fixture
def outage(tmp_path) -> Iterator[tuple[Path, Outage, Endpoint]]:
    folder = tmp_path / "run"
    behaviour = Outage(folder / "metrics.jsonl", after=1)
    with serving(behaviour) as endpoint:
        yield folder, behaviour, endpoint


def train(folder: Path, endpoint: Endpoint, *more: str) -> dict:
    flags = "--warm_start none --no_initial_eval --eval_probes 8 --num_prompts 6 --max_steps 12"
    flags += " --questions_per_step 2 --num_generations 2 --save_steps 100 --plot_every 5"
    flags += " --validation_probes 8"
    flags += f" --judge api --judge_base_url {endpoint.base_url} --judge_api_key_env None"
    return run(
        parse_train_config(["--preset", "mini", *flags.split(), *more, f"--output_dir={folder}"])
    )


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_outage_of_the_judge_ends_in_a_checkpoint_and_the_run_goes_on_after_it(outage):
    folder, behaviour, endpoint = outage
    with pytest.raises(JudgeError) as caught:
        train(folder, endpoint)
    message = str(caught.value)
    for part in ("HTTP 402: no credit left", "10 times in a row", "--resume"):
        assert part in message
    # What the cache holds is graded all the same, so that a step or two more may be made.
    step = len([row for row in rows_of(folder / "metrics.jsonl") if "alert" not in row])
    assert f"stopped after step {step}." in message
    assert (folder / "checkpoints" / f"checkpoint-{step}" / "complete.json").is_file()
    assert "unscored" in [row.get("alert") for row in rows_of(folder / "metrics.jsonl")]

    behaviour.mended = True
    assert train(folder, endpoint, "--resume")["after"]["sampled"]["n"] == 8
    rows = rows_of(folder / "metrics.jsonl")
    steps = [row for row in rows if "alert" not in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert all(row["unscored"] <= 0.2 for row in steps)

    # The record names the judge, and another cannot go on.
    record = json.loads((folder / "run.json").read_text())
    assert (record["judge"]["judge"], record["judge"]["endpoint"]) == ("api", endpoint.base_url)
    assert record["judge"]["rubric"] == rubric_version()
    record["judge"]["rubric"] = "v0"
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"cannot resume: the judge was .*v0"):
        train(folder, endpoint, "--resume")
