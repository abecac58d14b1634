"""A real HTTP server that speaks chat completions, and misbehaves as a test tells it to."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 100, "completion_tokens": 7}


@dataclass(frozen=True)
class Response:
    """What to send: status, body and headers, after ``delay`` seconds; or cut the connection.

    ``raw`` stands in the place of the body, ``trickle`` is a pause in seconds after each byte.
    """

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False
    raw: bytes | None = None
    trickle: float = 0.0


@dataclass(frozen=True)
class Request:
    """What has come in. ``number`` counts from 0 over all requests."""

    number: int
    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)

    @property
    def prompt(self) -> str:
        return self.body["messages"][0]["content"]

    @property
    def letters(self) -> list[str]:
        """The grades that the request's schema allows."""
        schema = self.body["response_format"]["json_schema"]["schema"]
        return schema["properties"]["grade"]["enum"]


def reply(
    content: Any,
    usage: Any = USAGE,
    finish_reason: str = "stop",
    refusal: str | None = None,
    model: str | None = None,
    **response: Any,
) -> Response:
    """A chat completion that says ``content``."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    body: dict[str, Any] = {"object": "chat.completion", "choices": [choice], "model": model}
    if usage is not None:
        body["usage"] = usage
    return Response(body=json.dumps(body), **response)


def grade(letter: str, **options: Any) -> Response:
    return reply(json.dumps({"grade": letter}), **options)


def error(status: int, message: str = "it is so", **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, json.dumps({"error": {"message": message}}), named)


DROP = Response(drop=True)
Behaviour = Callable[[Request], Response]


def in_turn(*responses: Response) -> Behaviour:
    """Send these one after the other, then the last of them again and again."""
    return lambda request: responses[min(request.number, len(responses) - 1)]


class Endpoint:
    """The server's address, its behaviour, and the requests that it has seen."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.seen: list[Request] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.lock = threading.Lock()
        self.base_url = ""

    def admit(self, path: str, headers: dict[str, str], raw: bytes) -> Request:
        with self.lock:
            request = Request(len(self.seen), path, headers, raw)
            self.seen.append(request)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return request

    def dismiss(self) -> None:
        with self.lock:
            self.in_flight -= 1


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True
    endpoint: Endpoint

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: a client that gave up leaves a broken pipe."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        endpoint = self.server.endpoint
        raw = self.rfile.read(int(self.headers["content-length"]))
        if len(raw) < int(self.headers["content-length"]):  # whoever sent it was killed
            return
        request = endpoint.admit(self.path, dict(self.headers), raw)
        try:
            response = endpoint.behaviour(request)
            time.sleep(response.delay)
        finally:
            endpoint.dismiss()
        if response.drop:
            self.close_connection = True
            return
        body = response.body.encode() if response.raw is None else response.raw
        self.send_response(response.status)
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        for name, value in (headers | response.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if response.trickle:
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(response.trickle)
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[Endpoint]:
    """Run the server on a free port of 127.0.0.1 inside the block."""
    endpoint = Endpoint(behaviour)
    server = _Server(("127.0.0.1", 0), _Handler)
    server.endpoint = endpoint
    endpoint.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
