from typing import Any

import anyio
import pytest
import torch

from grpo_ao.chat import ChatSettings
from grpo_ao.judges.api import ApiJudge
from tests.judges.endpoint import Endpoint

KEY_ENV = "GRPO_AO_TEST_KEY"
KEY = "a-key-of-the-tests"


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny models are slowed down by threads, tenfold where another process wants the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def judge_at(monkeypatch):
    """Make an API judge for an endpoint, with waits of milliseconds between attempts."""
    monkeypatch.setenv(KEY_ENV, KEY)
    sleep = anyio.sleep
    monkeypatch.setattr(anyio, "sleep", lambda seconds: sleep(seconds / 200))

    def make(endpoint: Endpoint, **settings) -> ApiJudge:
        given: dict[str, Any] = {"base_url": endpoint.base_url, "api_key_env": KEY_ENV}
        given |= {"timeout": 5.0, "model": "a-model"}
        return ApiJudge(ChatSettings(**(given | settings)))

    return make
