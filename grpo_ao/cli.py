"""The command lines: ``python train.py``, ``python evaluate.py`` and ``grpo-ao``."""

import asyncio
import dataclasses
import os
import sys
import warnings
from pathlib import Path
from typing import Any, cast, get_args

import tyro
from rich.console import Console

from grpo_ao.config import (
    Preset,
    TrainConfig,
    load_config_file,
    make_defaults,
)
from grpo_ao.errors import UserError
from grpo_ao.judges.factory import JudgeFlags
from grpo_ao.probes.generate import QuestionsConfig, generate_questions


def train_main(arguments: list[str] | None = None) -> None:
    """Train a calibrated activation oracle; what ``python train.py`` runs."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        config = parse_train_config(arguments)
        _quiet()
        from grpo_ao.run import run

        run(config)
    except UserError as error:
        # Every process of `accelerate launch` finds the same error; one of them says it.
        said = os.environ.get("RANK", "0") == "0"
        raise SystemExit(f"error: {error}" if said else 1) from error


def evaluate_main(arguments: list[str] | None = None) -> None:
    """Evaluate oracles on the benchmarks; what ``python evaluate.py`` runs."""
    from grpo_ao.config import parse_eval_config

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        preset, arguments = _take(arguments, "--preset")
        config = parse_eval_config(preset, arguments)
        _quiet()
        from grpo_ao.evaluate import evaluate

        evaluate(config)
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


def _quiet() -> None:
    """Keep the libraries' notes to themselves: errors and our own alerts are to be seen."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def parse_train_config(arguments: list[str]) -> TrainConfig:
    """Read ``--preset`` and ``--config`` first: they make the defaults of all other flags."""
    preset, arguments = _take(arguments, "--preset")
    path, arguments = _take(arguments, "--config")
    if preset is not None and preset not in get_args(Preset):
        raise UserError(f"--preset {preset} is unknown: choose from {', '.join(get_args(Preset))}.")
    defaults = make_defaults(cast("Preset | None", preset), Path(path) if path else None)
    description = (
        "Train a calibrated activation oracle with GRPO. Before all other flags: --preset "
        f"{{{','.join(get_args(Preset))}}} and --config FILE (YAML) set the defaults shown here."
    )
    visible = tyro.conf.SuppressFixed[tyro.conf.OmitArgPrefixes[TrainConfig]]
    config = tyro.cli(
        visible,
        # Fields of the sections would be flags, and clash with ours of the same name.
        default=dataclasses.replace(defaults, trl={}, vllm={}),
        args=arguments,
        prog="train.py",
        description=description,
        use_underscores=True,
    )
    return dataclasses.replace(config, trl=defaults.trl, vllm=defaults.vllm)


def _take(arguments: list[str], flag: str) -> tuple[str | None, list[str]]:
    """Take ``flag VALUE`` or ``flag=VALUE`` out of the arguments."""
    for index, argument in enumerate(arguments):
        if argument == flag:
            if index + 1 == len(arguments):
                raise UserError(f"{flag} needs a value.")
            return arguments[index + 1], arguments[:index] + arguments[index + 2 :]
        if argument.startswith(flag + "="):
            return argument[len(flag) + 1 :], arguments[:index] + arguments[index + 1 :]
    return None, arguments


@dataclasses.dataclass(frozen=True)
class Ask:
    """Ask an oracle a question about the activations of a text."""

    text: str
    """Text that the subject reads."""
    question: str
    """Question about it; the oracle sees the activations only."""
    model: str | None = None
    """Base model (default: the mini model)."""
    oracle_lora_path: str | None = None
    """Adapter (default: the mini oracle)."""
    layer: int | None = None
    """Decoder layer that is read (default: at half depth)."""
    positions: str = "last:20"
    """Token positions that are read: last:K, window:K@OFFSET, token@OFFSET or all."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""


@dataclasses.dataclass(frozen=True)
class JudgeCheck(JudgeFlags):
    """Compare a judge's grades with ours, and see what they cost, before a run relies on it."""

    model: str | None = None
    """Base model of the judge `local` (default: the mini model)."""
    reference: Path | None = None
    """Graded items of your own, JSONL with text, question, answer, kind, grade (default: ours)."""


@dataclasses.dataclass(frozen=True)
class Report:
    """Write a run's report, report.html, into its folder."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of a run, finished or not."""


@dataclasses.dataclass(frozen=True)
class Push:
    """Upload the adapter of a finished run to the Hugging Face Hub, with a model card."""

    run_dir: tyro.conf.Positional[Path]
    """Folder of a finished run."""
    repository: tyro.conf.Positional[str]
    """Hub repository, USER/NAME; it is made if it is not there."""


