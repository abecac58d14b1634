"""Rows of a file or of a data set on the Hub, and the texts in them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datasets import load_dataset

from grpo_ao.errors import UserError, first_line
from grpo_ao.files import read_foreign_rows

FILES = (".jsonl", ".json", ".csv", ".parquet")


def read_rows(source: str, streaming: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield the rows of a file or, if ``source`` is no path, of a Hub id's split ``train``.

    Rows count from 1; one that cannot be read comes as the ValueError that says why. With
    ``streaming`` a data set of the Hub is read as it is downloaded. Raises UserError.
    """
    if source.endswith(FILES) or os.path.exists(source):  # noqa: PTH110
        return read_foreign_rows(Path(source))
    return _read_hub(source, streaming)


def _read_hub(name: str, streaming: bool) -> Iterator[tuple[int, Any]]:
    try:
        yield from enumerate(load_dataset(name, split="train", streaming=streaming), start=1)
    # Script data sets, missing splits, damaged shards, the network: each raises its own type.
    except Exception as error:
        raise UserError(
            f"'{name}' could not be read from the Hugging Face Hub ({first_line(error)}): "
            f"{_advice(str(error))}, or give the path of a file."
        ) from error


def _advice(said: str) -> str:
    if "gated" in said.lower():
        return "accept its terms on its page and log in by `hf auth login`"
    return "check its name, that it has a split 'train' and one configuration, and the network"


class SourceText(NamedTuple):
    """A text to ask about; ``language`` is None where the source does not tell it."""

    number: int
    text: str
    language: str | None
    toxic: bool


class LeftOut(NamedTuple):
    """A row of the source that is not asked about, and why."""

    number: int
    reason: str


def read_texts(source: str, column: str) -> Iterator[SourceText | LeftOut]:
    """Yield the text of each row: the column's, or the first user turn of a conversation in it.

    ``language`` and ``toxic`` are read where a row has them, as WildChat's do. Raises UserError if
    the first row does not have the column.
    """
    for number, row in read_rows(source, streaming=True):
        if isinstance(row, ValueError):
            yield LeftOut(number, str(row))
        elif not isinstance(row, dict):
            yield LeftOut(number, f"it is a {type(row).__name__}, not an object with columns")
        elif column in row:
            yield _text_of(number, row, row[column])
        elif number == 1:
            raise UserError(
                f"{source} has no column '{column}': its first row has {', '.join(row) or 'none'}."
            )
        else:
            yield LeftOut(number, f"the column '{column}' is missing")


def _text_of(number: int, row: dict, value: Any) -> SourceText | LeftOut:
    turn: dict = {}
    if isinstance(value, list):
        turns = [t for t in value if isinstance(t, dict) and t.get("role") == "user"]
        if not turns:
            return LeftOut(number, "its conversation has no user turn")
        turn, value = turns[0], turns[0].get("content")
    if not isinstance(value, str) or not value.strip():
        return LeftOut(number, "its text is empty or no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        return LeftOut(number, "its text has half of a surrogate pair")
    language = row.get("language")
    return SourceText(
        number,
        value.strip(),
        language if isinstance(language, str) else None,
        toxic=row.get("toxic") is True or turn.get("toxic") is True,
    )
