"""The command ``grpo-ao``: its parsing; what it does is imported when it is known what is asked."""

import asyncio
import contextlib
import dataclasses
import functools
import gc
import os
import select
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, metadata
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from grpo_ao import __version__
from grpo_ao.config import (
    EVAL_PRESETS,
    PRESETS,
    AskConfig,
    Config,
    EvalConfig,
    TrainConfig,
    combined,
    load_config_file,
    make_defaults,
    recorded_config,
)
from grpo_ao.errors import UserError
from grpo_ao.files import holds_file, holds_run
from grpo_ao.interruption import Interrupted, interruptible
from grpo_ao.judges.flags import PRICES, JudgeFlags
from grpo_ao.numbers import check_numbers
from grpo_ao.probes.questions_config import QuestionsConfig
from grpo_ao.terminal import take_any_text

if TYPE_CHECKING:
    from grpo_ao.training.make_oracle_config import MakeOracleConfig

Request = TypeVar("Request")
# The command that each script of the repository is.
_SCRIPTS = {
    "train.py": "train",
    "evaluate.py": "evaluate",
    "fetch_wildchat_questions.py": "questions",
}

_OUT_OF_MEMORY = (
    "the GPU's memory is full: see with nvidia-smi that no other process holds it, or ask for less "
    "of it, as far as this command has these settings, by a lower --questions_per_step or "
    "--batch_size, by a lower per_device_train_batch_size with more gradient_accumulation_steps in "
    "the section trl:, or by --load_in_4bit."
)


def main(arguments: list[str] | None = None) -> None:
    """Run ``grpo-ao COMMAND ...``."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("--help", "-h"):
        print(_overview())
        return
    if command == "--version":
        print(__version__)
        return
    if command not in COMMANDS:
        raise SystemExit(
            f"error: there is no command {command}: choose from {', '.join(COMMANDS)}."
        )
    take_any_text()
    warnings.formatwarning = _in_one_line
    with _errors_told():
        COMMANDS[command](rest)
        sys.stdout.flush()


def _in_one_line(message: Warning | str, *_: object) -> str:
    return f"warning: {message}\n"


def _overview() -> str:
    lines = [f"  {name:12} {(run.__doc__ or '').splitlines()[0]}" for name, run in COMMANDS.items()]
    return "\n".join(["usage: grpo-ao COMMAND [--help] ...", "", *lines])


@contextlib.contextmanager
def _errors_told() -> Iterator[None]:
    """Tell in one sentence what the user must mend; a fault of the program keeps its traceback."""
    said = _is_main_process()
    try:
        with interruptible():
            yield
    except Interrupted as stop:
        if said:
            print(f"{stop}. Go on with: {_command_again()}", file=sys.stderr)
        raise SystemExit(128 + stop.number) from None
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None
    except UserError as error:
        # A file's name may hold a line break.
        raise SystemExit(f"error: {' '.join(str(error).split())}" if said else 1) from error
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise SystemExit(f"error: {_OUT_OF_MEMORY}" if said else 1) from error
        error.add_note(
            "This is a fault of grpo_ao, not of yours: please report it with the lines above at "
            f"{_issues()}. A run or an evaluation goes on where it was: the same command, with "
            "--resume for a run."
        )
        raise


def _is_main_process() -> bool:
    """Say whether this one, of those of `accelerate launch`, says what all of them find."""
    return os.environ.get("RANK", "0") == "0"


def _reader_is_gone() -> bool:
    """Say whether it is what is printed that nobody reads any more, and not another pipe."""
    printed = select.poll()
    printed.register(sys.stdout)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in printed.poll(0))


def _command_again() -> str:
    """Return the command that goes on where this one was stopped."""
    program, *arguments = sys.argv
    name = Path(program).name
    own = [_SCRIPTS[name]] if name in _SCRIPTS else []
    command, *flags = [*own, *arguments] or [""]
    program = f"python {shlex.quote(program)}" if name.endswith(".py") else name
    if "--resume" not in arguments and _is_begun(command, flags):
        arguments = [*arguments, "--resume"]
    return f"{program} {shlex.join(arguments)}"


def _is_begun(command: str, flags: list[str]) -> bool:
    """Say whether a command that knows --resume came as far as having something to resume."""
    match command:
        case "train":
            return holds_run(parse_train_config(flags).output_dir)
        case "make-oracle":
            return holds_run(_make_oracle_config(flags).output_dir)
        case "questions":
            output = _parse(QuestionsConfig, "questions", flags).output
            return Path(f"{output}.log.jsonl").exists()
    return False


def _issues() -> str:
    try:
        urls = metadata("grpo-ao").get_all("Project-URL") or []
    except PackageNotFoundError:  # run from a clone that is not installed
        urls = []
    found = (url.partition(", ")[2] for url in urls if url.startswith("Issues"))
    return next(found, "the project's issue tracker")


@contextlib.contextmanager
def _importing(*needless: str) -> Iterator[None]:
    """Import what a command needs, with the libraries' notes turned off: errors are to be seen.

    ``needless`` packages, which libraries import where they are installed, pass for absent. No
    garbage is collected meanwhile, nor is it looked for among the modules later, at exit above all.
    """
    absent: Any = dict.fromkeys(set(needless) - sys.modules.keys())
    sys.modules.update(absent)
    gc.disable()
    try:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        yield
    finally:
        gc.freeze()
        gc.enable()
        for name in absent:
            del sys.modules[name]


def _parse(
    kind: type[Request], command: str, arguments: list[str], default: Request | None = None
) -> Request:
    description = " ".join((COMMANDS[command].__doc__ or "").split())
    found: Any = tyro.cli(  # typed by its default, which may be None
        tyro.conf.OmitArgPrefixes[kind],
        default=default,
        args=arguments,
        prog=f"grpo-ao {command}",
        description=description,
        use_underscores=True,
    )
    return found


def _flagged(command: Callable[..., None]) -> Callable[[list[str]], None]:
    """Let a command have its function's parameters as flags, explained by its docstring."""

    @functools.wraps(command)
    def run(arguments: list[str]) -> None:
        prog = f"grpo-ao {command.__name__.replace('_', '-')}"
        tyro.cli(command, args=arguments, prog=prog, use_underscores=True)

    return run


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


