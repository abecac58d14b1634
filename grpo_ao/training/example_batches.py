"""Batches of examples, laid out as arrays: drawn by step number, of like length, without loops.

Everything is tokenised once. What batch ``n`` holds follows from the seed and ``n`` alone, so that
a run which is killed goes on with the batches that it had not seen.
"""

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo_ao.epistemic import render_tag
from grpo_ao.errors import UserError
from grpo_ao.oracle.activations import content_start, subject_token_ids
from grpo_ao.oracle.ends import end_of_turn_id
from grpo_ao.oracle.prompt import build_oracle_prompt, placeholder_id
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.oracle.turn import SAMPLE, control_tokens
from grpo_ao.probes.items import Item
from grpo_ao.training.packing import IGNORED

AnswerFormat = Literal["plain", "tagged"]
# Batches that are sorted by length together: with more, rows of a batch are of more equal length.
_POOL = 64
_BANDS = 8
_NEXT = "Can you predict the next {} tokens that come after this?"
_PREVIOUS = "Can you predict the previous {} tokens that came before this?"
_MOST_PREDICTED, _MOST_READ, _LAST = 12, 50, 20
# What is tokenised as pieces is compared with whole prompts in this many samples.
_CHECKED = 32
# A source counts by the root of its size, up to this size.
_LARGE_SOURCE = 5000


class Ragged(NamedTuple):
    """Rows of different lengths, one behind the other in ``values``."""

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @staticmethod
    def of(rows: Sequence[Sequence[int]], offset: int = 0) -> "Ragged":
        """Lay out rows; ``offset`` is where they will begin in a larger ``values``."""
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        values = np.fromiter((i for row in rows for i in row), np.int64, lengths.sum())
        return Ragged(values, offset + np.cumsum(lengths) - lengths, lengths)


class Drawn(NamedTuple):
    """Examples as numbers, an entry each: what is read of which text, what is asked and answered.

    ``start_B`` to ``stop_B`` is what is read of the text's turn; ``layers_B`` indexes the spec's
    combinations of layers, ``number_B`` is the confidence in the tag, and ``source_B`` the source.
    An answer is ``answer_length_B`` tokens from ``answer_start_B`` on in ``Curriculum.tokens``.
    """

    text_B: np.ndarray
    start_B: np.ndarray
    stop_B: np.ndarray
    layers_B: np.ndarray
    question_B: np.ndarray
    answer_start_B: np.ndarray
    answer_length_B: np.ndarray
    number_B: np.ndarray
    source_B: np.ndarray

    def take(self, chosen: np.ndarray) -> "Drawn":
        """Return some of the examples."""
        return Drawn(*(array[chosen] for array in self))


