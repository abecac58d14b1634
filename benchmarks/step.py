"""One GRPO step beside the limits of its machine: ``python -m benchmarks.step --shape qwen3-8b``.

In one run: copy bandwidth and matmul rate of this machine, extraction, a step of the warm start,
rollouts, 1,024 prompts at once, and whole steps, of this package and of TRL's default path
(`generate` with the adapter unmerged, a prompt for each completion), with the peak memory of each.
A limit is one reading of the weights for each decoding step and the operations of the passes, at
the rates of this run. Shapes have random weights, made on the device: speed does not depend on
their values. ``--shape mini`` is the demo's own oracle, and runs on a CPU. ``--json FILE`` writes
the same numbers; ``--profile FILE`` writes what the time of one step of ours went to, by torch's
profiler. Where vLLM is installed, Qwen3's shapes have its rollouts too (``benchmarks.vllm_speed``).
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
    TrainerCallback,
)

from grpo_ao.checks import trainer_config
from grpo_ao.config import MINI_WEIGHTS, make_defaults
from grpo_ao.judges.reference import ReferenceJudge
from grpo_ao.mini.probes import mini_probes
from grpo_ao.oracle.activations import read_residuals
from grpo_ao.oracle.ends import cut_at_end, end_token_ids
from grpo_ao.oracle.injection import Injection
from grpo_ao.oracle.layers import decoder_layers, decoder_of, hidden_width, layer_index, unwrap
from grpo_ao.oracle.loading import check_sources, load_tokenizer
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.prompt import OraclePrompt, pad_prompts
from grpo_ao.oracle.sampling import RolloutEngine, Rollouts, Sampling
from grpo_ao.oracle.sharding import shard_base
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probe import Layers, Positions, Probe
from grpo_ao.processes import Processes
from grpo_ao.reward import reward_rule
from grpo_ao.tracking import Reporter
from grpo_ao.training.checkpoints import make_trainable
from grpo_ao.training.fine_tuning import Start, Target, fine_tune
from grpo_ao.training.monitor import Monitor
from grpo_ao.training.passes import avoid_cudnn_attention
from grpo_ao.training.rewarding import CalibratedReward
from grpo_ao.training.trainer import OracleGRPOTrainer

SLOTS = 20
PROMPT_TOKENS = 110
# A warm start's target: the tag, a short answer, the end.
TARGET_TOKENS = 12
MANY_PROMPTS, MANY_TOKENS = 1024, 40
QWEN: dict[str, Any] = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
# Each shape's configuration, the rank of its adapter, questions and new tokens of a step, targets
# of a step of the warm start.
SHAPES: dict[str, tuple[PreTrainedConfig, int, int, int, int]] = {
    "smollm2-135m": (
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        ),
        *(16, 64, 40, 192),
    ),
    "qwen3-1.7b": (
        Qwen3Config(
            **QWEN,
            hidden_size=2048,
            intermediate_size=6144,
            num_hidden_layers=28,
            num_attention_heads=16,
            tie_word_embeddings=True,
        ),
        *(64, 64, 40, 192),
    ),
    "qwen3-8b": (
        Qwen3Config(
            **QWEN,
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=36,
            num_attention_heads=32,
            max_position_embeddings=40960,
            tie_word_embeddings=False,
        ),
        *(64, 8, 64, 64),
    ),
}


class Work(NamedTuple):
    """What is measured: a step's questions, their completions and new tokens; a warm start's."""

    questions: int
    samples: int
    new_tokens: int
    targets: int
    checkpointing: bool

    @classmethod
    def of(cls, shape: str) -> "Work":
        """Return the work of a shape: the demo's own step for the mini oracle."""
        if shape == "mini":
            return cls(8, 8, make_defaults("mini").max_new_tokens, 32, False)
        _, _, questions, new_tokens, targets = SHAPES[shape]
        return cls(questions, 8, new_tokens, targets, shape != "smollm2-135m")


@dataclass
class Row:
    """One measurement; what does not apply is None."""

    name: str
    seconds: float
    decode_ms: float | None = None
    tokens_per_s: float | None = None
    peak_gb: float | None = None
    to_limit: float | None = None
    note: str = ""


