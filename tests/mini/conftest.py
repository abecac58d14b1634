import pytest
from transformers import PreTrainedTokenizerFast

from grpo_ao.mini.build import WEIGHTS


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that lies beside the mini base."""
    return PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "base")
