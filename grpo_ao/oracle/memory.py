"""Work that GPU memory may not suffice for."""

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def if_memory_suffices(work: Callable[[], Result]) -> Result | None:
    """Return what the work returns, or None where GPU memory is too short for it.

    All that the attempt held is free by then: the error keeps its tensors alive inside the block
    that catches it, so that smaller work belongs behind this call.
    """
    try:
        return work()
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()
    return None