@dataclass
class Report:
    """All measurements of one run."""

    shape: str
    device: str
    copy_tb_s: float = 0.0
    matmul_tflop_s: float = 0.0
    rows: list[Row] = field(default_factory=list)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], repeats: int, warm_up: int = 1) -> float:
    """Return the median time of ``work``."""
    times = []
    for _ in range(warm_up + repeats):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        times.append(time.perf_counter() - started)
    return median(times[warm_up:])


@contextmanager
def peak_memory() -> Iterator[Callable[[], float | None]]:
    """Yield a function that gives the peak of allocated memory in the block so far, in GB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    yield lambda: torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None


def measure_limits(device: torch.device) -> tuple[float, float]:
    """Return copy bandwidth (TB/s, bytes read and written) and matmul rate (TFLOP/s)."""
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    source = torch.randn((1 << 30) if on_gpu else (1 << 24), device=device).to(dtype)
    target = torch.empty_like(source)
    copy = seconds_of(lambda: target.copy_(source), 10, 2)
    size = 8192 if on_gpu else 1024
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    product = seconds_of(lambda: a @ b, 10, 2)
    return 2 * source.nbytes / copy / 1e12, 2 * size**3 / product / 1e12


def make_shape(shape: str, device: torch.device, divided: bool = False) -> PeftModel:
    """Return a model of this shape, random weights in bfloat16, and LoRA on all linear layers.

    ``divided`` divides the base over the processes.
    """
    config, rank, *_ = SHAPES[shape]
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if divided:
        shard_base(base, device)
    lora = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    if not isinstance(model, PeftModel):
        raise TypeError(f"PEFT made a {type(model).__name__}.")
    return model


def make_oracle(shape: str, device: torch.device, divided: bool = False) -> Oracle:
    if shape == "mini":
        base, adapter = MINI_WEIGHTS / "base", MINI_WEIGHTS / "oracle"
        oracle = Oracle.load(check_sources(base, adapter, device), divided=divided)
    else:
        # The mini world's tokenizer: what matters is how many tokens there are.
        model = make_shape(shape, device, divided)
        oracle = Oracle(model, load_tokenizer(MINI_WEIGHTS / "base"), OracleSpec())
    make_trainable(oracle)
    return oracle


def make_table(shape: str, oracle: Oracle, count: int, num_layers: int = 1) -> ProbeTable:
    """Return probes with random activations: the mini world's, or prompts of 110 tokens.

    Each reads ``num_layers`` layers from half depth on; a prompt is longer by those beyond one.
    """
    positions = Positions.parse(f"last:{SLOTS}")
    half = layer_index(oracle.num_layers, 50)
    layers = tuple(range(half, half + num_layers))
    if shape == "mini":
        probes = mini_probes("train", count, [layers], positions)
    else:
        probes = [long_probe(oracle, layers, positions, n) for n in range(count)]
    width = hidden_width(unwrap(oracle.model).config)
    vectors = list(torch.randn(len(probes), num_layers * SLOTS, width))
    return ProbeTable.of_vectors(oracle, probes, vectors)


def long_probe(oracle: Oracle, layers: Layers, positions: Positions, number: int) -> Probe:
    """Return a probe whose prompt has 110 tokens where one layer is read."""
    question = f"{number}"
    while len(oracle.prompt(layers[:1], SLOTS, question).input_ids) < PROMPT_TOKENS:
        question += " ?"
    return Probe("a text", question, "closed", layers, positions, "Yes", "benchmark")


class DefaultRollouts:
    """As TRL's default path: `generate`, adapter unmerged, a prompt for each completion."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    def rollouts(
        self, prompts: Sequence[OraclePrompt], vectors: Sequence[Tensor], sampling: Sampling
    ) -> Rollouts:
        num_samples = sampling.num_samples
        repeated = [prompt for prompt in prompts for _ in range(num_samples)]
        ids_BL, mask_BL = pad_prompts(repeated, 0)
        vectors = [rows for rows in vectors for _ in range(num_samples)]
        injection = Injection.of(repeated, vectors, ids_BL.shape[1])
        model = self.oracle.model
        model.eval()
        ends = end_token_ids(model, self.oracle.tokenizer)
        device = decoder_of(model).device
        with torch.no_grad(), self.oracle.hook.serving(injection.to(device)):
            output_BL = model.generate(
                input_ids=ids_BL.to(device),
                attention_mask=mask_BL.to(device),
                do_sample=True,
                temperature=sampling.temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=ends,
                pad_token_id=0,
            )
        model.train()
        rows = [cut_at_end(row, ends) for row in output_BL[:, ids_BL.shape[1] :].tolist()]
        groups = [rows[n : n + num_samples] for n in range(0, len(rows), num_samples)]
        return Rollouts(groups, None)


