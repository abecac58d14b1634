"""Token rows from which the mini model learns.

A pre-training row is one message, sometimes the assistant's reply, and then questions with their
answers in the oracle's format, with a random number in the tag: the model has to know every token
of that format before an adapter is trained on it. Some questions stand behind a run of
placeholders, as the oracle will see them. Each token carries a loss weight.
"""

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from grpo_ao.epistemic import render_tag
from grpo_ao.mini.questions import TRUTH_FAMILIES, Question, questions_about, truth_choices
from grpo_ao.mini.world import Message, make_message, split_of_message
from grpo_ao.oracle.spec import OracleSpec

# The subject's own words are hard to foresee and teach little; answers are what is asked for. The
# number is noise here: its weight keeps it well-formed without spending capacity on it.
MARKUP, TEXT, REPLY, ANSWER, NUMBER = 0.5, 0.5, 1.5, 4.0, 0.2
# Weight of a number that follows from the numbers before it, and the share of rows of such.
COUNTED = 1.0
NUMBER_ROWS = 0.15

LONGEST_RUN = 20
# Messages that one process turns into rows at a time; it enters the random numbers.
_CHUNK = 2000


@dataclass(frozen=True)
class Rows:
    """``ids_BL`` (uint16) and ``weight_BL`` (float16), right-padded with weight 0."""

    ids_BL: np.ndarray
    weight_BL: np.ndarray


Segments = list[tuple[str, float]]


def training_messages(seed: int, first: int, count: int) -> list[Message]:
    """Return the messages of an index range, without those whose text is held out."""
    messages = (make_message(seed, index) for index in range(first, first + count))
    return [m for m in messages if split_of_message(m.text) != "heldout"]


def turn(role: str, content: Segments) -> Segments:
    """Wrap a content into one turn of the chat template."""
    return [(f"<|im_start|>{role}\n", MARKUP), *content, ("<|im_end|>\n", MARKUP)]


def answer_segments(question: Question, rng: random.Random) -> Segments:
    """Write the assistant's answer behind a tag with a random number."""
    number = str(rng.randint(0, 100))
    opening, closing = render_tag(int(number)).split(number)
    answer = [
        (opening, MARKUP),
        (number, NUMBER),
        (closing, MARKUP),
        (" " + question.answer, ANSWER),
    ]
    # The end of the turn belongs to the answer: it says that the answer is complete.
    return [("<|im_start|>assistant\n", MARKUP), *answer, ("<|im_end|>", ANSWER), ("\n", MARKUP)]


def pretraining_segments(message: Message, rng: random.Random, layers: list[int]) -> Segments:
    """Write one message with its reply and its questions as (text, loss weight) pieces."""
    segments = turn("user", [(message.text, TEXT)])
    if rng.random() < 0.4:
        segments += turn("assistant", [(message.reply, REPLY)])
    questions = questions_about(message, rng, "train")
    rng.shuffle(questions)
    # A row is cut where it is full: what is hardest to learn comes first.
    questions.sort(key=lambda question: question.family not in TRUTH_FAMILIES)
    for question in truth_choices(message, rng, "train") + questions:
        text = question.text
        if rng.random() < 0.25:
            run = LONGEST_RUN if rng.random() < 0.2 else rng.randint(1, 5)
            text = "".join(OracleSpec().prefix(rng.choice(layers), run)) + text
        segments += turn("user", [(text, MARKUP)]) + answer_segments(question, rng)
    return segments


def number_segments(rng: random.Random, length: int = 12) -> Segments:
    """Write one line of numbers in which each hangs on those before: their order and nearness."""
    form = rng.randrange(4)
    if form == 0:
        step = rng.choice([1, 1, 2, 5, 10, -1, -2, -5, -10])
        first = rng.randint(0, 100)
        numbers = [n for i in range(length) if 0 <= (n := first + i * step) <= 100]
        opening = "Count"
    elif form == 1:
        center = rng.randint(0, 100)
        numbers = [center, *(min(100, max(0, round(rng.gauss(center, 5)))) for _ in range(length))]
        opening = "Near"
    elif form == 2:
        numbers = sorted(rng.sample(range(101), rng.randint(3, length)))
        opening = "Rise"
    else:
        numbers = sorted(rng.sample(range(101), rng.randint(3, length)), reverse=True)
        opening = "Fall"
    line = [piece for n in numbers for piece in ((" ", MARKUP), (str(n), COUNTED))]
    return [(f"{opening}:", MARKUP), *line, ("\n", MARKUP)]


def encode(
    tokenizer: PreTrainedTokenizerFast, batch: list[Segments], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokenise each list of pieces as one string and spread the weights by character offsets.

    A row that does not fit in ``length`` tokens is cut.
    """
    texts = ["".join(text for text, _ in segments) for segments in batch]
    encoded = tokenizer(texts, return_offsets_mapping=True, add_special_tokens=False)
    ids_BL = np.full((len(batch), length), tokenizer.pad_token_id, dtype=np.uint16)
    weight_BL = np.zeros((len(batch), length), dtype=np.float16)
    for row, segments in enumerate(batch):
        ids, offsets = encoded["input_ids"][row], encoded["offset_mapping"][row]
        kept = min(len(ids), length)
        weight_of_char = np.repeat([w for _, w in segments], [len(t) for t, _ in segments])
        ids_BL[row, :kept] = ids[:kept]
        weight_BL[row, :kept] = weight_of_char[[start for start, _ in offsets[:kept]]]
    return ids_BL, weight_BL


def _number_row(rng: random.Random, length: int) -> Segments:
    row: Segments = []
    while len(row) < length:
        row += number_segments(rng)
    return row


def _pretraining_chunk(
    tokenizer_folder: Path,
    seed: int,
    first: int,
    count: int,
    length: int,
    layers: list[int],
    number_rows: float,
) -> Rows:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    rng = random.Random(f"rows {seed} {first}")
    messages = training_messages(seed, first, count)
    rows = [
        _number_row(rng, length)
        if number_rows and rng.random() < number_rows
        else pretraining_segments(message, rng, layers)
        for message in messages
    ]
    return Rows(*encode(tokenizer, rows, length))


def pretraining_rows(
    tokenizer_folder: Path,
    seed: int,
    first: int,
    messages: int,
    length: int,
    layers: list[int],
    number_rows: float,
    workers: int,
) -> Rows:
    """Make pre-training rows of ``messages`` messages from ``first`` on in ``workers`` processes.

    A share ``number_rows`` of the rows holds lines of numbers instead.
    """
    starts = range(first, first + messages, _CHUNK)
    with ProcessPoolExecutor(workers) as pool:
        parts = list(
            pool.map(
                _pretraining_chunk,
                repeat(tokenizer_folder),
                repeat(seed),
                starts,
                repeat(_CHUNK),
                repeat(length),
                repeat(layers),
                repeat(number_rows),
            )
        )
    return Rows(
        np.concatenate([p.ids_BL for p in parts]), np.concatenate([p.weight_BL for p in parts])
    )
