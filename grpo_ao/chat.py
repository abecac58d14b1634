"""Ask an endpoint that speaks OpenAI's chat completions, and outlast its failures.

Retries, waits and Retry-After are the openai client's. What it leaves open is bounded here, under
it: the time of an attempt up to its last byte, the size of a reply, how long an endpoint may go
without a usable one, and where a request may go (one host, no redirects, no headers for another).
"""

import asyncio
import ipaddress
import json
import logging
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx2
import openai

from grpo_ao.chat_completion import ReplyError, fault_of
from grpo_ao.errors import UserError

_LOG = logging.getLogger(__name__)
OPENROUTER = "https://openrouter.ai/api/v1"
OPENROUTER_KEY = "OPENROUTER_API_KEY"
TRIAL_ATTEMPTS = 3
"""Of a trial: an endpoint that is not there is reported after seconds, not after all attempts."""
_LONGEST_REPLY = 1_000_000  # bytes
_MOST_HUNG = 3  # attempts of one request that hang while the endpoint answers others
_SHORTEST_SECRET = 8  # characters; what is shorter ("none") may be an ordinary word of a reply
# What an endpoint may refuse to take, and the words by which it says so.
_REFUSABLE = {
    "temperature": ("temperature",),
    "max_tokens": ("max_tokens",),
    "max_completion_tokens": ("max_completion_tokens",),
    "response_format": ("response_format", "response format", "json_schema", "schema", "grammar"),
}
_NO_MODEL = re.compile(
    r"(invalid|unknown|valid) model|model.*(not exist|not found|unknown|invalid)", re.IGNORECASE
)


class ChatError(UserError):
    """Nothing can be asked at all; the message is one sentence for the user."""


