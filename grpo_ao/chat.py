"""Ask an endpoint that speaks OpenAI's chat completions, and outlast its failures."""

import asyncio
import logging
import os
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any
from urllib.parse import urlsplit

import openai
from openai import AsyncOpenAI
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

from grpo_ao.completions import EndpointError, decode_completion
from grpo_ao.errors import UserError

_LOG = logging.getLogger(__name__)
OPENROUTER = "https://openrouter.ai/api/v1"
OPENROUTER_KEY = "OPENROUTER_API_KEY"
# What ``complete`` raises where the endpoint, and not its reply, is at fault.
ChatFailure = (openai.APIError, EndpointError, TimeoutError)
# gRPC's factor. With 2 a batch waits twice as long for the unlucky few that fail five times.
_GROWTH = 1.6
# Words by which endpoints say that they take no JSON schema.
_SCHEMA_WORDS = ("response_format", "response format", "json_schema", "schema", "grammar")
_NO_MODEL = re.compile(
    r"(invalid|unknown|valid) model|model.*(not exist|not found|unknown|invalid)", re.IGNORECASE
)


class ChatError(UserError):
    """Nothing can be asked at all; the message is one sentence for the user."""


@dataclass(frozen=True)
class ChatSettings:
    """Where and how to ask."""

    model: str = "google/gemini-2.5-flash"
    base_url: str = OPENROUTER
    api_key_env: str | None = OPENROUTER_KEY
    """Environment variable that holds the key; None for a server that asks for none."""
    concurrency: int = 64
    """Requests in flight."""
    timeout: float = 60.0
    """Seconds that one attempt may take, up to the end of its reply."""
    max_attempts: int = 12
    """Attempts of one request: with the other defaults over a minute or so."""
    backoff: float = 0.5
    """Seconds at most before the second attempt, drawn from 0 on; the bound grows with each."""
    longest_wait: float = 60.0
    """Seconds between attempts at most; where the endpoint asks for more there is no other."""
    temperature: float | None = 0.0
    """None: not sent (OpenAI's reasoning models refuse it)."""
    max_tokens: int | None = 1024
    """Longest reply in tokens, thinking included. None: not sent."""
    input_price: float | None = None
    """US dollars per million tokens, for an endpoint that does not say what a reply cost."""
    output_price: float | None = None

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ChatError(f"the base URL {self.base_url!r} is not an http or https address.")
        if self.api_key_env == OPENROUTER_KEY and not f".{url.hostname}".endswith(".openrouter.ai"):
            raise ChatError(
                f"the key in {OPENROUTER_KEY} is not sent to {url.hostname}: name the environment "
                "variable with the key of that endpoint, or None if it needs no key."
            )
        positive = (self.concurrency, self.max_attempts, self.timeout, self.backoff)
        if min(positive) <= 0:
            raise ChatError("concurrency, attempts, timeout and backoff must be above 0.")

    def api_key(self) -> str:
        """Read the key from its environment variable; ChatError if there is none."""
        if self.api_key_env is None:
            return "none"  # the client wants a key, also for a server that does not
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ChatError(
                f"the endpoint {self.base_url} needs a key, and the environment variable "
                f"{self.api_key_env} is not set: set it to that endpoint's key."
            )
        return key


class ChatEndpoint:
    """An endpoint, and what has been learned of it: whether it takes a JSON schema."""

    def __init__(self, settings: ChatSettings) -> None:
        self.settings = settings
        self.structured = True

    @asynccontextmanager
    async def connect(self, max_attempts: int | None = None) -> AsyncIterator["Connection"]:
        """Open connections for one event loop; ``max_attempts`` overrides the settings'.

        Raises ChatError where the key is missing.
        """
        settings = self.settings
        # Retries and timeouts are ours: the client's timeout starts anew with every byte.
        async with AsyncOpenAI(
            api_key=settings.api_key(), base_url=settings.base_url, max_retries=0, timeout=None
        ) as client:
            yield Connection(self, client, max_attempts or settings.max_attempts)


