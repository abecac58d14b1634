"""How much GPU memory does captured decoding keep?  `python -m benchmarks.decoding_memory`.

A random model at the shape of SmolLM2-135M; 200 batches of as many shapes as an evaluation has
(1 to 64 prompts, 1 to 20 samples each, 8 to 64 new tokens). The memory that torch has reserved is
bounded by the largest batch, whatever came after it, and is handed back at the end.
"""

import time

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

from grpo_ao.oracle.decoding import free_captures
from grpo_ao.oracle.generation import generate_completions
from grpo_ao.oracle.injection import InjectionHook
from grpo_ao.oracle.prompt import OraclePrompt
from grpo_ao.oracle.sampling import Sampling
from tests.tiny import tiny_tokenizer

BATCHES, WIDTH = 200, 576


def make_model() -> PeftModel:
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=WIDTH,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        eos_token_id=None,
        tie_word_embeddings=True,
    )
    with torch.device("cuda"):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    lora = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    assert isinstance(model, PeftModel)
    return model


def main() -> None:
    model, tokenizer = make_model(), tiny_tokenizer()
    hook = InjectionHook().attach(model, 1)
    table = Table("batches", "reserved, GB", "ms a batch", title="Captured decoding, 135M")

    def row(name: str, milliseconds: float) -> None:
        reserved = torch.cuda.memory_reserved() / 1e9
        table.add_row(name, f"{reserved:.2f}", f"{milliseconds:.0f}")

    def sample_batch(count: int, samples: int, new: int) -> None:
        prompts = [
            OraclePrompt("", list(range(1, 80 + 9 * n % 60)), [5, 6, 7]) for n in range(count)
        ]
        vectors = [torch.randn(3, WIDTH) for _ in range(count)]
        sampling = Sampling(samples, 1.0, new)
        generate_completions(
            model, tokenizer, hook, prompts, vectors, sampling, batch_size=count * samples
        )

    row("none", 0.0)
    started = time.perf_counter()
    for _ in range(2):
        sample_batch(64, 20, 64)
    row("the two largest", 1000 * (time.perf_counter() - started) / 2)
    for first in range(0, BATCHES, 50):
        started = time.perf_counter()
        for n in range(first, first + 50):
            sample_batch(1 + 37 * n % 64, 1 + n % 20, 8 + 5 * n % 57)
        row(f"{first + 50} more", 1000 * (time.perf_counter() - started) / 50)
    free_captures()
    row("handed back", 0.0)
    Console().print(table)


if __name__ == "__main__":
    main()