def parse_train_config(
    arguments: list[str],
    prog: str = "grpo-ao train",
    what: str = "Train a calibrated activation oracle with GRPO.",
) -> TrainConfig:
    """Read the flags of a training run; ``--resume FOLDER`` has those of its start."""
    folder, arguments = _take_run(arguments)
    if folder is None:
        return _parse_config(TrainConfig, PRESETS, arguments, prog, what)
    if found := [flag for flag in ("--preset", "--config") if _take(arguments, flag)[0]]:
        raise UserError(f"--resume {folder} has the settings of its run.json: drop {found[0]}.")
    return _parse_flags(recorded_config(folder), arguments, prog, what)


def _take_run(arguments: list[str]) -> tuple[Path | None, list[str]]:
    """Take the folder behind ``--resume``, which may also stand alone."""
    after = dict(pairwise([*arguments, "-"])).get("--resume", "-")
    alone = after.startswith("-") and not any(a.startswith("--resume=") for a in arguments)
    folder, arguments = (None, arguments) if alone else _take(arguments, "--resume")
    return None if folder is None else Path(folder), arguments


def parse_eval_config(arguments: list[str]) -> EvalConfig:
    """Read the flags of an evaluation."""
    what = "Evaluate calibrated activation oracles on nine benchmarks."
    return _parse_config(EvalConfig, EVAL_PRESETS, arguments, "grpo-ao evaluate", what)


def _parse_config(
    kind: type[Config],
    presets: Mapping[str, dict[str, Any]],
    arguments: list[str],
    prog: str,
    what: str,
) -> Config:
    """Read ``--preset`` and ``--config`` first: they make the defaults of all other flags."""
    preset, arguments = _take(arguments, "--preset")
    path, arguments = _take(arguments, "--config")
    defaults = combined(kind, presets, preset, Path(path) if path else None)
    before = f"Before all other flags: --preset {{{','.join(presets)}}} and --config FILE (YAML)"
    return _parse_flags(defaults, arguments, prog, f"{what} {before} set the defaults shown here.")


def _parse_flags(defaults: Config, arguments: list[str], prog: str, description: str) -> Config:
    sections = {name: value for name, value in vars(defaults).items() if isinstance(value, dict)}
    config = tyro.cli(
        tyro.conf.SuppressFixed[tyro.conf.OmitArgPrefixes[type(defaults)]],
        # Fields of the sections would be flags, and clash with ours of the same name.
        default=dataclasses.replace(defaults, **{name: {} for name in sections}),
        args=arguments,
        prog=prog,
        description=description,
        use_underscores=True,
    )
    return dataclasses.replace(config, **sections)


def train(arguments: list[str]) -> None:
    """Train a calibrated activation oracle with GRPO."""
    config = parse_train_config(arguments)
    with _importing():
        from grpo_ao.run import run

    run(config)


