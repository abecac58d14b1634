import asyncio

import pytest

from grpo_ao.chat.client import ChatSettings
from grpo_ao.judges.api import ApiJudge
from grpo_ao.judges.cache import CachedJudge
from grpo_ao.judges.factory import make_judge
from grpo_ao.judges.local import LocalJudge
from grpo_ao.judges.protocol import CheckedJudge, GradeRequest
from grpo_ao.judges.reference import ReferenceJudge
from tests.tiny import tiny_model, tiny_tokenizer


def test_each_kind_makes_its_judge(tmp_path):
    local = LocalJudge(tiny_model(), tiny_tokenizer(), "tiny")
    assert isinstance(make_judge("api", chat=ChatSettings()), ApiJudge)
    assert make_judge("local", local=local) is local
    assert isinstance(make_judge("reference"), ReferenceJudge)
    for judge in (make_judge("reference"), local, make_judge("api", chat=ChatSettings())):
        assert isinstance(judge, CheckedJudge)


def test_grades_are_kept_where_a_file_is_given(tmp_path):
    chat, path = ChatSettings(), tmp_path / "grades.sqlite"
    judge = make_judge("api", chat=chat, cache=path)
    assert isinstance(judge, CachedJudge)
    assert judge.identity == ApiJudge(chat).identity
    assert path.exists()
    # The reference judge grades at once and for nothing.
    assert isinstance(make_judge("reference", cache=path), ReferenceJudge)


def test_a_judge_without_what_it_needs_is_refused():
    local = LocalJudge(tiny_model(), tiny_tokenizer(), "tiny")
    with pytest.raises(ValueError, match="'api' cannot be made"):
        make_judge("api", local=local)
    with pytest.raises(ValueError, match="'local' cannot be made"):
        make_judge("local", chat=ChatSettings())


def test_a_cached_local_judge_reads_once(tmp_path):
    local = LocalJudge(tiny_model(), tiny_tokenizer(), "tiny")
    judge = make_judge("local", local=local, cache=tmp_path / "grades.sqlite")
    request = GradeRequest("Hi", "Is it a greeting?", "Yes", "closed", None)
    asyncio.run(judge.check())
    first, second = (asyncio.run(judge.grade([request]))[0] for _ in range(2))
    assert first.score == second.score
    assert (first.input_tokens or 0) > 0
    assert second.input_tokens == 0
