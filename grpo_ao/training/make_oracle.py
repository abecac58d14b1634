"""Make an activation oracle for a chat model by supervised training (arXiv 2512.15674).

Each example is a text, what is read of the subject over it (a layer at 25, 50 or 75 % depth, or
several together, at one position or a run), a question and its answer. What differs from the
paper's program: the subject is read in the same step, with the adapter off, so that nothing is
stored; examples are drawn by step number from arrays that were tokenised once, in batches of like
length; a share of the texts is kept unseen for the calibration that follows.
"""

import dataclasses
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from rich.console import Console
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from grpo_ao.errors import UserError
from grpo_ao.files import (
    RunFolder,
    append_jsonl,
    atomic_write_text,
    keep_rows,
    read_faults,
    text_digest,
    written_whole,
)
from grpo_ao.interruption import Interrupted, held_back
from grpo_ao.oracle.activations import content_start, evaluating, subject_token_ids
from grpo_ao.oracle.gguf import local_base
from grpo_ao.oracle.layers import num_decoder_layers
from grpo_ao.oracle.loading import (
    check_fits_device,
    default_dtype,
    load_base,
    load_config,
    load_tokenizer,
    meta_model,
)
from grpo_ao.oracle.memory import if_memory_suffices
from grpo_ao.oracle.merging import ADAPTER
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.oracle.subject import check_subject, with_subject
from grpo_ao.oracle.turn import SAMPLE, template_digest, writes_the_date
from grpo_ao.probe import split_of
from grpo_ao.probes.benchmarks import load_items
from grpo_ao.probes.items import Item
from grpo_ao.probes.names import BENCHMARKS
from grpo_ao.processes import Processes
from grpo_ao.terminal import headed, terminal
from grpo_ao.tracking import PhaseProgress, check_destinations, make_reporter
from grpo_ao.training.checkpoints import make_trainable
from grpo_ao.training.example_batches import Batch, Curriculum
from grpo_ao.training.examples import (
    benchmark_examples,
    is_taught,
    labelled_examples,
    latentqa_examples,
    mention_examples,
    plain_texts,
    question_set_examples,
)
from grpo_ao.training.make_oracle_config import MakeOracleConfig
from grpo_ao.training.passes import FastPasses, avoid_cudnn_attention, without_copies
from grpo_ao.training.supervised import (
    accuracy,
    check_head,
    compile_layers,
    divided,
    learn,
    new_adapter,
)
from grpo_ao.training.untaught import untaught_examples, write_question_set

_LOG_STEPS = 20
_CHECKPOINT = "checkpoint.pt"
QUESTIONS = "questions.jsonl"
# Settings that may change on resuming: no weight depends on them.
_CHANGEABLE = ("resume", "output_dir", "save_steps", "eval_steps", "report_to")


def make_oracle(config: MakeOracleConfig) -> Path:
    """Train an oracle as ``config`` says; return the folder of its adapter.

    Everything that can be refused without the model's weights is refused before they are loaded.
    """
    processes = Processes()
    console = terminal(quiet=not processes.is_main)
    avoid_cudnn_attention()
    check_destinations(config.report_to)
    with processes.main_first():
        folder = RunFolder(config.output_dir, config.resume) if processes.is_main else None
        config = dataclasses.replace(config, model=str(local_base(config.model)))
        tokenizer = load_tokenizer(config.model)
        model_config = load_config(config.model)
        check_fits_device(config.model, meta_model(model_config), processes.device)
        if config.subject_lora is not None:
            check_subject(config.model, config.subject_lora)
        if note := template_note(tokenizer):
            console.print(headed("warning:", note))
        layers = OracleSpec().layers(num_decoder_layers(model_config), config.layer_combination)
        spec = OracleSpec(act_layer_combinations=layers)
        with console.status("reading and tokenising the examples"):
            sources = Sources.load(config)
            lessons = curriculum(config, tokenizer, spec, sources.taught, sources.plain)
            sources.check_heldout()
            exam = curriculum(config, tokenizer, spec, sources.heldout, [])
        console.print(sources.told(lessons.left_out))
        if folder is not None:
            data = {"examples": sources.digest(), "chat template": template_digest(tokenizer)}
            folder.write_record(dataclasses.asdict(config), data, _CHANGEABLE)
            write_question_set(folder.path / QUESTIONS, sources.untaught)
    return Making(config, processes, console, tokenizer, spec, lessons, exam).run()


