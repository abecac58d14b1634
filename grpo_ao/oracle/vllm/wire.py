"""What a trainer and a rollout server send each other: safetensors, with JSON in a tensor.

An adapter travels as its factors, not as merged weights: 349 MB in bfloat16 for rank 64 on all
linear layers of an 8B model, where the weights themselves are 16.4 GB.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from grpo_ao.errors import UserError
from grpo_ao.oracle.prompt import OraclePrompt
from grpo_ao.oracle.sampling import Sampling
from grpo_ao.oracle.vllm.weights import LoraFactors

_JSON = "json"
_PROMPTS, _IDS = TypeAdapter(list[tuple[str, list[int], list[int]]]), TypeAdapter(list[int])
# What reading a message of others may raise.
_ODD = (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RuntimeError)


class RolloutRequest(NamedTuple):
    """The arguments of ``InjectingEngine.rollouts``, prompts with their vectors (K, D)."""

    prompts: list[OraclePrompt]
    vectors: list[Tensor]
    sampling: Sampling
    end_ids: list[int]
    seeds: list[int]


def pack_adapter(factors: Mapping[str, LoraFactors], dtype: torch.dtype) -> bytes:
    """Return an adapter as bytes, its factors in the dtype that they are merged in."""
    tensors = {f"{name}.a": f.a_RI for name, f in factors.items()}
    tensors |= {f"{name}.b": f.b_OR for name, f in factors.items()}
    return _pack(
        {name: tensor.to(dtype) for name, tensor in tensors.items()},
        {"scales": {name: factor.scale for name, factor in factors.items()}},
    )


def unpack_adapter(body: bytes) -> dict[str, LoraFactors]:
    """Read ``pack_adapter`` back; UserError for anything else."""
    tensors, values = _unpack(body, ["scales"])
    with _as_this_protocol_has_it():
        factors = {
            name: LoraFactors(tensors[f"{name}.a"], tensors[f"{name}.b"], float(scale))
            for name, scale in values["scales"].items()
        }
    for name, (a_RI, b_OR, scale) in factors.items():
        if not (a_RI.isfinite().all() and b_OR.isfinite().all() and math.isfinite(scale)):
            raise UserError(f"the adapter is not finite on {name}.")
    return factors


def pack_request(request: RolloutRequest) -> bytes:
    """Return a request for rollouts as bytes."""
    values: dict[str, Any] = request._asdict()
    vectors: Sequence[Tensor] = values.pop("vectors")
    values["prompts"] = [[p.text, p.input_ids, p.positions] for p in request.prompts]
    values["sampling"] = dataclasses.asdict(request.sampling)
    values["counts"] = [len(row_KD) for row_KD in vectors]
    return _pack({"vectors": torch.cat(list(vectors))}, values)


def unpack_request(body: bytes) -> RolloutRequest:
    """Read ``pack_request`` back; UserError for anything else."""
    fields = [name for name in RolloutRequest._fields if name != "vectors"]
    tensors, values = _unpack(body, [*fields, "counts"])
    with _as_this_protocol_has_it():
        vectors = list(tensors["vectors"].split(values.pop("counts")))
        prompts = [OraclePrompt(*p) for p in _PROMPTS.validate_python(values["prompts"])]
        end_ids, seeds = (_IDS.validate_python(values[name]) for name in ("end_ids", "seeds"))
        if not len(prompts) == len(vectors) == len(seeds):
            raise ValueError("prompts, vectors and seeds differ in number")
        return RolloutRequest(prompts, vectors, Sampling(**values["sampling"]), end_ids, seeds)


@contextmanager
def _as_this_protocol_has_it() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except _ODD as error:
        raise UserError("the message is none of grpo_ao's rollout protocol.") from error


def _pack(tensors: dict[str, Tensor], values: dict[str, Any]) -> bytes:
    text = torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)
    return save(
        {name: t.detach().cpu().contiguous() for name, t in tensors.items()} | {_JSON: text}
    )


def _unpack(body: bytes, keys: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with _as_this_protocol_has_it():
        tensors = load(body)
        values = dict(json.loads(bytes(tensors.pop(_JSON).tolist())))
    if set(values) != set(keys):
        raise UserError(
            "the message is of another version of grpo_ao's rollout protocol: run the same version "
            "on both sides."
        )
    return tensors, values
