"""Code of the user's own, named on the command line as MODULE:FUNCTION."""

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from grpo_ao.errors import UserError


def load_function(name: str, flag: str) -> Callable[..., Any]:
    """Import ``MODULE:FUNCTION``, from the working directory too; UserError names the flag.

    A fault inside the module keeps its traceback.
    """
    module, _, function = name.partition(":")
    if not module or not function.isidentifier():
        raise UserError(f"{flag} {name} is not of the form MODULE:FUNCTION.")
    if "" not in sys.path:  # a console script does not look there by itself
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise UserError(f"{flag} {name}: there is no module {module} to import.") from error
    if not callable(found):
        raise UserError(f"{flag} {name}: the module {module} has no function {function}.")
    return found


@contextmanager
def own_code(name: str, flag: str) -> Iterator[None]:
    """Say in one sentence, a UserError, where code of the user's own fails that is tried here."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{flag} {name} fails in {place.filename}, line {place.lineno} "
            f"({type(error).__name__}: {error}): mend it."
        ) from error
