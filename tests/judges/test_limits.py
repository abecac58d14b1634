"""The judge of a run: its trial, its limits, and an outage in the middle of a real run."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from grpo_ao import run as run_module
from grpo_ao.cli import main, parse_train_config
from grpo_ao.config import TrainConfig
from grpo_ao.epistemic import ParsedOutput
from grpo_ao.judges.limits import WINDOW, LimitedJudge, UnscoredLimit, tried_judge
from grpo_ao.judges.local import LocalJudge
from grpo_ao.judges.protocol import Grade, JudgeError
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.judges.rubric import rubric_version
from grpo_ao.reward import CalibratedReward, RewardTerms, ScoredCompletion
from grpo_ao.run import run
from tests.judges.endpoint import Endpoint, Request, Response, error, grade, serving
from tests.judges.fakes import CountingJudge, request
from tests.rigs import make_oracle, probe

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


def scored(*scores: float | None) -> list[ScoredCompletion]:
    """Completions with these grades; 2 stands for one that could not be parsed."""
    rows = []
    for number, score in enumerate(scores):
        parsed = score != 2
        found = (
            (Grade(score) if score is not None else Grade(None, "no credit")) if parsed else None
        )
        output = ParsedOutput(50, "an answer", parsed)
        terms = RewardTerms(None, None, None)
        rows.append(ScoredCompletion(probe(number), "a completion", output, found, terms))
    return rows


class Steps:
    """A run's steps, as far as the callback sees them."""

    def __init__(self, limit: float) -> None:
        self.reward = CalibratedReward(ReferenceJudge(), {}, 0.5)
        self.callback = UnscoredLimit(self.reward, limit)
        self.state = TrainerState()

    def step(self, *scores: float | None) -> bool:
        """Make one step; say whether the run is to stop with a checkpoint."""
        self.reward.last = scored(*scores)
        self.state.global_step += 1
        control = TrainerControl()
        self.callback.on_step_end(TrainingArguments(use_cpu=True), self.state, control)
        assert control.should_save == control.should_training_stop
        return control.should_training_stop


def test_the_run_stops_when_the_mean_of_ten_steps_passes_the_limit():
    steps = Steps(0.2)
    # Unparsed completions are not the judge's fault.
    assert not any(steps.step(1.0, 0.0, 2, 2) for _ in range(WINDOW))
    # One of four in each step is .25: after eight such steps the mean is .2, after nine above it.
    assert [steps.step(1.0, None, 2, 0.0) for _ in range(9)] == [False] * 8 + [True]
    message = (
        "left 22% of the completions of the last 10 steps.* no credit.* after step 19, .*--resume"
    )
    with pytest.raises(JudgeError, match=message):
        steps.callback.check()


def test_fewer_than_ten_steps_stop_nothing_and_a_healthy_run_passes_the_check():
    steps = Steps(0.2)
    assert not any(steps.step(None) for _ in range(WINDOW - 1))
    steps.callback.check()
    assert not any(Steps(1.0).step(None) for _ in range(2 * WINDOW))


# The trial


def test_the_judge_is_tried_before_anything_is_loaded(tmp_path, monkeypatch):
    def load(*_):
        raise AssertionError("something was loaded")

    for name in ("resolve_files", "load_probes", "Oracle"):
        monkeypatch.setattr(run_module, name, load)
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


def test_the_local_judge_is_the_oracles_own_model(tmp_path, monkeypatch):
    monkeypatch.setattr("grpo_ao.judges.limits.model_fingerprint", lambda _: "tiny")
    oracle = make_oracle()
    config = TrainConfig(judge="local", output_dir=tmp_path / "run")
    judge = tried_judge(config, oracle)
    (found,) = asyncio.run(judge.grade([request(0)]))
    (direct,) = asyncio.run(LocalJudge(oracle.model, oracle.tokenizer, "tiny").grade([request(0)]))
    assert found.score == direct.score
    # Runs beside each other share their grades.
    assert (tmp_path / "grades.sqlite").is_file()
    other = TrainConfig(judge="local", judge_cache=tmp_path / "mine.sqlite", output_dir=tmp_path)
    asyncio.run(tried_judge(other, oracle).grade([request(0)]))
    assert (tmp_path / "mine.sqlite").is_file()


# An outage


class Outage:
    """An endpoint whose credit is used up once the run has made some steps, until it is mended."""

    def __init__(self, metrics: Path, after: int) -> None:
        self.metrics = metrics
        self.after = after
        self.mended = False

    def __call__(self, request: Request) -> Response:
        steps = self.metrics.read_text().count("\n") if self.metrics.exists() else 0
        if steps >= self.after and not self.mended:
            return error(402, "no credit left")
        return grade("AE"[request.number % 2])


@pytest.fixture(scope="module")
def outage(tmp_path_factory) -> Iterator[tuple[Path, Outage, Endpoint]]:
    folder = tmp_path_factory.mktemp("outage") / "run"
    behaviour = Outage(folder / "metrics.jsonl", after=1)
    with serving(behaviour) as endpoint:
        yield folder, behaviour, endpoint


def train(folder: Path, endpoint: Endpoint, *more: str) -> dict:
    flags = "--warm_start none --no_initial_eval --eval_probes 8 --num_prompts 6 --max_steps 12"
    flags += " --questions_per_step 2 --num_generations 2 --save_steps 100 --plot_every 5"
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
    # The traceback holds the run's frames, and with them the lock on its folder.
    del caught
    for part in ("HTTP 402: no credit left", "stopped after step 10", "--resume"):
        assert part in message
    assert (folder / "checkpoints" / "checkpoint-10" / "complete.json").is_file()
    # What was not graded is no number anywhere. What the cache holds is graded all the same.
    ungraded = [row for row in rows_of(folder / "rollouts.jsonl") if row["score"] is None]
    assert ungraded
    assert {row["reward"] for row in ungraded if row["parsed"]} == {None}

    behaviour.mended = True
    assert train(folder, endpoint, "--resume")["after"]["sampled"]["n"] == 8
    rows = rows_of(folder / "metrics.jsonl")
    steps = [row for row in rows if "alert" not in row]
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert sum(row["unscored"] for row in steps[1:10]) > 2
    assert [row["unscored"] for row in steps[:1] + steps[10:]] == [0.0] * 3
    assert "unscored" in [row.get("alert") for row in rows]


def test_the_record_names_the_judge_and_another_cannot_resume(outage):
    folder, _, endpoint = outage
    record = json.loads((folder / "run.json").read_text())
    assert (record["judge"]["judge"], record["judge"]["endpoint"]) == ("api", endpoint.base_url)
    assert record["judge"]["rubric"] == rubric_version()
    record["judge"]["rubric"] = "v0"
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"cannot resume: the judge was .*v0"):
        train(folder, endpoint, "--resume")
