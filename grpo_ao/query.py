"""The command ``ask``: whom, what of it can be refused before a model is loaded, what is told."""

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from grpo_ao.config import AskConfig
from grpo_ao.errors import UserError
from grpo_ao.files import (
    MINI_WEIGHTS,
    SMOLLM2,
    SMOLLM2_ORACLE,
    adapter_of,
    append_jsonl,
    holds_run,
    read_foreign_rows,
    read_jsonl,
    read_run_json,
)
from grpo_ao.oracle.gguf import local_base
from grpo_ao.oracle.inputs import text_readings, written_prompts
from grpo_ao.oracle.layers import num_decoder_layers
from grpo_ao.oracle.loading import OracleSources, check_sources, choose_device, load_config
from grpo_ao.oracle.oracle import Oracle, OracleAnswer
from grpo_ao.oracle.spec import load_spec
from grpo_ao.oracle.subject import check_subject
from grpo_ao.probe import Layers, Positions, format_layers, parse_layers

PACKAGED = {
    "mini": (str(MINI_WEIGHTS / "base"), str(MINI_WEIGHTS / "oracle"), "last:20"),
    "smollm2-135m": (SMOLLM2, str(SMOLLM2_ORACLE), "window:50@-1"),
}
"""Base, adapter and positions of the oracles in the package."""
_MAX_NEW_TOKENS = 64
# Rows that are asked together and appended: what a killed command loses at most.
_CHUNK = 64

# What stands beside an input's own columns.
_WHERE = ("layers", "positions", "subject")
_COLUMNS = (*_WHERE, *(field.name for field in fields(OracleAnswer)))

Row = dict[str, Any]


class Whom(NamedTuple):
    """The oracle that is asked, and where it reads the subject."""

    model: str
    adapter: str
    layers: Layers
    positions: str
    subject: str | None


def ask(request: AskConfig) -> None:
    """Answer the question, or those of the input's rows, in print or in the output file."""
    whom, rows = _whom(request), _rows(request)
    sources = check_sources(whom.model, whom.adapter, choose_device(None))
    _check(whom, rows, sources)
    if request.output is not None:
        rows = rows[_answered(request.output, rows) :]
    if not rows:
        return
    oracle = Oracle.load(sources)
    for first in range(0, len(rows), _CHUNK):
        part = rows[first : first + _CHUNK]
        answers = oracle.ask(
            [row["text"] for row in part],
            [row["question"] for row in part],
            whom.layers,
            whom.positions,
            request.temperature,
            _MAX_NEW_TOKENS,
            subject_lora=whom.subject,
            samples=request.samples,
        )
        _tell(request, whom, part, answers)


def _whom(request: AskConfig) -> Whom:
    base, oracle, positions = PACKAGED[request.preset]
    model, adapter = request.model or base, request.oracle_lora_path or oracle
    subject = request.subject_lora
    if request.run is not None:
        if not holds_run(request.run):
            raise UserError(f"there is no run in {request.run}: it holds no run.json.")
        settings = read_run_json(request.run)["config"]
        model, adapter = settings["model"], str(adapter_of(request.run))
        positions = settings.get("positions", positions)  # make-oracle has none
        subject = subject or settings.get("subject_lora")
    model = str(local_base(model))
    layers = load_spec(adapter).middle_layers(num_decoder_layers(load_config(model)))
    if request.layers is not None:
        layers = parse_layers(request.layers)
    if subject is not None:
        check_subject(model, subject)
    return Whom(model, adapter, layers, request.positions or positions, subject)


def _rows(request: AskConfig) -> list[Row]:
    if request.input is None:
        return [_sound({"text": request.text, "question": request.question}, "what is asked")]
    rows = [
        _given(row, f"row {number} of {request.input}")
        for number, row in read_foreign_rows(request.input)
    ]
    if not rows:
        raise UserError(f"{request.input} has no rows.")
    return rows


def _given(row: Any, name: str) -> Row:
    """Return an input's row, to which the answer's columns can be added."""
    sound = _sound(row, name)
    if taken := [column for column in _COLUMNS if column in sound]:
        raise UserError(
            f"{name} has columns of the names that the answer's have ({', '.join(taken)}): rename "
            "or drop them."
        )
    try:
        json.dumps(sound)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} holds a value that cannot be written as JSON ({error}): make it a text or a "
            "number."
        ) from error
    return sound


def _sound(row: Any, name: str) -> Row:
    if isinstance(row, ValueError):
        raise UserError(f"{name} cannot be read: {row}.")
    values = [row.get(column) for column in ("text", "question")] if isinstance(row, dict) else []
    asked = [value for value in values if isinstance(value, str) and value.strip()]
    if len(asked) < 2:
        raise UserError(f"{name} needs a 'text' and a 'question'.")
    try:
        "".join(asked).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name} has half of a surrogate pair: take it out.") from error
    return row


def _check(whom: Whom, rows: Sequence[Row], sources: OracleSources) -> None:
    """Refuse what cannot be read or asked before the model's weights are loaded."""
    if (warning := sources.spec.warning_of([whom.layers])) is not None:
        print(f"warning: {warning}", file=sys.stderr)
    tokenizer, config = sources.tokenizer, sources.config
    read = text_readings(
        tokenizer, config, [row["text"] for row in rows], [whom.positions] * len(rows)
    )
    written_prompts(
        *(tokenizer, config, sources.spec, whom.layers),
        [len(reading.where) * len(whom.layers) for reading in read],
        [row["question"] for row in rows],
        _MAX_NEW_TOKENS,
    )


def _answered(path: Path, rows: Sequence[Row]) -> int:
    """Count the rows that the output holds already; UserError where they are of another input."""
    done = read_jsonl(path)
    same = all(row.items() <= answered.items() for row, answered in zip(rows, done, strict=False))
    if len(done) > len(rows) or not same:
        raise UserError(f"{path} holds answers to other rows: give another --output.")
    return len(done)


def _tell(
    request: AskConfig, whom: Whom, rows: Sequence[Row], answers: Sequence[OracleAnswer]
) -> None:
    where = dict(zip(_WHERE, (list(whom.layers), whom.positions, whom.subject), strict=True))
    found = [
        row | where | vars(answer) | {"read": list(answer.read)}
        for row, answer in zip(rows, answers, strict=True)
    ]
    if request.output is not None:
        append_jsonl(request.output, found)
    elif request.input is not None:
        for row in found:
            print(json.dumps(row))
    else:
        _print(request, whom, answers[0])


def _print(request: AskConfig, whom: Whom, answer: OracleAnswer) -> None:
    said = "no well-formed confidence"
    if answer.confidence is not None:
        note = "" if answer.calibrated else ", not trained"
        said = f"confidence {answer.confidence:.2f}{note}"
    if answer.agreement is not None:
        said += f"; {answer.agreement:.0%} of {request.samples} samples agree"
    print(f"{answer.answer}   ({said})")
    asked = Positions.parse(whom.positions).count
    if asked is not None and len(answer.read) < asked:
        fewer = f"note: the text has {len(answer.read)} positions, all of which were read"
        print(f"{fewer}: fewer than '{whom.positions}'.", file=sys.stderr)
    if request.show_tokens:
        of = f" with {whom.subject}" if whom.subject else ""
        print(f"read at layer {format_layers(whom.layers)}{of}:", *map(json.dumps, answer.read))
