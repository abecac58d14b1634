"""What the supervised stage did not teach, as a question set for the calibration that follows.

A number that is learned on what an oracle was taught says how often it is right about that. So the
set asks about other texts, in other wordings, and for one part in sorts of question that were never
taught: an oracle that meets an unknown sort of question is right little more often than a guess,
whatever it is used to.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from grpo_ao.files import atomic_write_text
from grpo_ao.probe import drawn_from, unit_draw
from grpo_ao.probes.benchmark_sources import load_contexts, load_templates
from grpo_ao.probes.benchmarks import INSTRUCTION, make_items, training_items
from grpo_ao.probes.items import Item
from grpo_ao.training.examples import (
    is_taught,
    labelled_examples,
    latentqa_examples,
    mention_examples,
    question_set_examples,
)
from grpo_ao.training.make_oracle_config import MakeOracleConfig

# Questions about each context of a benchmark.
_PER_CONTEXT = 3


class Sort(NamedTuple):
    """A property of a text's form, with questions whether it has it, and whether it has not."""

    name: str
    holds: Callable[[str], bool]
    asked: tuple[str, ...]
    denied: tuple[str, ...]


def _found(pattern: str, least: int = 1) -> Callable[[str], bool]:
    return lambda text: len(re.findall(pattern, text)) >= least


SORTS = (
    Sort(
        "digits",
        _found(r"\d"),
        ("Are there digits in the text?", "Is a number written in figures anywhere in it?"),
        ("Is the text free of digits?", "Does the text do without any figures?"),
    ),
    Sort(
        "questions",
        _found(r"\?"),
        ("Does the writer ask something?", "Is there a question mark in the text?"),
        ("Does the text get by without a question?", "Is no question asked in the text?"),
    ),
    Sort(
        "speech",
        _found(r'["“”]'),
        ("Is someone quoted in the text?", "Are there quotation marks?"),
        ("Is the text without any quotation?", "Are quotation marks absent?"),
    ),
    Sort(
        "first person",
        _found(r"\b(I|me|my|My)\b"),
        ("Does the author speak of himself or herself?", "Is this told in the first person?"),
        ("Does the author stay out of the text?", "Does the text avoid the first person?"),
    ),
    Sort(
        "women",
        _found(r"\b(she|She|her|Her)\b"),
        ("Is a woman or girl spoken of as 'she' or 'her'?", "Does the word 'she' or 'her' occur?"),
        ("Is 'she' a word that the text avoids?", "Are 'she' and 'her' both missing?"),
    ),
    Sort(
        "sentences",
        _found(r"[.!?](\s|$)", 4),
        ("Is the text longer than three sentences?", "Are there four sentences or more?"),
        (
            "Does the text end after three sentences or fewer?",
            "Are there fewer than four sentences?",
        ),
    ),
    Sort(
        "length",
        _found(r"\S+", 60),
        ("Does the text have sixty words or more?", "Is this a text of at least sixty words?"),
        ("Is the text shorter than sixty words?", "Are there fewer than sixty words?"),
    ),
    Sort(
        "opening",
        _found(r"^\W*[A-Ma-m]"),
        ("Is the first letter one of A to M?", "Does it begin with a letter from A to M?"),
        ("Is the first letter one of N to Z?", "Does it begin with a letter from N to Z?"),
    ),
)


def form_examples(texts: Iterable[str]) -> Iterator[Item]:
    """Ask one question about the form of each text.

    A property is asked about or denied with equal chance, so that half of the answers are Yes
    whatever share of the texts has it.
    """
    for text in texts:
        sort = drawn_from(SORTS, "sort", text)
        asked = unit_draw("asked", text) < 0.5
        wording = drawn_from(sort.asked if asked else sort.denied, "form", text)
        answer = "Yes" if sort.holds(text) == asked else "No"
        yield Item(f"form: {sort.name}", text, INSTRUCTION + wording, answer)


def untaught_examples(config: MakeOracleConfig, plain: Sequence[str]) -> Iterator[Item]:
    """Yield what a run of the supervised stage does not teach, of each of its sources.

    Training texts that it keeps, in wordings that it keeps, and validation and held-out texts; of
    the benchmarks, held-out texts in their held-out wordings.
    """
    for example in _all_sources(config, plain):
        if not is_taught(example.text, config.kept_share):
            yield example


def _all_sources(config: MakeOracleConfig, plain: Sequence[str]) -> Iterator[Item]:
    for name in config.benchmarks:
        items = training_items(name, config.data_dir, _PER_CONTEXT, "validation")
        contexts = load_contexts(name, config.data_dir)
        templates = load_templates(name, config.data_dir)
        for split in ("validation", "heldout"):
            items += make_items(name, contexts, templates, split, None)
        yield from items
    for path in config.labelled:
        yield from labelled_examples(path, taught=False)
    for source in config.questions:
        if source != "mini":  # has as many messages as are asked for
            yield from question_set_examples(source, 0)
    if config.latentqa is not None:
        yield from latentqa_examples(config.latentqa)
    for example in mention_examples(plain, taught=False):
        if (unit_draw("mentioned", example.text) < 0.5) == (example.target == "Yes"):
            yield example
    yield from form_examples(plain)


def write_question_set(path: Path, examples: Iterable[Item]) -> None:
    """Write examples as a question set with references, a row a text."""
    by_text: dict[str, dict[Item, None]] = defaultdict(dict)
    for example in examples:
        by_text[example.text][example] = None
    rows = [
        {
            "wildchat_question": text,
            "oracle_questions": [e.question for e in asked],
            "question_kinds": ["closed" if e.target in ("Yes", "No") else "open" for e in asked],
            "reference_answers": [e.target for e in asked],
            "question_families": [e.family for e in asked],
        }
        for text, asked in by_text.items()
    ]
    atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