def measure_rollouts(
    name: str,
    engine: RolloutEngine,
    oracle: Oracle,
    table: ProbeTable,
    report: Report,
    work: Work,
    repeats: int,
) -> Row:
    """Time the rollouts of a step; a decoding step is what two lengths of rollout differ by."""
    questions, samples, new_tokens, *_ = work
    prompts, vectors = table.prompts[:questions], table.vectors[:questions]
    temperature = make_defaults(None).temperature
    found: list[Rollouts] = []

    def run(new_tokens: int) -> None:
        found.append(engine.rollouts(prompts, vectors, Sampling(samples, temperature, new_tokens)))

    with peak_memory() as peak:
        short = seconds_of(lambda: run(2), repeats)
        seconds = seconds_of(lambda: run(new_tokens), repeats)
    rows = [row for group in found[-1].token_ids for row in group]
    tokens = sum(map(len, rows))
    step = (seconds - short) / (max(map(len, rows)) - 2)
    to_limit = step * report.copy_tb_s * 1e12 / bytes_of_a_step(oracle)
    note = f"{questions} x {samples}; prompts and two steps {short:.3f} s"
    return Row(name, seconds, step * 1e3, tokens / seconds, peak(), to_limit, note)


def bytes_of_a_step(oracle: Oracle) -> int:
    """Return how many bytes of weights a decoding step reads."""
    base = [p for n, p in unwrap(oracle.model).named_parameters() if "lora" not in n]
    embeddings = oracle.model.get_input_embeddings().weight
    tied = embeddings is oracle.model.get_output_embeddings().weight
    return sum(p.nbytes for p in base) - (0 if tied else embeddings.nbytes)


def operations(oracle: Oracle, read: int, written: int) -> int:
    """Return the operations of one forward pass: of all tokens, and of those with logits."""
    layers = [p for n, p in decoder_layers(oracle.model).named_parameters() if "lora" not in n]
    head = oracle.model.get_output_embeddings().weight.numel()
    return 2 * (sum(p.numel() for p in layers) * read + head * written)


def step_limit(oracle: Oracle, table: ProbeTable, work: Work, report: Report) -> float:
    """Return the least seconds of a GRPO step: its decoding steps, and the operations of passes.

    The weights are read once a decoding step; prompts are read once, and what is packed four times:
    policy, reference, and twice in the backward pass.
    """
    prompts = sum(len(prompt.input_ids) for prompt in table.prompts[: work.questions])
    written = work.questions * work.samples * work.new_tokens
    count = operations(oracle, prompts + 4 * (prompts + written), 4 * written)
    reading = work.new_tokens * bytes_of_a_step(oracle) / (report.copy_tb_s * 1e12)
    return reading + count / (report.matmul_tflop_s * 1e12)


def measure_warm_start(oracle: Oracle, table: ProbeTable, report: Report, work: Work) -> Row:
    """Time steps of the warm start, the first two left out."""
    end = end_token_ids(oracle.model, oracle.tokenizer)[0]
    ids = [*range(10, 9 + TARGET_TOKENS), end]
    weights = [1.0] * TARGET_TOKENS
    targets = [Target(row % len(table), ids, weights, ids, 3) for row in range(4 * work.targets)]
    times = [0.0]

    def keep_time(_: int) -> None:
        synchronize()
        times.append(time.perf_counter())

    with peak_memory() as peak:
        start = Start(oracle)
        given = (Processes(), oracle, start, table, targets, 8, work.targets, 1e-6, 0, keep_time)
        fine_tune(*given)
    seconds = median(b - a for a, b in pairwise(times[2:]))
    prompts = sum(len(prompt.input_ids) for prompt in table.prompts)
    written = work.targets * TARGET_TOKENS
    tokens = work.targets * prompts // len(table) + written
    # The policy's pass, twice as much backward, and the starting oracle's.
    limit = 4 * operations(oracle, tokens, written) / (report.matmul_tflop_s * 1e12)
    note = f"{work.targets} targets"
    return Row("warm start, a step", seconds, None, tokens / seconds, peak(), seconds / limit, note)