def curriculum(
    config: MakeOracleConfig,
    tokenizer: PreTrainedTokenizerBase,
    spec: OracleSpec,
    examples: Sequence[Item],
    plain: Sequence[str],
) -> Curriculum:
    """Tokenise examples as the run's settings say."""
    return Curriculum(
        tokenizer,
        spec,
        examples,
        plain,
        config.answer_format,
        config.context_share,
        config.max_tokens,
        config.seed,
    )


def template_note(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Say what the chat template puts in front of a user's text, if it is more than a turn's mark.

    It is read by the model and never injected; where it holds a date, so does all that is read.
    """
    ids = subject_token_ids(tokenizer, SAMPLE)
    before = str(tokenizer.decode(ids[: content_start(tokenizer)]))
    dated = writes_the_date(tokenizer)
    if len(before.split()) <= 2 and not dated:
        return None
    return (
        f"the chat template writes {before!r} in front of every text. Positions such as last:20 "
        "read the text and the end of its turn alone, never this"
        + ("; but it holds today's date, on which all activations depend." if dated else ".")
    )


@dataclasses.dataclass(frozen=True)
class Sources:
    """What is taught, what is measured on other texts, and what is left to the calibration."""

    taught: list[Item]
    plain: list[str]
    heldout: list[Item]
    untaught: list[Item]

    @classmethod
    def load(cls, config: MakeOracleConfig) -> "Sources":
        """Read every source; UserError for one that is missing, empty or unreadable."""
        plain = plain_texts(config.plain, config.plain_texts) if config.plain else []
        examples = [
            *(e for s in config.questions for e in question_set_examples(s, config.examples // 4)),
            *(e for path in config.labelled for e in labelled_examples(path)),
            *(latentqa_examples(config.latentqa) if config.latentqa else ()),
            *mention_examples(plain),
        ]
        benchmarks = list(
            benchmark_examples(config.benchmarks, config.data_dir, config.questions_per_context)
        )
        taught = [e for e in (*benchmarks, *examples) if is_taught(e.text, config.kept_share)]
        heldout = [e for e in examples if split_of(e.text) == "heldout"]
        heldout += _benchmark_items(config) if config.benchmarks else []
        if not taught and not plain:
            raise UserError("the sources hold no example with a text of the training split.")
        taught_plain = [text for text in plain if is_taught(text, config.kept_share)]
        return cls(taught, taught_plain, heldout, list(untaught_examples(config, plain)))

    def check_heldout(self) -> None:
        """Raise UserError unless there is a question to measure the oracle by."""
        if not self.heldout:
            raise UserError(
                "the sources hold no question with a text of the held-out split, by which the "
                "oracle is measured: name --benchmarks or --questions as well, or give more texts."
            )

    def told(self, left_out: int) -> str:
        """Say in a line what there is."""
        counts = Counter(example.family for example in self.taught)
        sources = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        return (
            f"{len(self.taught):,} questions ({sources}) and {len(self.plain):,} plain texts to "
            f"teach; {left_out:,} texts are left out (too long, or with control tokens). Not "
            f"taught, for the calibration: {len(self.untaught):,} questions ({QUESTIONS})."
        )

    def digest(self) -> str:
        """Hash all that is taught."""
        taught = ((e.family, e.text, e.question, str(e.target)) for e in self.taught)
        return text_digest([*map("\x1f".join, taught), *self.plain])


def _benchmark_items(config: MakeOracleConfig) -> list[Item]:
    return load_items("paper", BENCHMARKS, 2 * (config.eval_examples // 2), config.data_dir)


class Making:
    """The run itself: the oracle, its optimizer, and how far it has come."""

    def __init__(
        self,
        config: MakeOracleConfig,
        processes: Processes,
        console: Console,
        tokenizer: PreTrainedTokenizerBase,
        spec: OracleSpec,
        lessons: Curriculum,
        exam: Curriculum,
    ) -> None:
        self.config, self.processes, self.console = config, processes, console
        self.lessons, self.exam = lessons, exam
        self.folder = config.output_dir
        report_to = config.report_to if processes.is_main else ()
        self.reporter = make_reporter(report_to, self.folder, dataclasses.asdict(config))
        device = processes.device
        set_seed(config.seed)
        base = load_base(config.model, default_dtype(device), device, None)
        self.oracle = Oracle(new_adapter(base, config.lora_rank), tokenizer, spec)
        check_head(self.oracle.model)
        make_trainable(self.oracle)
        self.trained = [p for p in self.oracle.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=config.lr, weight_decay=0.0, fused=device.type == "cuda"
        )
        if config.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
            self.oracle.model.train()
        if config.compile:
            compile_layers(self.oracle.model)
        self.step = self._resumed()
        self.halvings = 0  # of passes, where memory was short

    def run(self) -> Path:
        """Train to the end, measure, and write the adapter with its card."""
        config = self.config
        progress = PhaseProgress(self.console)
        losses, started, first = [], time.perf_counter(), self.step
        fast = without_copies(self.oracle) if config.compile else FastPasses(self.oracle)
        subject = with_subject(self.oracle.model, config.subject_lora)
        phase = progress.phase("teaching the oracle", config.steps)
        with subject, fast, phase as bar, held_back() as come:
            bar.advance(self.step)
            for targets, batches in self._batches():
                losses.append(self._update(targets, batches))
                bar.advance(1)
                last = self.step == config.steps
                if self.step % _LOG_STEPS == 0 or last:
                    row = self._row(losses, time.perf_counter() - started, self.step - first)
                    losses = []
                    if last or self.step % config.eval_steps == 0:
                        row |= self._accuracies()
                    self._log(row)
                stopped: list[int] = self.processes.gathered(come)
                if self.step % config.save_steps == 0 or last or stopped:
                    self._save()
                if stopped:
                    raise Interrupted(stopped[0], f" after step {self.step}, with a checkpoint")
        return self._finish()

    def _rate(self) -> float:
        """Rise over 100 steps, or a twentieth of all, and fall along a cosine to zero."""
        steps = self.config.steps
        warm = min(1.0, (self.step + 1) / max(1, min(100, steps // 20)))
        return self.config.lr * warm * 0.5 * (1 + math.cos(math.pi * self.step / steps))

    def _batches(self) -> Iterator[tuple[int, list[Batch]]]:
        """Yield each step's answer tokens over all processes, and this process's passes.

        The next steps are prepared while one is computed.
        """
        with ThreadPoolExecutor(1) as pool:
            ahead = [pool.submit(self._prepared, self.step + n) for n in range(4)]
            for step in range(self.step, self.config.steps):
                prepared = ahead.pop(0).result()
                ahead.append(pool.submit(self._prepared, step + 4))
                yield prepared

    def _prepared(self, step: int) -> tuple[int, list[Batch]]:
        drawn = self.lessons.batch(step, self.config.batch_size)
        share = np.asarray(self.processes.share(range(self.config.batch_size)))
        passes = list(divided(self.lessons, drawn.take(share), self.config.tokens_per_pass))
        if self.processes.count == 1:
            return sum(len(batch.targets_N) for batch in passes), passes
        return len(self.lessons.lay_out(drawn).targets_N), passes

    def _update(self, targets: int, batches: list[Batch]) -> torch.Tensor:
        for _ in range(self.halvings):
            batches = _halved(batches)
        loss = self._learned(targets, batches)
        self.processes.sum_gradients(self.trained)
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss

    def _learned(self, targets: int, batches: list[Batch]) -> torch.Tensor:
        """Add the gradient of a step, in smaller passes from here on where memory is short."""
        rows = max(len(batch.prompts_BL) for batch in batches)
        loss = if_memory_suffices(lambda: learn(self.oracle, batches, targets))
        if loss is not None:
            return loss
        if rows == 1:
            raise UserError(
                "GPU memory does not suffice for one example: use --gradient_checkpointing, or "
                "lower --max_tokens."
            )
        self.optimizer.zero_grad()  # What is half done must not count.
        self.halvings += 1
        note = f"GPU memory is short: {rows} examples in a pass do not fit, going on with half."
        self.console.print(headed("warning:", note))
        return self._learned(targets, _halved(batches))

    def _row(self, losses: list[torch.Tensor], seconds: float, done: int) -> dict[str, float]:
        means = self.processes.gathered([torch.stack(losses).mean().item()])
        loss = sum(means)
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {self.step}: lower --lr.")
        row = {"step": self.step, "loss": loss, "lr": self._rate(), "seconds": seconds}
        row["examples_per_second"] = done * self.config.batch_size / seconds
        if self.processes.device.type == "cuda":
            row["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return row

    def _accuracies(self) -> dict[str, float]:
        """Measure the share of right answers to held-out questions, by source."""
        drawn = self.exam.every(self.exam.sources, self.config.eval_examples)
        passes = divided(self.exam, drawn, self.config.tokens_per_pass)
        with evaluating(self.oracle.model):
            right = np.array(accuracy(self.oracle, list(passes)))
        found = {
            f"accuracy/{source}": float(right[drawn.source_B == i].mean())
            for i, source in enumerate(self.exam.sources)
        }
        benchmarks = [v for k, v in found.items() if k.partition("/")[2] in BENCHMARKS]
        return found | ({"accuracy/benchmarks": float(np.mean(benchmarks))} if benchmarks else {})

    def _log(self, row: dict[str, float]) -> None:
        if not self.processes.is_main:
            return
        append_jsonl(self.folder / "metrics.jsonl", [row])
        self.reporter.scalars(self.step, {k: v for k, v in row.items() if k != "step"})
        if "accuracy/benchmarks" in row:
            self.console.print(
                f"step {self.step}: loss {row['loss']:.3f}, benchmarks "
                f"{row['accuracy/benchmarks']:.3f}, {row['examples_per_second']:,.0f} examples/s"
            )

    def _save(self) -> None:
        """Write all that the next step depends on, as a whole."""
        if self.processes.is_main:
            state = {
                "step": self.step,
                "adapter": get_peft_model_state_dict(self.oracle.model),
                "optimizer": self.optimizer.state_dict(),
            }
            with written_whole(self.folder / _CHECKPOINT) as path:
                torch.save(state, path)
        self.processes.wait()

    def _resumed(self) -> int:
        """Load the checkpoint, if there is one, and return the number of steps that it has seen."""
        path, step = self.folder / _CHECKPOINT, 0
        if path.exists():
            with read_faults(f"the checkpoint {path}"):
                state = torch.load(path, map_location="cpu", weights_only=True)
                set_peft_model_state_dict(self.oracle.model, state["adapter"])
                self.optimizer.load_state_dict(state["optimizer"])
            step = state["step"]
        if self.processes.is_main:
            keep_rows(self.folder / "metrics.jsonl", lambda row: row["step"] <= step)
        return step

    def _finish(self) -> Path:
        self.oracle.hook.clear()
        adapter = self.folder / "adapter"
        if self.processes.is_main:
            self.oracle.model.peft_config[ADAPTER].base_model_name_or_path = self.config.model
            self.oracle.save_adapter(adapter)
            atomic_write_text(adapter / "README.md", card(self.config, self.folder))
        self.oracle.detach()
        return adapter


def _halved(batches: Sequence[Batch]) -> list[Batch]:
    return [half for batch in batches for half in batch.halves()]


def card(config: MakeOracleConfig, folder: Path) -> str:
    """Write the model card: what the oracle reads, what it was taught, what it gets right."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = {k.partition("/")[2]: v for k, v in rows[-1].items() if k.startswith("accuracy/")}
    table = "\n".join(f"| {name} | {value:.3f} |" for name, value in found.items())
    sources = [*config.benchmarks, *config.questions, *map(str, config.labelled)]
    sources += [str(source) for source in (config.latentqa, config.plain) if source]
    subject = f", read with the adapter {config.subject_lora}" if config.subject_lora else ""
    names = ", ".join(Path(source).name for source in sources)
    return f"""---
library_name: peft
tags: [activation-oracle, interpretability, lora]
---

# An activation oracle of {Path(config.model).name}

A LoRA adapter (rank {config.lora_rank}) with which the model answers questions about its own
activations{subject} (arXiv 2512.15674), made by `grpo-ao make-oracle` on {config.examples:,}
examples of: {names}. Answers are {config.answer_format}. It states no confidence that
means anything before it is calibrated by `grpo-ao train`.

Not taught, so that calibration has fresh questions: {config.kept_share:.0%} of the training texts
(`grpo_ao.probe.kept_for_calibration`), and every text of the validation and held-out splits.

| held-out questions | accuracy |
|---|---|
{table}
"""
