"""Shared fixtures. Annotations of tensor shapes are checked at run time in tests only."""

from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from tests import annotations

install_import_hook("grpo_ao", f"{annotations.__name__}.check")

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared() -> Path:
    """The folder of real data files, where there is one beside the checkout."""
    if not _SHARED.is_dir():
        pytest.skip(f"no real data at {_SHARED}")
    return _SHARED