@dataclasses.dataclass(frozen=True)
class VllmServe:
    """Serve rollouts in vLLM, on this GPU, to a training process elsewhere."""

    model: str
    """Base model of the oracle that is trained."""
    oracle_lora_path: str
    """Adapter that training starts from; only its ao_config.json is read."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for other machines. There is no password."""
    port: int = 8000
    """Port to listen on."""
    max_model_len: int = 1024
    """Longest prompt and completion together, in tokens."""
    gpu_memory: float = 0.7
    """Share of the GPU for vLLM; the rest must hold a copy of the weights that are merged into."""
    config: Path | None = None
    """YAML file with further arguments of vLLM's LLM in its section `vllm:`."""


def main(arguments: list[str] | None = None) -> None:
    """Run ``grpo-ao``."""
    subcommands = tyro.extras.SubcommandApp()
    subcommands.command(name="ask")(ask)
    subcommands.command(name="judge-check")(judge_check)
    subcommands.command(name="questions")(questions)
    subcommands.command(name="report")(report)
    subcommands.command(name="push")(push)
    subcommands.command(name="vllm-serve")(vllm_serve)
    try:
        subcommands.cli(args=arguments, prog="grpo-ao")
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


def ask(request: tyro.conf.OmitArgPrefixes[Ask]) -> None:
    """Ask an oracle a question about the activations of a text."""
    from grpo_ao.oracle.oracle import Oracle

    mini = make_defaults("mini", None)
    if (request.model is None) != (request.oracle_lora_path is None):
        raise UserError("give both --model and --oracle_lora_path, or neither for the mini oracle.")
    oracle = Oracle.from_pretrained(
        request.model or mini.model, request.oracle_lora_path or mini.oracle_lora_path
    )
    (answer,) = oracle.ask(
        [request.text],
        [request.question],
        layer=request.layer,
        positions=request.positions,
        temperature=request.temperature,
    )
    if answer.parsed:
        print(f"{answer.answer}   (confidence {answer.confidence})")
    else:
        print(f"{answer.completion}   (no well-formed confidence)")


def judge_check(request: tyro.conf.OmitArgPrefixes[JudgeCheck]) -> None:
    """Compare a judge's grades with ours, and see what they cost, before a run relies on it."""
    from grpo_ao.judges.agreement import (
        agreement_table,
        check_agreement,
        cost_line,
        fooled_line,
        load_items,
    )
    from grpo_ao.judges.factory import make_judge
    from grpo_ao.judges.local import LocalJudge

    items = load_items(request.reference)
    local = None
    if request.judge == "local":
        local = LocalJudge.from_pretrained(request.model or make_defaults("mini", None).model)
    judge = make_judge(request, local)
    asyncio.run(judge.check())
    report = asyncio.run(check_agreement(judge, items))
    console = Console()
    console.print(agreement_table(report, f"judge: {request.judge}"))
    for line in (fooled_line(report), cost_line(report), judge.identity):
        console.print(line, highlight=False, soft_wrap=True)


def questions(config: tyro.conf.OmitArgPrefixes[QuestionsConfig]) -> None:
    """Make a question set from texts, with a language model behind an endpoint."""
    generate_questions(config, Console())


def questions_main() -> None:
    """Make a question set; what ``python fetch_wildchat_questions.py`` runs."""
    main(["questions", *sys.argv[1:]])


def report(request: tyro.conf.OmitArgPrefixes[Report]) -> None:
    """Write a run's report, report.html, into its folder."""
    from grpo_ao.report.headline import headline_of
    from grpo_ao.report.page import write_report
    from grpo_ao.report.run_record import read_run

    record = read_run(request.run_dir)
    print(write_report(record, headline_of(record)))


def push(request: tyro.conf.OmitArgPrefixes[Push]) -> None:
    """Upload the adapter of a finished run to the Hugging Face Hub, with a model card."""
    from grpo_ao.report.card import adapter_of, check_push, push_adapter, write_card
    from grpo_ao.report.headline import headline_of
    from grpo_ao.report.run_record import read_run

    record = read_run(request.run_dir)
    adapter_of(request.run_dir)
    check_push(request.repository)
    write_card(record, headline_of(record), request.repository)
    print(push_adapter(request.run_dir, request.repository))


def vllm_serve(request: tyro.conf.OmitArgPrefixes[VllmServe]) -> None:
    """Serve rollouts in vLLM, on this GPU, to a training process elsewhere."""
    from grpo_ao.oracle.vllm.server import start_server

    server = start_server(
        request.model,
        request.oracle_lora_path,
        (request.host, request.port),
        request.gpu_memory,
        request.max_model_len,
        _vllm_section(request.config) if request.config else {},
    )
    print(f"serving rollouts of {request.model} at http://{request.host}:{request.port}")
    server.serve_forever()


def _vllm_section(path: Path) -> dict[str, Any]:
    values = load_config_file(path)
    if values.keys() != {"vllm"}:
        raise UserError(f"{path} must hold a section `vllm:` and nothing else.")
    return values["vllm"]
