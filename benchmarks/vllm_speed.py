"""How fast are rollouts in vLLM, activations injected?  `python benchmarks/vllm_speed.py`.

Random weights at the shape of a real model; prompts of 110 tokens, 20 of them placeholders; 64 new
tokens (1,024 prompts: 40), temperature 0.9, log-probabilities returned. The first column is the
whole call of the rollout engine, prompts, bank and bookkeeping included; `ms per decode step` is
the time of all new tokens less that of one, over their number less one. The limit is every weight
that a step multiplies by read once, at the bandwidth that a copy reaches on this card. `--profile
FILE` writes what the GPU and Python do in one call of 32 prompts x 8, of one new token and of 64,
by torch's profiler.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile
from transformers import Qwen3Config

from grpo_ao.oracle.prompt import OraclePrompt
from grpo_ao.oracle.sampling import Sampling
from grpo_ao.oracle.vllm.client import draw_seeds
from grpo_ao.oracle.vllm.engine import (
    EngineSettings,
    InjectingEngine,
    bank_settings,
    check_installed,
)
from grpo_ao.oracle.vllm.weights import LoraFactors

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-8b": {
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "qwen3-1.7b": {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
}
PROMPT, SLOTS, NEW, RANK = 110, 20, 64, 64
# Prompts, samples of each, new tokens.
BATCHES = [(64, 1, NEW), (8, 8, NEW), (32, 8, NEW), (256, 1, NEW), (1024, 1, 40)]
PLACEHOLDER = 11


def seconds(call: Callable[[], Any], times: int) -> float:
    """Median time of a call, after two to warm up."""
    taken = []
    for n in range(times + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        if n >= 2:
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def copy_bandwidth() -> float:
    """Bytes read and written per second by a large copy on the card."""
    source = torch.empty(2**31, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), 20)


def start(shape: str, memory: float) -> tuple[InjectingEngine, Qwen3Config]:
    config = Qwen3Config(
        **SHAPES[shape],
        head_dim=128,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        architectures=["Qwen3ForCausalLM"],
        dtype="bfloat16",
    )
    folder = tempfile.mkdtemp()
    config.save_pretrained(folder)
    settings = EngineSettings(folder, torch.bfloat16, memory, 512, {"load_format": "dummy"})
    return InjectingEngine(settings, config, bank_settings(config, 1, 1.0, PLACEHOLDER)), config


def request(config: Qwen3Config, count: int) -> tuple[list[OraclePrompt], list[torch.Tensor]]:
    positions = list(range(4, 4 + SLOTS))
    prompts = []
    for _ in range(count):
        ids = torch.randint(1000, config.vocab_size, (PROMPT,))
        ids[positions] = PLACEHOLDER
        prompts.append(OraclePrompt("", ids.tolist(), positions))
    width = config.hidden_size
    return prompts, [torch.randn(SLOTS, width, dtype=torch.bfloat16) for _ in range(count)]


def calls(
    engine: InjectingEngine, config: Qwen3Config, count: int, samples: int
) -> Callable[[int], None]:
    """Return what asks for a rollout of so many new tokens."""
    # Other vectors each time; drawing them is no part of a rollout.
    requests = itertools.cycle([request(config, count) for _ in range(4)])

    def call(new: int) -> None:
        prompts, vectors = next(requests)
        seeds = draw_seeds(count)
        engine.rollouts(prompts, vectors, Sampling(samples, 0.9, new), [], seeds)

    return call


def write_profile(engine: InjectingEngine, config: Qwen3Config, path: Path) -> None:
    """Write what a call's time goes to, the kernels of the GPU and what Python does meanwhile."""
    call, parts = calls(engine, config, 32, 8), []
    for new in (1, NEW):
        call(new)
        started = time.perf_counter()
        with profile() as profiler:
            call(new)
            torch.cuda.synchronize()
        parts.append(f"{new} new tokens: {time.perf_counter() - started:.3f} s")
        for key in ("self_cuda_time_total", "self_cpu_time_total"):
            averages = profiler.key_averages()
            parts.append(averages.table(sort_by=key, row_limit=25, max_name_column_width=70))
    path.write_text("\n\n".join(parts))


def rollout_row(
    engine: InjectingEngine, config: Qwen3Config, batch: tuple[int, int, int], limit: float
) -> dict[str, float]:
    count, samples, new = batch
    call = calls(engine, config, count, samples)
    whole, first = seconds(lambda: call(new), 5), seconds(lambda: call(1), 5)
    step = (whole - first) / (new - 1)
    return {
        "seconds": whole,
        "tokens/s, prompts included": count * samples * new / whole,
        "ms per decode step": 1000 * step,
        "ratio to the limit": step / limit,
        "ms to the first token": 1000 * first,
    }


def merge_row(engine: InjectingEngine) -> dict[str, float]:
    """The time to bring a rank 64 adapter on all linear layers into vLLM's weights."""
    names = [name for name in engine.views if name.startswith("layers.")]
    base = {name: engine.views[name].clone() for name in names}
    factors = {
        name: LoraFactors(
            torch.randn(RANK, w.shape[1], device="cuda") * 0.01,
            torch.randn(w.shape[0], RANK, device="cuda") * 0.01,
            2.0,
        )
        for name, w in base.items()
    }
    return {"ms": 1000 * seconds(lambda: engine.set_adapter(base, factors), 10)}


def measure(shape: str, memory: float, profiled: Path | None) -> dict[str, Any]:
    """All rows of one shape, with what they were measured on."""
    started = time.perf_counter()
    engine, config = start(shape, memory)
    start_seconds = time.perf_counter() - started
    bandwidth = copy_bandwidth()
    read = sum(view.numel() for name, view in engine.views.items() if "embed" not in name)
    # The output layer is no part of the decoder, and is read in every step.
    read += config.vocab_size * config.hidden_size
    limit = 2 * read / bandwidth
    rows = {
        f"{batch[0]} prompts x {batch[1]}": rollout_row(engine, config, batch, limit)
        for batch in BATCHES
    }
    merge = merge_row(engine)
    if profiled:
        write_profile(engine, config, profiled)
    return {
        "card": torch.cuda.get_device_name(),
        "shape": shape,
        "copy, TB/s": bandwidth / 1e12,
        "limit, ms per decode step": 1000 * limit,
        "seconds to start the engine": start_seconds,
        "rollouts": rows,
        "merge": merge,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen3-8b")
    parser.add_argument("--memory", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", type=Path)
    args = parser.parse_args()
    check_installed()
    result = measure(args.shape, args.memory, args.profile)
    for name, value in result.items():
        if isinstance(value, dict):
            for row, numbers in value.items():
                print(f"  {row}: {numbers}")
        else:
            print(f"{name}: {value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
