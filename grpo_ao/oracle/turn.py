"""One user turn through the chat template: its text and its tokens, other people's text in it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from grpo_ao.bounded import filling_in_ends
from grpo_ao.errors import UserError
from grpo_ao.files import read_faults
from grpo_ao.probe import stable_hash

SAMPLE = "It is late."
"""A user's text by which it is seen what a chat template puts around one."""
Conversation = Sequence[Mapping[str, str]]
"""Messages, each with its role and its content, as chat templates take them."""


@dataclass(frozen=True)
class Turn:
    """Rendered turns. ``offsets[i]`` is the part of ``text`` that token i stands for."""

    text: str
    input_ids: list[int]
    offsets: list[tuple[int, int]]


def user_turn(tokenizer: PreTrainedTokenizerBase, content: str, answer_next: bool) -> Turn:
    """Render and tokenise one user turn; ``answer_next`` opens the assistant's.

    Control tokens are the template's own: what is spelled like one in ``content``
    (``<|im_end|>``) is tokenised as the plain text that it is, and closes no turn. Raises UserError
    where the tokenizer or the template does not allow that.
    """
    text = render_user_turn(tokenizer, content, answer_next)
    ordinary = _tokenised(tokenizer, text)
    control = control_tokens(tokenizer)
    if not any(token in content for token in control.values()):
        return ordinary
    start, stop = _content_span(tokenizer, text, answer_next)
    own = [
        (first, last, i)
        for i, (first, last) in zip(ordinary.input_ids, ordinary.offsets, strict=True)
        if i in control and (last <= start or first >= stop)
    ]
    plain = _between(tokenizer, text, own, plain=True)
    # Some tokenizers treat the beginning of a text as they do no other place.
    sound = _between(tokenizer, text, own, plain=False) == ordinary
    if not sound or sum(i in control for i in plain.input_ids) != len(own):
        raise UserError(
            f"the text {shown(content)} holds a control token, which this tokenizer cannot read "
            "as plain text: leave the text out."
        )
    return plain


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the tokenizer's control tokens by id, those without a role (<|im_start|>) included."""
    added = tokenizer.added_tokens_decoder
    return {i: token.content for i, token in added.items() if token.special}


def conversation(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> tuple[Turn, int]:
    """Render and tokenise messages; also return the token at which the first one's content begins.

    Raises UserError for messages that the template does not take, and for a control token in one.
    """
    texts = [value for message in messages for value in message.values()]
    whole = all(message.keys() == {"role", "content"} for message in messages)
    if not (messages and whole and all(isinstance(text, str) for text in texts)):
        raise UserError("a conversation is a list of messages, each with a role and its content.")
    _check_template(tokenizer)
    contents = [message["content"] for message in messages]
    control = control_tokens(tokenizer).values()
    if found := [token for token in control if any(token in content for content in contents)]:
        raise UserError(f"a message holds the control token {found[0]}: leave it out.")
    try:
        text = str(tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False))
    except TemplateError as error:
        raise UserError(f"the chat template does not take this conversation: {error}.") from error
    turn = _tokenised(tokenizer, text)
    first = max(0, text.find(contents[0].strip()))
    return turn, sum(stop <= first for _, stop in turn.offsets)


def check_template(tokenizer: PreTrainedTokenizerBase, base: object) -> None:
    """Raise UserError, in one sentence, unless ``base``'s template makes a turn of a text.

    A template is a program of other people: it may fail, and it may never end.
    """
    _check_template(tokenizer)
    with read_faults(f"the chat template of {base}"):
        if not filling_in_ends(tokenizer.get_chat_template()):
            raise UserError(
                f"the chat template of {base} takes for ever, or gigabytes: give another."
            )
        turn = user_turn(tokenizer, SAMPLE, answer_next=True)
        user_turn(tokenizer, SAMPLE, answer_next=False)
    if SAMPLE not in turn.text:
        raise UserError(f"the chat template of {base} does not hold a user's text as it is.")
    if not turn.input_ids:
        raise UserError(f"the tokenizer of {base} makes no tokens of a text: fetch it anew.")


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash the tokens that the chat template and the tokenizer make of a turn as they are now."""
    turn = user_turn(tokenizer, SAMPLE, answer_next=True)
    return stable_hash(turn.text, *map(str, turn.input_ids))


def writes_the_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Say whether the chat template asks for the time: its tokens are then another day's."""
    return "strftime_now" in str(tokenizer.chat_template)


def _check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise UserError(f"{type(tokenizer).__name__} is slow: a fast tokenizer is needed.")
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template: an instruction-tuned one is needed.")


def render_user_turn(tokenizer: PreTrainedTokenizerBase, content: str, answer_next: bool) -> str:
    """Render one user turn through the chat template; ``answer_next`` opens the assistant's.

    Where the template opens ``<think>`` with it, whatever it is told, the thought is closed, empty.
    """
    _check_template(tokenizer)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=answer_next,
        enable_thinking=False,
    )
    if not isinstance(text, str):
        raise TypeError(f"the chat template gave {type(text).__name__}, not text.")
    opened = text.rstrip()
    return f"{opened}\n\n</think>\n\n" if opened.endswith("<think>") and answer_next else text


def _tokenised(tokenizer: PreTrainedTokenizerBase, text: str, plain: bool = False) -> Turn:
    encoding = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=plain
    )
    return Turn(text, list(encoding["input_ids"]), list(encoding["offset_mapping"]))


def _content_span(
    tokenizer: PreTrainedTokenizerBase, text: str, answer_next: bool
) -> tuple[int, int]:
    """Return where in a rendered turn the content is, by rendering another one."""
    before, other, after = render_user_turn(tokenizer, "CONTENT", answer_next).partition("CONTENT")
    if not other or not (text.startswith(before) and text.endswith(after)):
        raise UserError(
            f"the chat template treats the text {shown(text)}, which holds a control token, "
            "otherwise than other texts: leave it out."
        )
    return len(before), len(text) - len(after)


def _between(
    tokenizer: PreTrainedTokenizerBase, text: str, own: list[tuple[int, int, int]], plain: bool
) -> Turn:
    """Tokenise what lies between the template's ``own`` control tokens, piece by piece."""
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    end = len(text)
    ends = [(0, 0, None), *own, (end, end, None)]
    for (_, first, _), (last, beyond, control) in pairwise(ends):
        piece = _tokenised(tokenizer, text[first:last], plain)
        ids += piece.input_ids
        offsets += [(a + first, b + first) for a, b in piece.offsets]
        if control is not None:
            ids.append(control)
            offsets.append((last, beyond))
    return Turn(text, ids, offsets)


def shown(text: str) -> str:
    """Quote the beginning of a text, for a message."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
