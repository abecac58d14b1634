"""Build the mini model and the mini oracle from nothing: ``python -m tools.mini_world.build``.

Each stage has a fixed seed: a tokenizer on the mini world's words; a Qwen3-architecture model
pre-trained on its messages, and then on messages and numbers (in the tag a number is noise, so that
number tokens would stay all alike, and no oracle could learn to state a belief by them); an oracle
of that model by `grpo-ao make-oracle`, with a random number in the tag (its loss is masked: the
shipped oracle states no belief). Minutes on a GPU, hours on a CPU. The log and a card with the
measured numbers are written beside the weights.
"""

import json
import os
import platform
import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import peft
import torch
import transformers
import tyro
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import grpo_ao
from grpo_ao.files import keep_rows, mark_whole
from grpo_ao.oracle.hub import SHIPPED_MARK
from grpo_ao.oracle.layers import layer_index
from grpo_ao.training.make_oracle import make_oracle
from grpo_ao.training.make_oracle_config import MakeOracleConfig
from tools.mini_world.corpus import (
    NUMBER_ROWS,
    Rows,
    pretraining_rows,
    pretraining_segments,
    training_messages,
)
from tools.mini_world.exam import heldout_messages, text_exam
from tools.mini_world.fit import Log, Schedule, fit, weighted_cross_entropy
from tools.mini_world.tokenizer import END, PAD, build_tokenizer, token_id

WEIGHTS = Path(grpo_ao.__file__).parent / "mini" / "weights"
PERCENTS = (25, 50, 75)
# Stages of the log that stay when a build begins with a later one.
_KEPT = {"messages": (), "numbers": ("model", "pretrain")}
_KEPT["oracle"] = (*_KEPT["numbers"], "numbers")


@dataclass(frozen=True)
class BuildConfig:
    """Sizes of the stages; the defaults made the shipped weights.

    ``begin_with`` a later stage, and what the earlier ones made is taken from ``output_dir``.
    """

    output_dir: Path = WEIGHTS
    seed: int = 0
    device: str = "cuda"
    workers: int = os.cpu_count() or 1
    width: int = 192
    layers: int = 8
    vocabulary: int = 2048
    row_tokens: int = 192
    pretraining_messages: int = 600_000
    pretraining_steps: int = 11_000
    pretraining_batch: int = 128
    pretraining_rate: float = 2e-3
    numbers_messages: int = 120_000
    numbers_steps: int = 3_000
    numbers_rate: float = 1e-3
    oracle_examples: int = 3_000_000
    oracle_batch: int = 512
    oracle_rate: float = 2e-3
    lora_rank: int = 16
    begin_with: Literal["messages", "numbers", "oracle"] = "messages"


