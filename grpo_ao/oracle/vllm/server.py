"""A rollout server: ``grpo-ao vllm-serve``, vLLM on a GPU of its own, spoken to over HTTP.

It keeps the pristine base weights beside those of vLLM and merges the adapter that it is sent.
There is no authentication: run it on a network where everyone may use it. Web pages may not: what
a browser sends is refused, and at a loopback address what is sent to another name.
"""

import dataclasses
import json
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import urlsplit

import torch
from torch import Tensor

from grpo_ao.errors import UserError
from grpo_ao.oracle.loading import load_config, load_tokenizer
from grpo_ao.oracle.prompt import placeholder_id
from grpo_ao.oracle.spec import load_spec
from grpo_ao.oracle.vllm.engine import (
    EngineSettings,
    InjectingEngine,
    bank_settings,
    check_architecture,
    check_arguments,
    check_installed,
)
from grpo_ao.oracle.vllm.weights import LoraFactors
from grpo_ao.oracle.vllm.wire import unpack_adapter, unpack_request

# An adapter of rank 64 on an 8B model is 349 MB.
MOST_BYTES = 2**34
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class RolloutServer(ThreadingHTTPServer):
    """Serves one engine to one trainer's process.

    ``GET /info`` tells what it injects, ``POST /adapter`` sets the weights, ``POST /rollouts``
    samples. What is wrong with a request comes back as one sentence with status 400.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], engine: InjectingEngine, model: str) -> None:
        super().__init__(address, _Handler)
        self._engine = engine
        self._model = model
        self._lock = threading.Lock()
        self._base: dict[str, Tensor] = {}

    def info(self) -> dict[str, Any]:
        """Return what a trainer has to agree with."""
        return {
            "model": self._model,
            "bank": dataclasses.asdict(self._engine.bank),
            "max_model_len": self._engine.max_model_len,
        }

    def set_adapter(self, body: bytes) -> dict[str, Any]:
        """Merge an adapter into the pristine base weights of the layers that it is on."""
        factors = unpack_adapter(body)
        with self._lock:
            self._keep_base(factors)
            self._engine.set_adapter(self._base, factors)
        return {"layers": len(factors)}

    def _keep_base(self, factors: dict[str, LoraFactors]) -> None:
        """Copy the weights of layers that are merged into for the first time."""
        if self._base and factors.keys() != self._base.keys():
            raise UserError("the adapter is on other layers than the one before it: restart.")
        if not self._base:
            missing = factors.keys() - self._engine.views.keys()
            if missing:
                raise UserError(f"the adapter is on {sorted(missing)[0]}, which vLLM has not.")
            self._base = {name: self._engine.views[name].clone() for name in factors}

    def rollouts(self, body: bytes) -> dict[str, Any]:
        """Sample as ``InjectingEngine.rollouts`` does."""
        request = unpack_request(body)
        with self._lock:
            if not self._base:
                raise UserError("no adapter has been sent yet: the base model would answer.")
            return self._engine.rollouts(**request._asdict())._asdict()


def start_server(
    model: str,
    adapter: str,
    address: tuple[str, int],
    memory: float,
    max_model_len: int,
    extra: Mapping[str, Any],
) -> RolloutServer:
    """Start vLLM for the oracle and listen; everything that can be refused first is.

    ``extra`` are further arguments of vLLM's ``LLM``.
    """
    check_installed()
    check_arguments(extra)
    config = load_config(model)
    check_architecture(config)
    spec = load_spec(adapter)
    placeholder = placeholder_id(load_tokenizer(model), spec.special_token)
    bank = bank_settings(config, spec.hook_onto_layer, spec.steering_coefficient, placeholder)
    settings = EngineSettings(model, torch.bfloat16, memory, max_model_len, extra)
    return RolloutServer(address, InjectingEngine(settings, config, bank), model)


class _Handler(BaseHTTPRequestHandler):
    # Seconds without a byte, after which a connection is given up.
    timeout = 60

    @property
    def _rollout_server(self) -> RolloutServer:
        return cast("RolloutServer", self.server)

    def do_GET(self) -> None:
        """Answer ``/info``."""
        if self._is_foreign():
            return
        if self.path == "/info":
            self._reply(200, self._rollout_server.info())
        else:
            self._reply(404, {"error": f"there is no {self.path} here."})

    def do_POST(self) -> None:
        """Answer ``/adapter`` and ``/rollouts``."""
        server = self._rollout_server
        calls = {"/adapter": server.set_adapter, "/rollouts": server.rollouts}
        if self._is_foreign():
            return None
        if self.path not in calls:
            return self._reply(404, {"error": f"there is no {self.path} here."})
        length = self.headers.get("Content-Length", "")
        if not (re.fullmatch("[0-9]{1,20}", length) and int(length) <= MOST_BYTES):
            said = f"Content-Length must be a number up to {MOST_BYTES}, got {length!r:.40}."
            return self._reply(400, {"error": said})
        try:
            answer = calls[self.path](self.rfile.read(int(length)))
        except ValueError as error:
            return self._reply(400, {"error": str(error)})
        except Exception as error:
            self._reply(500, {"error": f"it failed with {type(error).__name__}: {error}"})
            raise
        return self._reply(200, answer)

    def _is_foreign(self) -> bool:
        """Refuse what a web page sends, or sends to a name that it has made this machine's."""
        host = None
        with suppress(ValueError):  # "[::1", say, is the name of none
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        address: Any = self.server.server_address
        own = str(address[0])
        known = host in _LOOPBACK or own not in _LOOPBACK
        if known and "Origin" not in self.headers:
            return False
        self._reply(403, {"error": "a browser has no business here."})
        return True

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line a request is no information."""
