"""What `grpo-ao make-oracle` is told; reading it loads no library of models."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grpo_ao.errors import UserError
from grpo_ao.files import SMOLLM2
from grpo_ao.numbers import check_numbers
from grpo_ao.probe import parse_layers
from grpo_ao.probes.names import IN_DISTRIBUTION


@dataclass(frozen=True)
class MakeOracleConfig:
    """How an oracle is made for a chat model. Every field is a flag."""

    model: str
    """Chat model, the subject and the oracle's base: a Hub id, a folder, or a .gguf file."""
    output_dir: Path
    """Folder of this run; the oracle is written to `adapter` in it."""
    subject_lora: str | None = None
    """Adapter with which the model is read: a fine-tuned subject (a Hub id or a folder)."""
    resume: bool = False
    """Go on with the run in output_dir from its checkpoint."""
    seed: int = 0
    """Seed of the adapter and of the order of examples."""

    benchmarks: tuple[str, ...] = IN_DISTRIBUTION
    """Benchmarks whose training contexts are asked about (ag_news and singular_plural have none);
    none if no name follows."""
    data_dir: Path | None = None
    """Folder with the benchmarks' data (default: from the Hub)."""
    questions_per_context: int = 8
    """Questions about each context of a benchmark, with labels and wordings of their own."""
    questions: tuple[str, ...] = ()
    """Question sets with reference answers: JSONL files, Hub ids, or `mini`."""
    labelled: tuple[Path, ...] = ()
    """JSONL files with `text` and `label`, asked about by yes or no; .zst is unpacked."""
    latentqa: Path | None = None
    """Folder with LatentQA's JSON files."""
    plain: str | None = None
    """Plain text for context prediction and questions about words: a .txt, .jsonl or .jsonl.zst
    file, or a Hub data set with a column `text`."""
    plain_texts: int = 100_000
    """Plain texts at most."""
    context_share: float = 0.3
    """Share of the examples that are context prediction, where plain text is given."""
    kept_share: float = 0.3
    """Share of the training texts that is not taught, so that the warm start and GRPO have
    questions whose answers the oracle does not know."""

    layer_combination: tuple[str, ...] = ()
    """Layers that an example reads: `9 18 27` draws one, `21,22,23` reads three together (default:
    one at 25, 50 or 75 % of depth)."""
    answer_format: Literal["plain", "tagged"] = "plain"
    """plain: answers as the public oracles give them. tagged: behind a tag with a random number
    that is not learned, so that the warm start need not teach the form."""
    lora_rank: int = 64
    """Rank of the adapter on all linear layers; its alpha is twice that."""
    examples: int = 1_000_000
    """Examples to train on, in all."""
    batch_size: int = 512
    """Examples per optimizer step, over all processes."""
    lr: float = 3e-4
    """Peak learning rate."""
    tokens_per_pass: int = 65_536
    """Padded prompt tokens in one forward pass at most; bounds the memory."""
    max_tokens: int = 256
    """Texts of more tokens than this are left out."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    compile: bool = False
    """Compile the decoder layers (NVIDIA GPUs): a minute at the start, then faster steps."""

    eval_examples: int = 100
    """Held-out examples of each source."""
    eval_steps: int = 500
    """Steps between measurements of the held-out accuracy."""
    save_steps: int = 500
    """Steps between checkpoints."""
    report_to: tuple[Literal["none", "wandb", "tensorboard", "trackio"], ...] = ()
    """Where metrics go besides metrics.jsonl."""

    def __post_init__(self) -> None:
        check_numbers(self, shares=("context_share", "kept_share"), may_be_zero=("seed",))
        for layers in self.layer_combination:
            parse_layers(layers)
        if others := set(self.benchmarks) - set(IN_DISTRIBUTION):
            raise UserError(
                f"--benchmarks {' '.join(sorted(others))} cannot be taught: choose from "
                f"{', '.join(IN_DISTRIBUTION)}."
            )
        if not (self.benchmarks or self.questions or self.labelled or self.latentqa or self.plain):
            raise UserError("there is nothing to teach: name benchmarks, questions or plain text.")

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, self.examples // self.batch_size)


_PRESETS: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model": SMOLLM2,
        "output_dir": Path("runs/smollm2-135m-oracle"),
        "lora_rank": 16,
        "lr": 5e-4,
        "examples": 1_250_000,
        "eval_examples": 250,
    }
}


def make_oracle_preset(name: str) -> MakeOracleConfig:
    """Return the settings of a preset; UserError for a name that there is none of."""
    if name not in _PRESETS:
        raise UserError(f"--preset {name} is unknown: choose from {', '.join(_PRESETS)}.")
    return MakeOracleConfig(**_PRESETS[name])