class EndpointError(Exception):
    """The endpoint, and not its reply, is at fault.

    The message is one line; ``status`` is that of HTTP, None where nothing came back in time.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        words = " ".join(message.split()).rstrip(".")
        super().__init__(words if len(words) <= 300 else words[:297] + "...")
        self.status = status


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
    """Attempts of one request, with waits of about a minute in all between them."""
    patience: float = 300.0
    """Seconds without any usable reply after which the endpoint is given up."""
    temperature: float | None = 0.0
    """None: not sent."""
    max_tokens: int | None = 1024
    """Longest reply in tokens, thinking included. None: not sent."""
    input_price: float | None = None
    """US dollars per million tokens, for an endpoint that does not say what a reply cost."""
    output_price: float | None = None

    def __post_init__(self) -> None:
        url = self.url
        if url.userinfo or url.query or url.fragment:
            # The address is written into run.json, reports and cards; it is not repeated here.
            raise ChatError(
                f"the base URL of {url.host} must hold no user, password, query or fragment: put "
                "the key into an environment variable, and name that for the key."
            )
        if self.api_key_env == OPENROUTER_KEY and not f".{url.host}".endswith(".openrouter.ai"):
            raise ChatError(
                f"the key in {OPENROUTER_KEY} is not sent to {url.host}: name the environment "
                "variable with the key of that endpoint, or None if it needs no key."
            )
        if min(self.concurrency, self.max_attempts, self.timeout, self.patience) <= 0:
            raise ChatError("concurrency, attempts, timeout and patience must be above 0.")

    @property
    def url(self) -> httpx2.URL:
        """The base URL, read; ChatError where it is none."""
        shown = "" if "@" in self.base_url else f" {self.base_url.partition('?')[0]!r}"
        try:
            url = httpx2.URL(self.base_url)
        except (httpx2.InvalidURL, ValueError) as error:
            raise ChatError(f"the base URL{shown} is not an http or https address.") from error
        if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65_535:
            raise ChatError(f"the base URL{shown} is not an http or https address.")
        return url

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
        if not key.isascii() or not key.isprintable():
            raise ChatError(f"what {self.api_key_env} holds is no key: it is not printable ASCII.")
        return key


class ChatEndpoint:
    """An endpoint, and what has been learned of it: what it does not take, whether it answers."""

    def __init__(self, settings: ChatSettings) -> None:
        self.settings = settings
        self.refused: set[str] = set()
        self.given_up: str | None = None
        self.heard_at = monotonic()
        self.answers_as: str | None = None

    @asynccontextmanager
    async def connect(self, max_attempts: int | None = None) -> AsyncIterator["Connection"]:
        """Open connections for one event loop; ``max_attempts`` overrides the settings'.

        An endpoint that was given up is tried once more, not for another ``patience``. Raises
        ChatError where the key is missing.
        """
        settings = self.settings
        if self.given_up is None:
            self.heard_at = monotonic()
        self.given_up = None
        key = settings.api_key()
        async with openai.AsyncOpenAI(
            api_key=key,
            base_url=settings.base_url,
            max_retries=(max_attempts or settings.max_attempts) - 1,
            http_client=_BoundedClient(self, key),
        ) as client:
            if not f".{settings.url.host}".endswith(".openai.com"):
                # The client reads OPENAI_ORG_ID and OPENAI_PROJECT_ID for whatever host it asks.
                client.organization = client.project = None
            yield Connection(self, client)

    def request_body(self, prompt: str, schema: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of ``chat.completions.create``, less what is refused here."""
        settings = self.settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": "user", "content": prompt}],
        }
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        if settings.max_tokens is not None:
            # OpenAI's reasoning models take the length by this name alone.
            renamed = "max_tokens" in self.refused
            body["max_completion_tokens" if renamed else "max_tokens"] = settings.max_tokens
        form = {"name": "reply", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
        return {name: value for name, value in body.items() if name not in self.refused}

    def refuses(self, error: openai.APIStatusError, body: dict[str, Any]) -> bool:
        """Whether an error is about a part of ``body`` that can be left out, and is from now on."""
        said = _told(error).lower()
        if "context length" in said:
            return False
        for name, words in _REFUSABLE.items():
            if name in body and (error.param == name or any(word in said for word in words)):
                if name not in self.refused:
                    where = self.settings.base_url
                    _LOG.warning("%s takes no %s; asking without: %s", where, name, said)
                self.refused.add(name)
                return True
        return False

    def heard(self) -> None:
        """Note a usable reply."""
        self.heard_at, self.given_up = monotonic(), None

    def failed(self, said: str) -> None:
        """Note a failed attempt, and give the endpoint up where none has succeeded for long."""
        if monotonic() - self.heard_at > self.settings.patience:
            self.given_up = f"given up after {self.settings.patience:g} s without a reply: {said}"


class _BoundedClient(openai.DefaultAsyncHttpxClient):
    """Sends to one endpoint: so many requests at once, in bounded time, with bounded replies.

    A reply of status 200 that is no completion leaves here with the status that it should have had,
    so that the openai client retries it as such.
    """

    def __init__(self, endpoint: ChatEndpoint, key: str) -> None:
        url = endpoint.settings.url
        try:
            # trust_env reads netrc too, whose password would take the key's place.
            super().__init__(
                trust_env=False,
                proxy=_proxy_for(url),
                verify=httpx2.create_ssl_context(),
                follow_redirects=False,
                timeout=None,
            )
        except (ValueError, ImportError) as error:
            raise ChatError(
                f"the proxy that the environment names for {url.host} cannot be used: set NO_PROXY "
                "for that host, or name an http proxy."
            ) from error
        self._endpoint = endpoint
        # An echoed key must not get into messages, reports and caches.
        self._secret = key.encode() if len(key) >= _SHORTEST_SECRET else None
        self._hung_at: dict[bytes, list[float]] = {}
        # A slot is held while an attempt lasts and not while the client waits for the next one.
        self._slots = asyncio.Semaphore(endpoint.settings.concurrency)

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send, and return a response that has been read to its end."""
        request.headers["accept-encoding"] = "identity"
        options["stream"] = True
        async with self._slots:
            if self._endpoint.given_up is not None:
                raise EndpointError(self._endpoint.given_up)
            sent_at = monotonic()
            try:
                async with asyncio.timeout(self._endpoint.settings.timeout):
                    response = await super().send(request, **options)
                    body = await _read(response)
            except TimeoutError as error:
                self._endpoint.failed("no reply in time")
                self._check_hanging(request.content, sent_at)
                raise httpx2.ReadTimeout("no reply in time", request=request) from error
            except httpx2.RequestError as error:
                self._endpoint.failed(f"no connection: {error}")
                raise
        return self._judged(response, body)

    def _check_hanging(self, content: bytes, sent_at: float) -> None:
        """Give a request up that hangs again and again while others are answered."""
        hung_at = self._hung_at.setdefault(content, [])
        hung_at.append(sent_at)
        if len(hung_at) >= _MOST_HUNG and self._endpoint.heard_at > hung_at[0]:
            raise EndpointError(
                f"no reply in time in {len(hung_at)} attempts, while other requests were answered"
            )

    def _judged(self, response: httpx2.Response, body: bytes | str) -> httpx2.Response:
        if isinstance(body, bytes) and self._secret is not None:
            body = body.replace(self._secret, b"***")
        status, body = _status_of(response, body)
        headers = {k: v for k, v in response.headers.items() if k.startswith("retry-after")}
        if status == 429 and b"insufficient_quota" in body:
            headers["x-should-retry"] = "false"
            self._endpoint.given_up = "the account at the endpoint has no quota left"
        elif status == 200:
            self._endpoint.heard()
        elif status == 429 or status >= 500:
            self._endpoint.failed(f"HTTP {status}")
        return httpx2.Response(status, headers=headers, content=body, request=response.request)


async def _read(response: httpx2.Response) -> bytes | str:
    """Return the body, or what is wrong with it."""
    try:
        # Not asked for: a thousandfold of what is sent may be in it.
        if response.headers.get("content-encoding", "identity") != "identity":
            return "the endpoint sent a compressed reply"
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > _LONGEST_REPLY:
                return f"the endpoint sent a reply of more than {_LONGEST_REPLY:,} bytes"
        return bytes(body)
    finally:
        await response.aclose()


def _status_of(response: httpx2.Response, body: bytes | str) -> tuple[int, bytes]:
    """Return the status that a response should have had, and its body."""
    status, said = response.status_code, body if isinstance(body, str) else None
    if response.is_redirect:
        said = f"it redirects to {response.headers.get('location', '')[:80]}, and is not followed"
    elif response.is_success and isinstance(body, bytes):
        status, said = fault_of(body) or (200, None)
    elif said is not None:
        status = 502
    if said is not None:
        body = json.dumps({"error": {"message": said}})
    return status, body if isinstance(body, bytes) else body.encode()


def _proxy_for(url: httpx2.URL) -> str | None:
    """Return the proxy that the environment names for a host; none for this machine itself."""
    if _is_loopback(url.host) or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    return proxies.get(url.scheme) or proxies.get("all")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Connection:
    """An open client: many requests at once, at most ``concurrency`` of them in flight."""

    def __init__(self, endpoint: ChatEndpoint, client: openai.AsyncOpenAI) -> None:
        self._endpoint = endpoint
        self._client = client

    async def complete(self, prompt: str, schema: dict[str, Any]) -> dict[str, Any]:
        """Return the chat completion of one user turn, decoded, with its choices and usage.

        The reply follows ``schema`` only where the endpoint takes one: parse it as if it did not.
        Raises EndpointError when all attempts have failed or no other could help, and ReplyError
        where another model than before has answered.
        """
        while True:
            body = self._endpoint.request_body(prompt, schema)
            try:
                create = self._client.chat.completions.with_raw_response.create
                response = await create(**body)
            except openai.APIStatusError as error:
                if error.status_code not in (400, 422) or not self._endpoint.refuses(error, body):
                    raise EndpointError(_described(error), error.status_code) from error
            except openai.APITimeoutError as error:
                raise EndpointError("no reply in time") from error
            except openai.APIError as error:
                raise EndpointError(f"no connection: {error.__cause__ or error}") from error
            else:
                return self._by_the_same_model(json.loads(response.content))

    def _by_the_same_model(self, completion: dict[str, Any]) -> dict[str, Any]:
        name = completion.get("model")
        if isinstance(name, str):
            first = self._endpoint.answers_as = self._endpoint.answers_as or name
            if not (name.startswith(first) or first.startswith(name)):
                raise ReplyError(f"the model {name[:80]!r} answered, and {first[:80]!r} before")
        return completion


def _told(error: openai.APIStatusError) -> str:
    told = error.body.get("message") if isinstance(error.body, dict) else error.body
    return str(told or error.message)


def _described(error: openai.APIStatusError) -> str:
    if error.code == "insufficient_quota":
        return f"the account at the endpoint has no quota left (HTTP 429: {_told(error)})"
    return f"HTTP {error.status_code}: {_told(error)}"


def explain(failure: EndpointError, settings: ChatSettings) -> str:
    """Say in one sentence why nothing can be asked, and what to change."""
    where, status = settings.base_url, failure.status
    if status in (401, 403):
        if settings.api_key_env is None:
            return f"the endpoint {where} wants a key, and none was sent ({failure})."
        return f"the endpoint {where} refuses the key in {settings.api_key_env} ({failure})."
    if status in (400, 404) and _NO_MODEL.search(str(failure)):
        return f"the endpoint {where} does not have the model {settings.model!r} ({failure})."
    if status == 404:
        return f"there are no chat completions at {where} ({failure}): check the base URL."
    if status is None:
        return f"the endpoint {where} cannot be reached ({failure})."
    return f"the endpoint {where} refuses a trial request to {settings.model!r} ({failure})."
