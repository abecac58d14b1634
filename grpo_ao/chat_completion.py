"""Read what an endpoint sends back, strictly: chat completions, their text and their usage."""

import json
import re
from typing import Any, NamedTuple

_BAD_REQUEST, _BAD_GATEWAY = 400, 502
# More than these no reply takes; sums stay within what files and databases hold.
_MOST_TOKENS, _MOST_DOLLARS = 10**9, 10**6


class ReplyError(ValueError):
    """A reply is not what was asked for; the message says how."""


class Usage(NamedTuple):
    """Tokens read and written, and the cost in US dollars; None where it is not known."""

    input_tokens: int | None = 0
    output_tokens: int | None = 0
    cost_usd: float | None = 0.0

    def plus(self, other: "Usage") -> "Usage":
        """Add; what is not known of one is not known of the sum."""
        return Usage(*map(_plus, self, other))

    def at_prices(self, input_price: float | None, output_price: float | None) -> "Usage":
        """Fill in an unknown cost from prices in US dollars per million tokens."""
        if self.cost_usd is not None or input_price is None or output_price is None:
            return self
        if self.input_tokens is None or self.output_tokens is None:
            return self
        cost = self.input_tokens * input_price + self.output_tokens * output_price
        return self._replace(cost_usd=cost / 1e6)


def _plus(a: Any, b: Any) -> Any:
    return None if a is None or b is None else a + b


def fault_of(body: bytes) -> tuple[int, str] | None:
    """Say what is wrong with the body of status 200: the status it should have had, and why.

    OpenRouter sends an error in place of a choice when a model fails after HTTP's status was sent.
    """
    try:
        completion = json.loads(body)
    except (ValueError, RecursionError):
        return _BAD_GATEWAY, "the endpoint sent what is not JSON"
    if not isinstance(completion, dict):
        return _BAD_GATEWAY, "the endpoint sent JSON that is not an object"
    for holder in (completion, _first_choice(completion)):
        if error := holder.get("error"):
            return _status_and_message(error)
    return None


def _status_and_message(error: Any) -> tuple[int, str]:
    if not isinstance(error, dict):
        return _BAD_REQUEST, str(error)
    code, said = str(error.get("code")), str(error.get("message", error))
    # Some gateways send it as a text.
    return int(code) if re.fullmatch(r"[45][0-9]{2}", code) else _BAD_REQUEST, said


def _first_choice(completion: dict[str, Any]) -> dict[str, Any]:
    match completion.get("choices"):
        case [{**choice}, *_]:
            return choice
    return {}


def content_of(completion: dict[str, Any]) -> str:
    """Return the first choice's text.

    Raises ReplyError, with the reason, where it has none, was cut off, filtered or refused.
    """
    choice = _first_choice(completion)
    if not choice:
        raise ReplyError("the endpoint sent no choices")
    finish = choice.get("finish_reason")
    if finish in ("length", "content_filter"):
        raise ReplyError(f"the reply is not whole (finish reason: {finish})")
    match choice.get("message"):
        case {"refusal": str(refusal)} if refusal.strip():
            raise ReplyError(f"the model refused: {refusal[:80]!r}")
        case {"content": str(content)} if content.strip():
            return content
        case {"content": list()}:
            raise ReplyError("the reply's content is a list of parts and no text")
    raise ReplyError(f"the reply has no content (finish reason: {str(finish)[:80]})")


def usage_of(completion: dict[str, Any]) -> Usage:
    """Return what a completion says that it took; ``usage.cost`` is OpenRouter's."""
    usage = completion.get("usage")
    if not isinstance(usage, dict):
        return Usage(None, None, None)
    return Usage(
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _amount(usage.get("cost")),
    )


def _count(value: Any) -> int | None:
    known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS
    return value if known else None


def _amount(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if known and 0 <= value <= _MOST_DOLLARS else None