class Connection:
    """An open client: many requests at once, at most ``concurrency`` of them in flight."""

    def __init__(self, endpoint: ChatEndpoint, client: AsyncOpenAI, max_attempts: int) -> None:
        settings = endpoint.settings
        self._endpoint = endpoint
        self._client = client
        self._slots = asyncio.Semaphore(settings.concurrency)
        # Anything from 0 to a growing bound: who failed together does not come back together.
        self._exponential = wait_random_exponential(
            multiplier=settings.backoff, exp_base=_GROWTH, max=settings.longest_wait
        )
        self._retrying = AsyncRetrying(
            stop=stop_after_attempt(max_attempts),
            wait=self._wait,
            retry=retry_if_exception(self._may_retry),
            reraise=True,
        )

    async def complete(self, prompt: str, schema: dict[str, Any]) -> dict[str, Any]:
        """Return the chat completion of one user turn, decoded, with its choices and usage.

        The reply follows ``schema`` only where the endpoint takes one: parse it as if it did not.
        Raises one of ``ChatFailure`` when all attempts have failed or no other could help.
        """
        if self._endpoint.structured:
            try:
                return await self._outlast(prompt, schema)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                if not _refuses_schema(error):
                    raise
                self._fall_back(error)
        return await self._outlast(prompt, None)

    async def _outlast(self, prompt: str, schema: dict[str, Any] | None) -> dict[str, Any]:
        # A copy, because tenacity keeps the state of a call on the object.
        return await self._retrying.copy()(self._attempt, prompt, schema)

    def _fall_back(self, error: openai.APIStatusError) -> None:
        if self._endpoint.structured:
            where = self._endpoint.settings.base_url
            _LOG.warning("%s takes no JSON schema; asking without: %s", where, describe(error))
        self._endpoint.structured = False

    async def _attempt(self, prompt: str, schema: dict[str, Any] | None) -> dict[str, Any]:
        settings = self._endpoint.settings
        # The slot is given back before a wait, so that waiting keeps nobody from asking.
        async with self._slots, asyncio.timeout(settings.timeout):
            response = await self._client.chat.completions.with_raw_response.create(
                **request_body(settings, prompt, schema)
            )
        return decode_completion(response.text)

    def _may_retry(self, error: BaseException) -> bool:
        asked = retry_after(error)
        return is_transient(error) and (asked or 0.0) <= self._endpoint.settings.longest_wait

    def _wait(self, state: RetryCallState) -> float:
        outcome = state.outcome
        error = outcome.exception() if outcome is not None else None
        asked = retry_after(error) if error is not None else None
        if asked is None:
            return self._exponential(state)
        # Jitter, so that all who were sent away do not come back at once.
        return asked + random.uniform(0.0, self._endpoint.settings.backoff)


def request_body(
    settings: ChatSettings, prompt: str, schema: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the arguments of ``chat.completions.create``."""
    body: dict[str, Any] = {
        "model": settings.model,
        "messages": [{"role": "user", "content": prompt}],
    }
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if settings.max_tokens is not None:
        body["max_tokens"] = settings.max_tokens
    if schema is not None:
        form = {"name": "reply", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def _refuses_schema(error: openai.APIStatusError) -> bool:
    said = str(error).lower()
    return any(word in said for word in _SCHEMA_WORDS)


def is_transient(error: BaseException) -> bool:
    """Tell failures that another attempt may mend: 429, 5xx, connections and timeouts."""
    if isinstance(error, openai.APIStatusError | EndpointError):
        status = error.status_code if isinstance(error, openai.APIStatusError) else error.status
        return status is not None and (status == 429 or status >= 500)
    return isinstance(error, openai.APIConnectionError | TimeoutError)


def retry_after(error: BaseException) -> float | None:
    """Return the seconds that a response's Retry-After asks to wait, given as number or date."""
    if not isinstance(error, openai.APIStatusError):
        return None
    value = error.response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None


def describe(error: BaseException) -> str:
    """Say in one line what an endpoint did."""
    if isinstance(error, openai.APIStatusError):
        told = error.body.get("message") if isinstance(error.body, dict) else error.body
        return _line(f"HTTP {error.status_code}: {told or error.message}")
    if isinstance(error, openai.APIConnectionError):
        return _line(f"no connection: {error.__cause__ or error}")
    if isinstance(error, TimeoutError):
        return "no reply in time"
    return _line(str(error))


def _line(message: str) -> str:
    words = " ".join(message.split()).rstrip(".")
    return words if len(words) <= 300 else words[:297] + "..."


def explain(error: BaseException, settings: ChatSettings) -> str:
    """Say in one sentence why nothing can be asked, and what to change."""
    where, said = settings.base_url, describe(error)
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        if settings.api_key_env is None:
            return f"the endpoint {where} wants a key, and none was sent ({said})."
        return f"the endpoint {where} refuses the key in {settings.api_key_env} ({said})."
    if isinstance(error, openai.NotFoundError | openai.BadRequestError) and _NO_MODEL.search(said):
        return f"the endpoint {where} does not have the model {settings.model!r} ({said})."
    if isinstance(error, openai.NotFoundError):
        return f"there are no chat completions at {where} ({said}): check the base URL."
    if isinstance(error, openai.APIConnectionError | TimeoutError):
        return f"the endpoint {where} cannot be reached ({said})."
    return f"the endpoint {where} refuses a trial request to {settings.model!r} ({said})."
