"""Read what an endpoint sends back, strictly: chat completions, their text and their usage."""

import json
from typing import Any, NamedTuple

_BAD_GATEWAY = 502


class ReplyError(ValueError):
    """A reply is not what was asked for; the message says how."""


class EndpointError(Exception):
    """An endpoint failed with HTTP status 200; ``status`` is the one it should have had."""

    def __init__(self, status: int | None, message: str) -> None:
        super().__init__(message)
        self.status = status


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


def decode_completion(body: str) -> dict[str, Any]:
    """Decode a chat completion.

    Raises EndpointError if it is none, or reports an error instead of a choice (OpenRouter does so
    when a model fails after the HTTP status has been sent).
    """
    try:
        completion = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise EndpointError(_BAD_GATEWAY, "the endpoint sent what is not JSON") from error
    if not isinstance(completion, dict):
        raise EndpointError(_BAD_GATEWAY, "the endpoint sent JSON that is not an object")
    for holder in (completion, _first_choice(completion)):
        if error := holder.get("error"):
            raise _endpoint_error(error)
    return completion


def _endpoint_error(error: Any) -> EndpointError:
    if not isinstance(error, dict):
        return EndpointError(None, str(error))
    code = error.get("code")
    status = code if isinstance(code, int) else None
    return EndpointError(status, str(error.get("message", error)))


def _first_choice(completion: dict[str, Any]) -> dict[str, Any]:
    match completion.get("choices"):
        case [{**choice}, *_]:
            return choice
    return {}


def content_of(completion: dict[str, Any]) -> str:
    """Return the first choice's text; ReplyError, with the reason that it gives, if it has none."""
    choice = _first_choice(completion)
    if not choice:
        raise ReplyError("the endpoint sent no choices")
    match choice.get("message"):
        case {"content": str(content)} if content.strip():
            return content
    raise ReplyError(f"the reply has no content (finish reason: {choice.get('finish_reason')})")


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
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _amount(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