class StepTimer(TrainerCallback):
    """Times whole steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        synchronize()
        self._started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        synchronize()
        self.seconds.append(time.perf_counter() - self._started)


class PartTimer(OracleGRPOTrainer):
    """Keeps each step's times by part."""

    parts: list[dict[str, float]]

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        synchronize()
        self.parts.append(dict(self._seconds))
        return loss


def make_trainer(
    oracle: Oracle,
    table: ProbeTable,
    ours: bool,
    steps: int,
    folder: Path,
    work: Work,
) -> tuple[PartTimer, StepTimer]:
    """Make the trainer of a run; ``ours`` is False for TRL's default path."""
    timer = StepTimer()
    config = replace(
        make_defaults(None),
        questions_per_step=work.questions,
        num_generations=work.samples,
        max_new_tokens=work.new_tokens,
        gradient_checkpointing=work.checkpointing,
    )
    processes = Processes()
    args = trainer_config(config, processes)
    args.max_steps = steps
    args.save_strategy = "no"
    trainer = PartTimer(
        oracle,
        table,
        CalibratedReward(ReferenceJudge(), reward_rule(config.calibration_lambda)),
        oracle if ours else DefaultRollouts(oracle),
        args,
        config.credit,
        config.scale_rewards,
        config.tag_outcome,
        Monitor(folder, Reporter(), plot_every=10**6) if processes.is_main else None,
        config.max_unscored,
        [timer],
    )
    trainer.parts = []
    trainer.packs = trainer.packs and ours
    return trainer, timer


def clear(oracle: Oracle) -> None:
    """Leave the oracle as it was before a trainer: TRL keeps the reference in an adapter."""
    oracle.hook.clear()
    if "ref" in oracle.model.peft_config:
        oracle.model.delete_adapter("ref")


def measure_steps(
    oracle: Oracle,
    table: ProbeTable,
    ours: bool,
    steps: int,
    work: Work,
    report: Report | None = None,
) -> Row:
    """Time whole GRPO steps, the first left out."""
    with tempfile.TemporaryDirectory() as name, peak_memory() as peak:
        trainer, timer = make_trainer(oracle, table, ours, steps + 1, Path(name), work)
        trainer.train()
    clear(oracle)
    parts = [median(part[name] for part in trainer.parts[1:]) for name in ("generate", "score")]
    whole = median(timer.seconds[1:])
    note = f"rollout {parts[0]:.2f}, score and reference {parts[1]:.2f}, "
    note += f"loss and update {whole - sum(parts):.2f}"
    name = "step, ours" if ours else "step, TRL's default path"
    to_limit = whole / step_limit(oracle, table, work, report) if report else None
    return Row(name, whole, peak_gb=peak(), to_limit=to_limit, note=note)


def measure_extraction(oracle: Oracle, report: Report, texts: int) -> Row:
    """Read ``texts`` texts of 16 to 512 tokens at three layers."""
    generator = torch.Generator().manual_seed(0)
    lengths = (16 * torch.exp(torch.rand(texts, generator=generator) * 3.466)).int().tolist()
    rows = [torch.randint(3, 2000, (n,), generator=generator).tolist() for n in lengths]
    layers = [layer_index(oracle.num_layers, percent) for percent in (25, 50, 75)]
    reads = [[((layer,), range(max(0, n - SLOTS), n)) for layer in layers] for n in lengths]
    with peak_memory() as peak:
        seconds = seconds_of(lambda: read_residuals(oracle.model, rows, reads, 256), 2)
    depth = max(layers) + 1
    weights = decoder_layers(oracle.model)[0].named_parameters()
    per_layer = sum(p.numel() for n, p in weights if "lora" not in n)
    flops = 2 * per_layer * depth * sum(lengths)
    share = flops / seconds / 1e12 / report.matmul_tflop_s
    note = f"{texts} texts, {sum(lengths)} tokens, {depth} layers; {share:.0%} of the matmul rate"
    return Row("extraction", seconds, None, sum(lengths) / seconds, peak(), 1 / share, note)


