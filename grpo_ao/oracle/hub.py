"""Files of a model or adapter: a local folder, or a repository on the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from grpo_ao.errors import UserError
from grpo_ao.files import why_not_whole

PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED_MARK = "whole.json"
"""Beside weights that ship with the package: their sizes and digests (``files.mark_whole``)."""


def adapter_names(adapters: Sequence[str]) -> dict[str, str]:
    """Name each adapter by the end of its path, or by all of it where two ends are alike."""
    if len(set(adapters)) < len(adapters):
        raise UserError("an adapter is named twice: give each once.")
    short = [adapter_name(adapter) for adapter in adapters]
    return dict(zip(short if len(set(short)) == len(short) else adapters, adapters, strict=True))


def adapter_name(adapter: str) -> str:
    """Return a Hub id, or the end of a folder's path."""
    parts = Path(adapter).parts
    return "/".join(parts[-2:]) if Path(adapter).is_dir() else adapter


def resolve_files(name: str | Path, files: Sequence[str]) -> Path:
    """Return a folder that holds those of ``files`` (names or patterns) that the source has.

    ``name`` is a local folder or a Hub id; of a Hub repository the files are fetched into the
    cache, whose folder is named after the commit. Raises UserError, in one sentence, for
    what is neither.
    """
    try:
        if Path(name).is_dir():
            return Path(name)
        if Path(name).exists():
            raise UserError(f"{name} is a file, not the folder of a model or adapter.")
        folder = snapshot_download(str(name), allow_patterns=list(files))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{name} is neither a local folder nor in the Hub's cache, and the Hub cannot be "
            "reached: connect to the network or give the path of a downloaded copy."
        ) from error
    except HFValidationError as error:
        raise UserError(f"there is no folder {name}, and no Hub id is written so.") from error
    except HfHubHTTPError as error:
        raise UserError(
            f"{name} is neither a local folder nor a Hub repository that can be read: check the "
            "spelling, or log in if it is private."
        ) from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror or error}.") from error
    return Path(folder)


def check_shipped(folder: Path) -> None:
    """Raise UserError where weights of this package are not those that it was published with."""
    mark = folder.absolute() / SHIPPED_MARK
    if mark.is_relative_to(PACKAGE) and mark.exists() and (fault := why_not_whole(mark)):
        raise UserError(f"the weights in {folder} are damaged ({fault}): install grpo_ao anew.")
