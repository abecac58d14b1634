import asyncio
import json

import pytest

from grpo_ao.chat import ChatSettings
from grpo_ao.judges.api import ApiJudge
from grpo_ao.judges.cache import CachedJudge
from grpo_ao.judges.factory import JudgeFlags, make_judge, with_cache
from grpo_ao.judges.local import LocalJudge
from grpo_ao.judges.protocol import CheckedJudge, GradeRequest
from grpo_ao.judges.reference import ReferenceJudge
from tests.tiny import tiny_model, tiny_tokenizer


def test_each_kind_makes_its_judge():
    local = LocalJudge(tiny_model(), tiny_tokenizer(), "tiny")
    api, reference = make_judge(JudgeFlags()), make_judge(JudgeFlags(judge="reference"))
    assert isinstance(api, ApiJudge)
    assert isinstance(reference, ReferenceJudge)
    assert make_judge(JudgeFlags(judge="local"), local) is local
    for judge in (api, local, reference):
        assert isinstance(judge, CheckedJudge)
        assert json.loads(judge.identity)["judge"] in ("api", "local", "reference")


def test_the_flags_are_the_endpoints_settings():
    assert JudgeFlags().chat_settings() == ChatSettings()
    flags = JudgeFlags("api", "m", "http://localhost:1/v1", None, 3, 0.5, 2.0)
    settings = flags.chat_settings()
    assert (settings.model, settings.base_url, settings.api_key_env, settings.concurrency) == (
        "m",
        "http://localhost:1/v1",
        None,
        3,
    )
    assert (settings.input_price, settings.output_price) == (0.5, 2.0)


def test_grades_are_kept_where_a_file_is_given(tmp_path):
    path = tmp_path / "grades.sqlite"
    judge = with_cache(make_judge(JudgeFlags()), path)
    assert isinstance(judge, CachedJudge)
    assert judge.identity == ApiJudge(ChatSettings()).identity
    assert path.exists()
    # The reference judge grades at once and for nothing.
    reference = with_cache(make_judge(JudgeFlags(judge="reference")), path)
    assert isinstance(reference, ReferenceJudge)


def test_a_local_judge_without_its_model_is_refused():
    with pytest.raises(ValueError, match="'local' cannot be made"):
        make_judge(JudgeFlags(judge="local"))


def test_a_cached_local_judge_reads_once(tmp_path):
    local = LocalJudge(tiny_model(), tiny_tokenizer(), "tiny")
    judge = with_cache(make_judge(JudgeFlags(judge="local"), local), tmp_path / "grades.sqlite")
    request = GradeRequest("Hi", "Is it a greeting?", "Yes", "closed", None)
    asyncio.run(judge.check())
    first, second = (asyncio.run(judge.grade([request]))[0] for _ in range(2))
    assert first.score == second.score
    assert (first.input_tokens or 0) > 0
    assert second.input_tokens == 0