def write_profile(oracle: Oracle, table: ProbeTable, work: Work, path: Path) -> None:
    """Write the kernels and operators that one step of ours spends its time on."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = make_trainer(oracle, table, True, 1, Path(folder), work)
        with profile(activities=activities) as profiler:
            trainer.train()
    clear(oracle)
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    averages = profiler.key_averages()
    path.write_text(averages.table(sort_by=key, row_limit=40, max_name_column_width=70))


def render(report: Report) -> Table:
    table = Table(
        "what", "s", "ms / decode step", "tokens/s", "peak GB", "x limit", "",
        title=f"{report.shape} on {report.device}: copy {report.copy_tb_s:.2f} TB/s, "
        f"matmul {report.matmul_tflop_s:.3g} TFLOP/s",
    )  # fmt: skip
    for row in report.rows:
        numbers = [row.decode_ms, row.tokens_per_s, row.peak_gb, row.to_limit]
        shown = ["" if n is None else f"{n:,.1f}" for n in numbers]
        table.add_row(row.name, f"{row.seconds:.3f}", *shown, row.note)
    return table


def measure_vllm(shape: str, folder: Path) -> list[Row]:
    """Time rollouts in vLLM, in a process of its own, which leaves the GPU's memory free."""
    path = folder / "vllm.json"
    command = [sys.executable, "-m", "benchmarks.vllm_speed", "--shape", shape]
    subprocess.run([*command, "--json", str(path)], check=True, stdout=subprocess.DEVNULL)
    return [
        Row(
            f"rollout, vLLM, {name}",
            row["seconds"],
            row["ms per decode step"],
            row["tokens/s, prompts included"],
            to_limit=row["ratio to the limit"],
            note=f"first token after {row['ms to the first token']:.0f} ms",
        )
        for name, row in json.loads(path.read_text())["rollouts"].items()
    ]


def sections(
    oracle: Oracle, table: ProbeTable, report: Report, work: Work, steps: int
) -> Iterator[Row]:
    """Measure one after the other."""
    texts = 1000 if torch.cuda.is_available() else 100
    yield measure_extraction(oracle, report, texts)
    yield measure_warm_start(oracle, table, report, work)
    ours, default = oracle, DefaultRollouts(oracle)
    yield measure_rollouts("rollout, ours", ours, oracle, table, report, work, 3)
    yield measure_rollouts("rollout, TRL's default path", default, oracle, table, report, work, 1)
    if report.shape != "mini":
        many = work._replace(questions=MANY_PROMPTS, samples=1, new_tokens=MANY_TOKENS)
        yield measure_rollouts("many prompts, ours", ours, oracle, table, report, many, 1)
    yield measure_steps(oracle, table, True, steps, work, report)
    yield measure_steps(oracle, table, False, max(1, steps // 2), work, report)


def main() -> None:
    parser = argparse.ArgumentParser(description="One GRPO step beside the limits of its machine.")
    parser.add_argument("--shape", choices=("mini", *SHAPES), required=True)
    parser.add_argument("--json", type=Path, help="write the numbers here, too")
    parser.add_argument("--profile", type=Path, help="write a profile of one step here")
    parser.add_argument("--steps", type=int, default=3, help="whole steps that are timed")
    parser.add_argument("--layers", type=int, default=1, help="layers that a question reads")
    options = parser.parse_args()
    avoid_cudnn_attention()  # As a run does.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    report = Report(options.shape, name, *measure_limits(device))
    if options.shape.startswith("qwen3") and importlib.util.find_spec("vllm"):
        with tempfile.TemporaryDirectory() as folder:
            report.rows += measure_vllm(options.shape, Path(folder))
    oracle = make_oracle(options.shape, device)
    work = Work.of(options.shape)
    count = 64 if options.shape == "mini" else MANY_PROMPTS
    table = make_table(options.shape, oracle, count, options.layers)
    for row in sections(oracle, table, report, work, options.steps):
        report.rows.append(row)
        Console(stderr=True).print(f"{row.name}: {row.seconds:.3f} s")
        if options.json:
            options.json.write_text(json.dumps(asdict(report), indent=2) + "\n")
    Console(width=170).print(render(report))
    if options.profile:
        write_profile(oracle, table, work, options.profile)


if __name__ == "__main__":
    main()