class Batch(NamedTuple):
    """What one pass needs; rows are padded on the right.

    ``read_BK`` are positions in ``subject_BS`` at the layers ``layer_BK``, ``placeholders_BK`` in
    ``prompts_BL``, all -1 in unused slots. ``predict_N`` are the columns of the flattened prompts
    from whose outputs the answers' tokens ``targets_N`` are predicted; ``row_N`` is the row of
    each.
    """

    subject_BS: Int64[Tensor, "batch subject"]
    read_BK: Int64[Tensor, "batch slots"]
    layer_BK: Int64[Tensor, "batch slots"]
    prompts_BL: Int64[Tensor, "batch seq"]
    placeholders_BK: Int64[Tensor, "batch slots"]
    predict_N: Int64[Tensor, " predicted"]
    targets_N: Int64[Tensor, " predicted"]
    row_N: Int64[Tensor, " predicted"]

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on ``device``; the copy to a GPU is not waited for."""
        if device.type != "cuda":
            return self
        return Batch(*(t.pin_memory().to(device, non_blocking=True) for t in self))

    def halves(self) -> list["Batch"]:
        """Divide the rows over two passes; a single row stays as it is."""
        rows, length = self.prompts_BL.shape
        bounds = [0, rows // 2, rows] if rows > 1 else [0, rows]
        found = []
        for first, stop in pairwise(bounds):
            own_N = (self.row_N >= first) & (self.row_N < stop)
            parts = [tensor_B[first:stop] for tensor_B in self[:5]]
            parts += [self.predict_N[own_N] - first * length, self.targets_N[own_N]]
            parts += [self.row_N[own_N] - first]
            found.append(Batch(*parts))
        return found


class Curriculum:
    """Tokenised examples and plain texts, and the batches that are drawn of them.

    An example reads one of the spec's combinations of layers. Texts of more than ``max_tokens``
    tokens, and those that hold a control token of the chat template, are left out: ``left_out``
    counts them. A question source is drawn by the root of its size, up to 5,000 examples;
    ``context_share`` of all examples are context prediction. Raises UserError if no example is
    left, and where the tokenizer joins tokens over the placeholders' edges.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        spec: OracleSpec,
        examples: Sequence[Item],
        plain: Sequence[str],
        answer_format: AnswerFormat,
        context_share: float,
        max_tokens: int,
        seed: int,
    ) -> None:
        self._seed = seed
        self._pool: tuple[tuple[int, int], Drawn, np.ndarray] | None = None
        self._tagged = answer_format == "tagged"
        self._first = content_start(tokenizer)
        self._placeholder = placeholder_id(tokenizer, spec.special_token)
        self._end = end_of_turn_id(tokenizer)
        added: Any = tokenizer.get_added_vocab  # its type is lost behind transformers' properties
        control = list(added())
        every = dict.fromkeys([e.text for e in examples] + list(plain))
        texts = [text for text in every if not any(token in text for token in control)]
        turns, self._closing = _subject_turns(tokenizer, texts)
        around = self._first + self._closing
        row_of = {
            text: row for row, text in enumerate(texts) if around < len(turns[row]) <= max_tokens
        }
        self.left_out = len(every) - len(row_of)
        kept = [e for e in examples if e.text in row_of]
        long = 2 * _MOST_PREDICTED + around
        context = [row_of[t] for t in plain if t in row_of and len(turns[row_of[t]]) > long]
        if not kept and not context:
            raise UserError(
                f"no example is left: of {len(every)} texts {self.left_out} have more than "
                f"{max_tokens} tokens (see --max_tokens), or hold control tokens, and the others "
                "are too short for context prediction."
            )
        self._context_share = context_share if kept and context else float(not kept)
        self._context_N = np.array(context, dtype=np.int64)
        self._layers = Ragged.of(spec.act_layer_combinations)
        self._tokenise(tokenizer, spec, turns, kept)
        self._index_sources(kept, row_of)

    def _tokenise(self, tokenizer, spec, turns, kept: Sequence[Item]) -> None:
        predicted = range(1, _MOST_PREDICTED + 1)
        context = [form.format(n) for form in (_NEXT, _PREVIOUS) for n in predicted]
        self._questions = list(dict.fromkeys(context + [e.question for e in kept]))
        prefixes, suffixes = _prompt_pieces(tokenizer, spec, self._questions)
        self._prefixes, self._suffixes = Ragged.of(prefixes), Ragged.of(suffixes)
        self._around = np.add.reduceat(self._prefixes.lengths, self._layers.starts)
        self._turns = Ragged.of(turns)
        space = " " if self._tagged else ""
        self._answers = list(dict.fromkeys(str(e.target) for e in kept))
        said = _encoded(tokenizer, [space + answer for answer in self._answers], plain=True)
        self._said = Ragged.of(said, offset=len(self._turns.values))
        self.tokens = np.concatenate([self._turns.values, self._said.values])
        tags, numbers = _tags(tokenizer) if self._tagged else ([[]], [[]])
        self._tags, self._tag_numbers = Ragged.of(tags), Ragged.of(numbers)

    def _index_sources(self, kept: Sequence[Item], row_of: dict[str, int]) -> None:
        question_of = {question: i for i, question in enumerate(self._questions)}
        answer_of = {answer: i for i, answer in enumerate(self._answers)}
        self.sources = sorted({e.family for e in kept})
        source_of = {source: i for i, source in enumerate(self.sources)}
        ordered = sorted(kept, key=lambda e: e.family)
        self._text_N = np.array([row_of[e.text] for e in ordered], dtype=np.int64)
        self._question_N = np.array([question_of[e.question] for e in ordered], dtype=np.int64)
        self._answer_N = np.array([answer_of[str(e.target)] for e in ordered], dtype=np.int64)
        self._source_N = np.array([source_of[e.family] for e in ordered], dtype=np.int64)
        self.sizes = np.bincount(self._source_N, minlength=len(self.sources))

    def batch(self, step: int, size: int) -> Drawn:
        """Return the examples of a step, of like length."""
        pool, place = divmod(step, _POOL)
        if self._pool is None or self._pool[0] != (pool, size):
            rng = np.random.default_rng([self._seed, pool])
            drawn = self._draw(rng, size * _POOL)
            self._pool = (pool, size), drawn, _like_lengths(self._lengths(drawn), size, rng)
        _, drawn, batches = self._pool
        return drawn.take(batches[place])

    def every(self, sources: Sequence[str], count: int) -> Drawn:
        """Return the first ``count`` question examples of each source, at the widest window."""
        rows = [np.flatnonzero(self._source_N == self.sources.index(s))[:count] for s in sources]
        chosen = np.concatenate(rows)
        rng = np.random.default_rng([self._seed, 0])
        drawn = self._questions_of(chosen, rng)
        stop_B = self._turns.lengths[drawn.text_B]
        start_B = np.maximum(stop_B - _MOST_READ, self._first)
        return drawn._replace(start_B=start_B, stop_B=stop_B)

    def _draw(self, rng: np.random.Generator, count: int) -> Drawn:
        contexts = rng.binomial(count, self._context_share)
        parts = []
        if contexts:
            parts.append(self._context_prediction(rng, contexts))
        if count > contexts:
            weights = np.minimum(self.sizes, _LARGE_SOURCE) ** 0.5
            sources = rng.choice(len(self.sizes), count - contexts, p=weights / weights.sum())
            first = np.cumsum(self.sizes) - self.sizes
            chosen = first[sources] + rng.integers(self.sizes[sources])
            parts.append(self._questions_of(chosen, rng))
        return Drawn(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def _questions_of(self, chosen: np.ndarray, rng: np.random.Generator) -> Drawn:
        """Ask question examples: of a third one position is read, the last 20, and 2 to 50."""
        size = len(chosen)
        text_B, answer_B = self._text_N[chosen], self._answer_N[chosen]
        kind_B = rng.integers(3, size=size)
        count_B = np.select(
            [kind_B == 0, kind_B == 1], [1, _LAST], rng.integers(2, _MOST_READ + 1, size=size)
        )
        offset_B = np.where(kind_B == 1, -1, rng.integers(-5, 0, size=size))
        stop_B = np.maximum(self._turns.lengths[text_B] + offset_B + 1, self._first + 1)
        return Drawn(
            text_B,
            np.maximum(stop_B - count_B, self._first),
            stop_B,
            rng.integers(len(self._layers.lengths), size=size),
            self._question_N[chosen],
            self._said.starts[answer_B],
            self._said.lengths[answer_B],
            rng.integers(101, size=size),
            self._source_N[chosen],
        )

    def _context_prediction(self, rng: np.random.Generator, size: int) -> Drawn:
        """Ask for 1 to 12 tokens before or behind a run of 1 to 50 positions within a text."""
        text_B = self._context_N[rng.integers(len(self._context_N), size=size)]
        first, last_B = self._first, self._turns.lengths[text_B] - self._closing
        ahead_B = rng.random(size) < 0.5
        answer_B = rng.integers(1, _MOST_PREDICTED + 1, size=size)
        room_B = last_B - first - answer_B
        wanted_B = np.where(rng.random(size) < 0.4, 1, rng.integers(2, _MOST_READ + 1, size=size))
        count_B = np.minimum(wanted_B, room_B)
        low_B = np.where(ahead_B, first, first + answer_B)
        start_B = low_B + rng.integers(room_B - count_B + 1)
        stop_B = start_B + count_B
        answer_start_B = np.where(ahead_B, stop_B, start_B - answer_B)
        return Drawn(
            text_B,
            start_B,
            stop_B,
            rng.integers(len(self._layers.lengths), size=size),
            answer_B - 1 + np.where(ahead_B, 0, _MOST_PREDICTED),
            self._turns.starts[text_B] + answer_start_B,
            answer_B,
            rng.integers(101, size=size),
            np.full(size, len(self.sources)),
        )

    def _lengths(self, drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
        """Return the lengths of prompts with answers, and of what the subject reads."""
        tag_B = self._tags.lengths[drawn.number_B] if self._tagged else 0
        read_B = self._layers.lengths[drawn.layers_B] * (drawn.stop_B - drawn.start_B)
        prompt_B = self._around[drawn.layers_B] + read_B
        prompt_B += self._suffixes.lengths[drawn.question_B] + tag_B + drawn.answer_length_B + 1
        return prompt_B, drawn.stop_B

    def lay_out(self, drawn: Drawn) -> Batch:
        """Write the examples into padded rows, the subject's no longer than what is read."""
        prompt_B, subject_B = self._lengths(drawn)
        subject_BS = np.zeros((len(subject_B), subject_B.max()), np.int64)
        turn_B = self._turns.starts[drawn.text_B]
        _write(subject_BS, np.zeros_like(subject_B), self.tokens, turn_B, subject_B)
        prompts_BL = np.zeros((len(prompt_B), -(-prompt_B.max() // 8) * 8), np.int64)
        labels_BL = np.full_like(prompts_BL, IGNORED)
        column_B, read_BK, layer_BK, placeholders_BK = self._write_prefixes(prompts_BL, drawn)
        _write_rows(prompts_BL, column_B, self._suffixes, drawn.question_B)
        column_B = column_B + self._suffixes.lengths[drawn.question_B]
        if self._tagged:
            _write_rows(prompts_BL, column_B, self._tags, drawn.number_B)
            _write_rows(labels_BL, column_B, self._tag_numbers, drawn.number_B)
            column_B = column_B + self._tags.lengths[drawn.number_B]
        for into_BL in (prompts_BL, labels_BL):
            answer = (self.tokens, drawn.answer_start_B, drawn.answer_length_B)
            _write(into_BL, column_B, *answer)
            into_BL[np.arange(len(column_B)), column_B + drawn.answer_length_B] = self._end
        row_N, column_N = np.nonzero(labels_BL != IGNORED)
        predict_N = row_N * prompts_BL.shape[1] + column_N - 1
        arrays = (subject_BS, read_BK, layer_BK, prompts_BL, placeholders_BK)
        arrays += (predict_N, labels_BL[row_N, column_N], row_N)
        return Batch(*map(torch.from_numpy, arrays))

    def _write_prefixes(
        self, prompts_BL: np.ndarray, drawn: Drawn
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Write each layer's name and placeholders; return where the question begins.

        And, for each slot, the position and layer that are read, and where its placeholder is.
        """
        count_B, layers_B = drawn.stop_B - drawn.start_B, self._layers.lengths[drawn.layers_B]
        slots_1K = np.arange((layers_B * count_B).max())[None]
        number_BK, step_BK = slots_1K // count_B[:, None], slots_1K % count_B[:, None]
        placeholders_BK, layer_BK = np.full_like(step_BK, -1), np.full_like(step_BK, -1)
        column_B = np.zeros_like(count_B)
        for number in range(layers_B.max()):
            is_read_B = number < layers_B
            place_B = self._layers.starts[drawn.layers_B] + np.minimum(number, layers_B - 1)
            width_B = self._prefixes.lengths[place_B] * is_read_B
            start_B = self._prefixes.starts[place_B]
            _write(prompts_BL, column_B, self._prefixes.values, start_B, width_B)
            column_B = column_B + width_B
            here_BK = is_read_B[:, None] & (number_BK == number)
            placeholders_BK = np.where(here_BK, column_B[:, None] + step_BK, placeholders_BK)
            layer_BK = np.where(here_BK, self._layers.values[place_B][:, None], layer_BK)
            column_B = column_B + count_B * is_read_B
        rows, slots = np.nonzero(layer_BK >= 0)
        prompts_BL[rows, placeholders_BK[rows, slots]] = self._placeholder
        read_BK = np.where(layer_BK >= 0, drawn.start_B[:, None] + step_BK, -1)
        return column_B, read_BK, layer_BK, placeholders_BK


def _like_lengths(
    lengths: tuple[np.ndarray, np.ndarray], size: int, rng: np.random.Generator
) -> np.ndarray:
    """Return batches of rows: bands of like prompts, in which batches are of like subject texts."""
    prompt_B, subject_B = lengths
    bands = np.array_split(np.argsort(prompt_B, kind="stable"), _BANDS)
    ordered = np.concatenate([band[np.argsort(subject_B[band], kind="stable")] for band in bands])
    batches = ordered.reshape(-1, size)
    return batches[rng.permutation(len(batches))]


def _write(
    into_BL: np.ndarray,
    column_B: np.ndarray,
    values: np.ndarray,
    start_B: np.ndarray,
    length_B: np.ndarray,
) -> None:
    """Write ``length_B`` values from ``start_B`` on into each row, from its column on."""
    rows = np.repeat(np.arange(len(length_B)), length_B)
    steps = np.arange(length_B.sum()) - np.repeat(np.cumsum(length_B) - length_B, length_B)
    into_BL[rows, column_B[rows] + steps] = values[start_B[rows] + steps]


def _write_rows(
    into_BL: np.ndarray, column_B: np.ndarray, rows: Ragged, chosen: np.ndarray
) -> None:
    _write(into_BL, column_B, rows.values, rows.starts[chosen], rows.lengths[chosen])


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], plain: bool = False
) -> list[list[int]]:
    """Tokenise texts; in ``plain`` ones nothing is a control token, however it is spelled."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=plain)
    return encoded["input_ids"]


def _subject_turns(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[list[list[int]], int]:
    """Tokenise texts as the subject reads them, and count the tokens that close the turn."""
    sample = subject_token_ids(tokenizer, SAMPLE)
    content = _encoded(tokenizer, [SAMPLE])[0]
    first = content_start(tokenizer)
    closing = len(sample) - first - len(content)
    before, after = sample[:first], sample[len(sample) - closing :]
    turns = [[*before, *ids, *after] for ids in _encoded(tokenizer, texts)]
    for row in range(0, len(texts), max(1, len(texts) // _CHECKED)):
        if turns[row] != subject_token_ids(tokenizer, texts[row]):
            raise UserError(
                f"the tokenizer joins the text {texts[row][:60]!r} with the chat template around "
                "it: texts cannot be tokenised ahead."
            )
    return turns, closing


def _prompt_pieces(
    tokenizer: PreTrainedTokenizerBase,
    spec: OracleSpec,
    questions: Sequence[str],
) -> tuple[list[list[int]], list[list[int]]]:
    """Return what stands before the placeholders, by layer, and behind them, by question."""
    whole = [
        build_oracle_prompt(tokenizer, layers, len(layers), questions[0], spec)
        for layers in spec.act_layer_combinations
    ]
    prefixes = [
        [prompt.input_ids[a + 1 : b] for a, b in pairwise([-1, *prompt.positions])]
        for prompt in whole
    ]
    before, after = whole[0].text.split(questions[0])
    texts = [before + question + after for question in questions]
    suffixes = [ids[whole[0].positions[-1] + 1 :] for ids in _encoded(tokenizer, texts)]
    control = control_tokens(tokenizer).values()
    for row, question in enumerate(questions):
        if any(token in question for token in control):
            layers = spec.act_layer_combinations[0]
            alone = build_oracle_prompt(tokenizer, layers, len(layers), question, spec)
            suffixes[row] = alone.input_ids[alone.positions[-1] + 1 :]
    placeholder = placeholder_id(tokenizer, spec.special_token)
    for row in range(0, len(questions), max(1, len(questions) // _CHECKED)):
        count, combination = 1 + row % _MOST_READ, row % len(prefixes)
        layers = spec.act_layer_combinations[combination]
        prompt = build_oracle_prompt(tokenizer, layers, count * len(layers), questions[row], spec)
        runs = [[*prefix, *[placeholder] * count] for prefix in prefixes[combination]]
        if [*chain(*runs), *suffixes[row]] != prompt.input_ids:
            raise UserError(
                f"the tokenizer joins the placeholders with what stands around them in "
                f"{prompt.text!r}: choose another special_token."
            )
    return [*chain(*prefixes)], suffixes


def _tags(tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[list[int]]]:
    """Return the tokens of each tag, 0 to 100, and those that are taught: its form alone."""
    tags, taught = [], []
    for number in range(101):
        text = render_tag(number)
        encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        digits = text.index(str(number)), text.index("]")
        ids, offsets = encoding["input_ids"], encoding["offset_mapping"]
        masked = [
            IGNORED if a < digits[1] and b > digits[0] else i
            for i, (a, b) in zip(ids, offsets, strict=True)
        ]
        tags.append(ids)
        taught.append(masked)
    return tags, taught