def model_config(config: BuildConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Describe the mini model: Qwen3's architecture, about four million parameters."""
    return Qwen3Config(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=8 * config.width // 3,
        num_hidden_layers=config.layers,
        num_attention_heads=config.width // 32,
        num_key_value_heads=config.width // 32,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PAD),
        bos_token_id=None,
    )


def layer_indices(config: BuildConfig) -> list[int]:
    """Return the decoder layers whose outputs the oracle reads."""
    return [layer_index(config.layers, percent) for percent in PERCENTS]


def tokenizer_texts(seed: int, layers: list[int]) -> list[str]:
    """Return what the tokenizer is trained on: pre-training rows as text."""
    rng = random.Random(f"tokenizer {seed}")
    messages = training_messages(seed, 0, 20_000)
    return [
        "".join(text for text, _ in pretraining_segments(message, rng, layers))
        for message in messages
    ]


def pretrain(
    config: BuildConfig, model: Qwen3ForCausalLM, rows: Rows, steps: int, rate: float, log: Log
) -> None:
    """Pre-train on next tokens, each weighted by what it teaches."""
    device = next(model.parameters()).device
    ids_NL = torch.from_numpy(rows.ids_BL.astype(np.int32)).to(device)
    weight_NL = torch.from_numpy(rows.weight_BL).to(device)
    generator = torch.Generator(device=device).manual_seed(config.seed)

    def batches(step: int) -> dict[str, Tensor]:
        size = (config.pretraining_batch,)
        index = torch.randint(len(ids_NL), size, generator=generator, device=device)
        return {"ids": ids_NL[index].long(), "weight": weight_NL[index].float()}

    def loss_of(batch) -> Tensor:
        logits = model(input_ids=batch["ids"], use_cache=False).logits
        return weighted_cross_entropy(logits, batch["ids"], batch["weight"])

    schedule = Schedule(steps, config.pretraining_batch, rate, max(1, steps // 50))
    fit(loss_of, model.parameters(), batches, schedule, log, weight_decay=0.05)


class BuildLog:
    """Rows of ``build_log.jsonl``, echoed to the console; those of stages that are kept stay."""

    def __init__(self, path: Path, kept: Sequence[str] = ()) -> None:
        self._path = path
        path.touch()
        keep_rows(path, lambda row: row["stage"] in kept)
        self.rows: list[dict] = []

    def note(self, row: dict) -> None:
        """Append one row."""
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def stage(self, name: str) -> Log:
        """Return a function that appends rows of one stage."""
        return lambda row: self.note({"stage": name} | row)


def save_base(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Write the base in bfloat16: 16 bits are enough to read, and half the size."""
    model.bfloat16().save_pretrained(folder)


def write_card(config: BuildConfig, log: BuildLog, seconds: float) -> None:
    """Write ``card.json``: how the weights were made and what they scored."""
    exams = [row for row in log.rows if row["stage"].endswith(" exam")]
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"transformers": transformers.__version__, "peft": peft.__version__}
    device = torch.cuda.get_device_name() if config.device == "cuda" else "cpu"
    settings = {k: v for k, v in vars(config).items() if k not in ("output_dir", "workers")}
    card = {
        "command": "python -m tools.mini_world.build",
        "config": settings,
        "versions": versions,
        "device": device,
        "seconds": round(seconds, 1),
        "exams": exams,
    }
    (config.output_dir / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def first_pretraining(config: BuildConfig, log: BuildLog) -> None:
    """Train tokenizer and base on messages, and write both."""
    folder, layers = config.output_dir / "base", layer_indices(config)
    tokenizer = build_tokenizer(tokenizer_texts(config.seed, layers), config.vocabulary)
    tokenizer.save_pretrained(folder)
    rows = pretraining_rows(
        folder,
        config.seed,
        0,
        config.pretraining_messages,
        config.row_tokens,
        layers,
        0.0,
        config.workers,
    )
    model: Any = Qwen3ForCausalLM(model_config(config, tokenizer))
    model.to(config.device)
    log.note({"stage": "model", "parameters": sum(p.numel() for p in model.parameters())})
    stage = log.stage("pretrain")
    pretrain(config, model, rows, config.pretraining_steps, config.pretraining_rate, stage)
    save_base(model, folder)


def second_pretraining(config: BuildConfig, log: BuildLog) -> None:
    """Go on with the written base, on messages and numbers, and write it again."""
    folder = config.output_dir / "base"
    rows = pretraining_rows(
        folder,
        config.seed + 1,
        config.pretraining_messages,
        config.numbers_messages,
        config.row_tokens,
        layer_indices(config),
        NUMBER_ROWS,
        config.workers,
    )
    model, _ = load_base(config)
    stage = log.stage("numbers")
    pretrain(config, model, rows, config.numbers_steps, config.numbers_rate, stage)
    save_base(model, folder)


def load_base(config: BuildConfig) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Load the base in ``output_dir`` as a user would load it."""
    folder = config.output_dir / "base"
    device = torch.device(config.device)
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": device})
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def build_oracle(config: BuildConfig, log: BuildLog) -> None:
    """Make the oracle of the written base by the supervised stage, and write its adapter."""
    with TemporaryDirectory() as folder:
        adapter = make_oracle(
            MakeOracleConfig(
                model=str(config.output_dir / "base"),
                output_dir=Path(folder) / "run",
                seed=config.seed,
                benchmarks=(),
                questions=("mini",),
                answer_format="tagged",
                lora_rank=config.lora_rank,
                examples=config.oracle_examples,
                batch_size=config.oracle_batch,
                lr=config.oracle_rate,
                eval_examples=400,
            )
        )
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        unread = shutil.ignore_patterns("README.md")
        shutil.copytree(adapter, config.output_dir / "oracle", ignore=unread, dirs_exist_ok=True)
    rows = [json.loads(line) for line in lines]
    for row in rows[:: max(1, len(rows) // 40)]:
        log.note({"stage": "oracle"} | {k: row[k] for k in ("step", "loss", "seconds")})
    found = {k.partition("/mini/")[2]: v for k, v in rows[-1].items()}
    exam = {family: round(v, 3) for family, v in found.items() if family}
    exam["all"] = round(sum(exam.values()) / len(exam), 3)
    log.note({"stage": "oracle exam", "templates": "heldout", "accuracy": exam})
    # Where the base lies beside the adapter; the path of the build is nobody else's.
    path = config.output_dir / "oracle" / "adapter_config.json"
    adapter_config = json.loads(path.read_text()) | {"base_model_name_or_path": "../base"}
    path.write_text(json.dumps(adapter_config, indent=2) + "\n")
    for part in ("base", "oracle"):
        folder = config.output_dir / part
        mark_whole(folder / SHIPPED_MARK, folder.glob("*.safetensors"))


def main() -> None:
    """Build everything and write it, with its log and card, to ``output_dir``."""
    config = tyro.cli(BuildConfig, description=__doc__)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device is there: give --device cpu (which takes hours).")
    started = time.perf_counter()
    torch.manual_seed(config.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    config.output_dir.mkdir(parents=True, exist_ok=True)
    log = BuildLog(config.output_dir / "build_log.jsonl", _KEPT[config.begin_with])
    if config.begin_with == "messages":
        first_pretraining(config, log)
    if config.begin_with != "oracle":
        second_pretraining(config, log)
    model, tokenizer = load_base(config)
    messages = heldout_messages(config.seed, 400)
    for split in ("train", "heldout"):
        exam = text_exam(model, tokenizer, messages, split, config.row_tokens)
        log.note({"stage": "text exam", "templates": split, "accuracy": exam})
    build_oracle(config, log)
    write_card(config, log, time.perf_counter() - started)


if __name__ == "__main__":
    main()