def budget(arguments: list[str]) -> None:
    """Show what a run asks of machine, disk and judge, before it is started.

    Takes the flags of ``train``, and --step_seconds, --completions_per_second and
    --fine_tune_seconds, measured on the card at hand, from which hours are derived.
    """
    measured: list[float] = []
    for flag in ("--step_seconds", "--completions_per_second", "--fine_tune_seconds"):
        value, arguments = _take(arguments, flag)
        if value is not None:
            measured.append(_positive(flag, value))
    if len(measured) not in (0, 3):
        raise UserError(
            "give all of --step_seconds, --completions_per_second and --fine_tune_seconds, or none."
        )
    what = " ".join((budget.__doc__ or "").split())
    config = parse_train_config(arguments, "grpo-ao budget", what)
    with _importing():
        from grpo_ao.budget import Times, show_budget

    show_budget(config, Times(*measured) if measured else None)


def _check_port(port: int) -> None:
    if not 1 <= port <= 65535:
        raise UserError(f"--port must lie between 1 and 65535, got {port}.")


def _positive(flag: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UserError(f"{flag} must be a number above 0, got {value}.")
    return number


def evaluate(arguments: list[str]) -> None:
    """Evaluate oracles on the benchmarks of the Activation Oracles paper."""
    config = parse_eval_config(arguments)
    with _importing():
        from grpo_ao.evaluate import evaluate
        from grpo_ao.tracking import check_destinations

    if (notice := check_destinations(config.report_to)) is not None:
        print(f"warning: {notice}", file=sys.stderr)

    evaluate(config)


def ask(arguments: list[str]) -> None:
    """Ask an oracle a question about the activations of a text."""
    request = _parse(AskConfig, "ask", arguments)
    # For losses of object detection, and for another way of waiting for the Hub.
    with _importing("scipy", "trio"):
        from grpo_ao.query import ask

    ask(request)


def questions(arguments: list[str]) -> None:
    """Make a question set from texts, with a language model behind an endpoint."""
    config = _parse(QuestionsConfig, "questions", arguments)
    from grpo_ao.probes.generate import generate_questions
    from grpo_ao.terminal import terminal

    generate_questions(config, terminal(stderr=False))


@dataclasses.dataclass(frozen=True)
class JudgeCheck(JudgeFlags):
    """A judge, and graded items to try it on."""

    model: str | None = None
    """Base model of the judge `local` (default: the mini model)."""
    reference: Path | None = None
    """Graded items of your own, JSONL with text, question, answer, kind, grade (default: ours)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and self.judge != "local":
            raise UserError(
                f"--model is the base of the judge `local`, and --judge is {self.judge}: an "
                "endpoint's model is named by --judge_model."
            )
        check_numbers(self, may_be_zero=PRICES)


def judge_check(arguments: list[str]) -> None:
    """Compare a judge's grades with ours, and see what they cost, before a run relies on it."""
    request = _parse(JudgeCheck, "judge-check", arguments)
    from grpo_ao.judges.agreement import (
        agreement_table,
        check_agreement,
        cost_line,
        fooled_line,
        load_graded_items,
    )
    from grpo_ao.judges.factory import make_judge
    from grpo_ao.judges.local import LocalJudge
    from grpo_ao.terminal import terminal

    items = load_graded_items(request.reference)
    local = None
    if request.judge == "local":
        local = LocalJudge.from_pretrained(request.model or make_defaults("mini").model)
    judge = make_judge(request, local)
    asyncio.run(judge.check())
    report = asyncio.run(check_agreement(judge, items))
    console = terminal(stderr=False)
    console.print(agreement_table(report, f"judge: {request.judge}"))
    for line in (fooled_line(report), cost_line(report), judge.identity):
        console.print(line, highlight=False, soft_wrap=True)


@_flagged
def report(run_dir: tyro.conf.Positional[Path]) -> None:
    """Write the report of a run or an evaluation, report.html, into its folder.

    Args:
        run_dir: Folder of a run, finished or not, or of an evaluation.
    """
    from grpo_ao.report.headline import headline_of
    from grpo_ao.report.page import write_report
    from grpo_ao.report.run_record import read_run
    from grpo_ao.report.tables_page import write_evaluation

    if holds_file(run_dir, "rows.jsonl"):  # which an evaluation has
        print(write_evaluation(run_dir))
        return
    record = read_run(run_dir)
    print(write_report(record, headline_of(record)))


@_flagged
def compare(folders: tyro.conf.Positional[tuple[Path, ...]], html: Path | None = None) -> None:
    """Compare runs and evaluations, paired on the questions that all were asked.

    Args:
        folders: Folders of runs and of evaluations; the first is what the others are compared with.
        html: File for a page of the tables, which are printed otherwise.
    """
    from grpo_ao.report.compare import answers_of, comparison, differing_in_seed, paired
    from grpo_ao.report.tables_page import Part, write_tables

    answers = paired(answers_of(folders))
    tables = comparison(answers, differing_in_seed(folders, answers))
    note = f"{len(next(iter(answers.values())))} questions, 95 % intervals by bootstrap over texts."
    if html is not None:
        print(write_tables(html, "Comparison", note, [Part("", tables)]))
        return
    print(note, *(f"{table.title}\n\n{table.markdown()}" for table in tables), sep="\n\n")


@_flagged
def watch(run_dir: tyro.conf.Positional[Path], port: int = 8080) -> None:
    """Serve a run's report on this machine, made anew as the run goes on, until it is stopped.

    Args:
        run_dir: Folder of a run, finished or not.
        port: Port of 127.0.0.1 to listen on.
    """
    _check_port(port)
    from grpo_ao.report.live import ReportServer

    server = ReportServer(run_dir, port)
    print(f"the report of {run_dir}: http://127.0.0.1:{port}   (Ctrl-C ends this)", flush=True)
    with contextlib.suppress(Interrupted):
        server.serve_forever()


@_flagged
def push(
    run_dir: tyro.conf.Positional[Path],
    repository: tyro.conf.Positional[str],
    push_public: bool = False,
) -> None:
    """Upload the adapter of a finished run to the Hugging Face Hub, with a model card.

    Args:
        run_dir: Folder of a finished run.
        repository: Hub repository, USER/NAME; it is made if it is not there.
        push_public: Make it public where it is not there yet; else it is private.
    """
    from grpo_ao.files import adapter_of
    from grpo_ao.report.card import check_push, push_adapter, write_card
    from grpo_ao.report.headline import headline_of
    from grpo_ao.report.run_record import read_run

    record = read_run(run_dir)
    adapter_of(run_dir)
    # Nothing is made on the Hub for a run of which no card can be written.
    write_card(record, headline_of(record), repository)
    check_push(repository, push_public)
    print(push_adapter(run_dir, repository, push_public))


def make_oracle(arguments: list[str]) -> None:
    """Make an oracle for a chat model: the supervised stage, before training.

    --preset smollm2-135m sets what made the oracle that ships.
    """
    config = _make_oracle_config(arguments)
    with _importing():
        from grpo_ao.training.make_oracle import make_oracle as make

    adapter = make(config)
    if _is_main_process():
        print(adapter)


def _make_oracle_config(arguments: list[str]) -> "MakeOracleConfig":
    from grpo_ao.training.make_oracle_config import MakeOracleConfig, make_oracle_preset

    preset, arguments = _take(arguments, "--preset")
    default = None if preset is None else make_oracle_preset(preset)
    return _parse(MakeOracleConfig, "make-oracle", arguments, default)


@_flagged
def vllm_serve(
    model: str,
    oracle_lora_path: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_model_len: int = 1024,
    gpu_memory: float = 0.7,
    config: Path | None = None,
) -> None:
    """Serve rollouts in vLLM, on this GPU, to a training process elsewhere.

    Args:
        model: Base model of the oracle that is trained.
        oracle_lora_path: Adapter that training starts from; only its ao_config.json is read.
        host: Address to listen on; 0.0.0.0 for other machines. There is no password.
        port: Port to listen on.
        max_model_len: Longest prompt and completion together, in tokens.
        gpu_memory: Share of the GPU for vLLM; the rest must hold a copy of the weights merged into.
        config: YAML file with further arguments of vLLM's LLM in its section `vllm:`.
    """
    _check_port(port)
    if max_model_len < 1:
        raise UserError(f"--max_model_len must be at least 1, got {max_model_len}.")
    if not 0 < gpu_memory < 1:
        raise UserError(f"--gpu_memory must lie between 0 and 1, got {gpu_memory}.")
    from grpo_ao.oracle.vllm.server import start_server

    extra = _vllm_section(config) if config else {}
    address = (host, port)
    server = start_server(model, oracle_lora_path, address, gpu_memory, max_model_len, extra)
    print(f"serving rollouts of {model} at http://{host}:{port}", flush=True)
    server.serve_forever()


def _vllm_section(path: Path) -> dict[str, Any]:
    values = load_config_file(path, TrainConfig)
    if values.keys() != {"vllm"}:
        raise UserError(f"{path} must hold a section `vllm:` and nothing else.")
    return values["vllm"]


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "evaluate": evaluate,
    "budget": budget,
    "ask": ask,
    "make-oracle": make_oracle,
    "questions": questions,
    "judge-check": judge_check,
    "report": report,
    "watch": watch,
    "compare": compare,
    "push": push,
    "vllm-serve": vllm_serve,
}
