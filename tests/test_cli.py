"""The commands, as a user types them."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ao.cli import COMMANDS, main, parse_train_config
from grpo_ao.config import TrainConfig
from grpo_ao.errors import UserError
from grpo_ao.files import RunFolder

ROOT = Path(__file__).resolve().parents[1]


def test_the_help_of_train_shows_every_default(capsys):
    with pytest.raises(SystemExit):
        parse_train_config(["--help"])
    shown = re.sub(r"[\s│╭╮╰╯─]+", " ", capsys.readouterr().out)
    for field in dataclasses.fields(TrainConfig):
        if field.name in ("trl", "vllm"):  # their fields are for the file
            continue
        default = getattr(TrainConfig(), field.name)
        written = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        # Other options' texts may name this one; the longest default is broken over two lines.
        named = re.finditer(rf"--{field.name}\b(?=.*?\(default: ([^)]*)\))", shown)
        shown_defaults = [found[1].replace(" ", "") for found in named]
        # None stands for what the option's own text says.
        found = written.replace(" ", "") in shown_defaults or (default is None and shown_defaults)
        assert found, field.name


def test_the_help_names_every_command(capsys):
    main(["--help"])
    shown = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " not in shown] == []


def test_an_unknown_command_is_refused_with_the_known_ones():
    with pytest.raises(
        SystemExit, match="no command trian: choose from train, evaluate, budget, ask"
    ):
        main(["trian"])


def test_the_help_of_budget_names_the_flags_of_its_own(capsys):
    with pytest.raises(SystemExit):
        main(["budget", "--help"])
    shown = " ".join(re.sub(r"[│╭╮╰╯─]+", " ", capsys.readouterr().out).split())
    assert "Show what a run asks of machine, disk and judge" in shown
    assert "Train a calibrated" not in shown
    for flag in ("--step_seconds", "--completions_per_second", "--fine_tune_seconds"):
        assert flag in shown


def test_a_gpu_whose_memory_is_full_is_one_sentence(monkeypatch):
    def fill(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setitem(COMMANDS, "ask", fill)
    with pytest.raises(SystemExit) as caught:
        main(["ask"])
    said = str(caught.value.code)
    assert said.startswith("error: the GPU's memory is full")
    for setting in ("--questions_per_step", "gradient_accumulation_steps", "--load_in_4bit"):
        assert setting in said


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: grpo-ao {command}" in capsys.readouterr().out


def test_a_fault_keeps_its_traceback_and_says_where_to_report_it(monkeypatch):
    def broken(*_):
        raise KeyError("missing")

    monkeypatch.setattr("grpo_ao.report.run_record.read_run", broken)
    with pytest.raises(KeyError) as caught:
        main(["report", "somewhere"])
    (note,) = caught.value.__notes__
    assert "please report it" in note


PARSING = """
import contextlib, sys
from grpo_ao.cli import COMMANDS, main
for command in COMMANDS:
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
print("imported:", *{"torch", "transformers", "trl", "datasets", "openai"} & set(sys.modules))
"""


def test_command_lines_are_read_without_the_heavy_libraries():
    done = subprocess.run(
        [sys.executable, "-c", PARSING], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "imported:"


REPORTING = """
import contextlib, sys
from grpo_ao.cli import main
for command in (["report", "none"], ["watch", "none"], ["compare", "none", "of these"]):
    with contextlib.suppress(SystemExit):
        main(command)
assert "grpo_ao.report.page" in sys.modules and "grpo_ao.report.compare" in sys.modules
print("imported:", *{"torch", "transformers", "peft", "datasets", "openai"} & set(sys.modules))
"""


def test_a_report_is_made_without_a_model_and_what_loads_one():
    done = subprocess.run(
        [sys.executable, "-c", REPORTING], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "imported:"


ASKING = """
import sys
from grpo_ao.cli import main
main(["ask", "--text", "I live in Rome.", "--question", "What is the topic?"])
needless = {"datasets", "matplotlib", "openai", "pandas", "scipy", "sklearn", "trio", "trl"}
print("imported:", *needless & set(sys.modules))
import scipy.special
"""


def test_an_oracle_is_asked_without_libraries_that_it_does_not_need():
    done = subprocess.run(
        [sys.executable, "-c", ASKING], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.mark.parametrize(
    ("script", "command"),
    [("train", "train"), ("evaluate", "evaluate"), ("fetch_wildchat_questions", "questions")],
)
def test_the_scripts_are_the_same_commands(script, command):
    done = subprocess.run(
        [sys.executable, f"{script}.py", "--nope"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"grpo-ao {command} --help" in done.stdout + done.stderr


def test_a_rollout_server_takes_arguments_of_vllm_from_a_file(monkeypatch, tmp_path):
    seen = []

    class Server:
        def serve_forever(self) -> None:
            seen.append("served")

    def start_server(*arguments: object) -> Server:
        seen.append(arguments)
        return Server()

    monkeypatch.setattr("grpo_ao.oracle.vllm.server.start_server", start_server)
    config = tmp_path / "server.yaml"
    config.write_text("vllm:\n  attention_backend: TRITON_ATTN\n")
    flags = ["vllm-serve", "--model", "m", "--oracle-lora-path", "a"]
    main([*flags, "--config", str(config)])
    address = ("127.0.0.1", 8000)
    assert seen == [("m", "a", address, 0.7, 1024, {"attention_backend": "TRITON_ATTN"}), "served"]
    config.write_text("lr: 0.1\n")
    with pytest.raises(SystemExit, match="must hold a section `vllm:` and nothing else"):
        main([*flags, "--config", str(config)])


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("vllm:\n  seed: 1\n", "vllm", {"seed": 1}),
        ("vllm_servers: [http://a]\n", "vllm_servers", ("http://a",)),
    ],
)
def test_what_the_file_sets_may_belong_to_a_flag(tmp_path, text, name, value):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    config = parse_train_config(["--config", str(path), "--rollout", "vllm"])
    assert (config.rollout, getattr(config, name)) == ("vllm", value)


def test_a_budget_counts_what_a_run_of_these_flags_does(capsys):
    flags = [
        "--warm_start_probes",
        "40",
        "--max_steps",
        "5",
        "--eval_probes",
        "20",
    ]
    times = ["--step_seconds", "2", "--completions_per_second", "100", "--fine_tune_seconds", "1"]
    main(["budget", "--preset", "mini", *flags, *times])
    shown = capsys.readouterr().out
    assert re.search(r"completions in GRPO\s+.\s+320\b", shown)  # 5 steps x 8 questions x 8
    assert re.search(r"completions for the warm start\s+.\s+40\b", shown)
    assert "GRPO steps" in shown


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan"])
def test_a_time_of_no_size_is_refused(value):
    with pytest.raises(SystemExit, match="--step_seconds must be a number above 0"):
        main(["budget", "--preset", "mini", "--step_seconds", value])


@pytest.fixture
def a_run(tmp_path):
    """A run's folder as its start leaves it, and the settings that it was started with."""
    flags = ["--preset", "mini", "--lr", "0.001", "--positions", "last:7", "--benchmarks"]
    config = parse_train_config([*flags, "--output_dir", str(tmp_path / "run")])
    RunFolder(config.output_dir, resume=False).write_record(dataclasses.asdict(config), {})
    return config


@pytest.mark.parametrize("form", ["--resume {}", "--resume={}"])
def test_a_run_goes_on_by_its_folder_alone(a_run, form):
    found = parse_train_config(form.format(a_run.output_dir).split())
    assert found == dataclasses.replace(a_run, resume=True)


def test_flags_beside_a_resumed_run_change_its_settings(a_run):
    found = parse_train_config(["--resume", str(a_run.output_dir), "--lr", "0.1"])
    assert (found.lr, found.positions, found.trl) == (0.1, "last:7", a_run.trl)
    # Alone it is a flag, as it was.
    alone = parse_train_config(["--preset", "mini", "--resume", "--lr", "0.1"])
    assert (alone.resume, alone.output_dir) == (True, Path("runs/mini"))


def test_what_is_no_run_to_resume_is_one_sentence(a_run, tmp_path):
    with pytest.raises(UserError, match=r"there is no run to resume in .*: it holds no run\.json"):
        parse_train_config(["--resume", str(tmp_path)])
    with pytest.raises(UserError, match=r"has the settings of its run\.json: drop --preset"):
        parse_train_config(["--resume", str(a_run.output_dir), "--preset", "mini"])
    record = json.loads((a_run.output_dir / "run.json").read_text())
    record["config"]["of_old"] = 1
    (a_run.output_dir / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="sets 'of_old', which is no setting of this command"):
        parse_train_config(["--resume", str(a_run.output_dir)])


@pytest.mark.parametrize("length", [1, 100_000])  # what is written at the end, and at once
def test_a_reader_that_goes_away_ends_a_command_without_a_word(monkeypatch, capsys, length):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setitem(COMMANDS, "report", lambda _: print("x" * length))
    with os.fdopen(writer, "w") as gone, pytest.raises(SystemExit) as caught:
        monkeypatch.setattr(sys, "stdout", gone)
        main(["report"])
    assert caught.value.code == 141
    assert capsys.readouterr().err == ""


# Whatever is typed

BEGINNINGS = {
    "train": ["--preset", "mini"],
    "budget": ["--preset", "mini"],
    "evaluate": ["--preset", "mini"],
    "ask": ["--text", "It is late.", "--question", "Is it?"],
    "make-oracle": ["--model", "m", "--output_dir", "o"],
    "vllm-serve": ["--model", "m", "--oracle_lora_path", "a"],
}
WORK = (
    *("run.run", "evaluate.evaluate", "budget.show_budget", "training.make_oracle.make_oracle"),
    *("probes.generate.generate_questions", "judges.agreement.check_agreement"),
    *("oracle.oracle.Oracle.load", "oracle.oracle.Oracle.mini"),
    *("judges.local.LocalJudge.from_pretrained", "judges.api.ApiJudge.check"),
    "oracle.vllm.server.start_server",
)
ODD = st.one_of(
    st.sampled_from(
        ["", " ", "-1", "nan", "inf", "-inf", "1e400", "9" * 5000, "true", "None", "[]"]
    ),
    st.sampled_from(
        ["/", ".", "..", "absent", "absent/x", "x" * 5000, "a\nb", "\udcff", "::", "m:"]
    ),
    st.sampled_from(["os:sep", "http://[::1", "http://a@b", "https://x?y", "last:0", "token@-0"]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0"), max_size=20),  # which no argument can hold
)


def flags_of(command: str, capsys) -> list[str]:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return sorted(set(re.findall(r"--[a-z_]{2,}", capsys.readouterr().out)) - {"--help"})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_of_any_value_is_taken_or_refused_in_one_sentence(command, capsys, monkeypatch):
    def begin(*_: object, **__: object) -> None:
        raise SystemExit("begun")

    for name in WORK:
        monkeypatch.setattr(f"grpo_ao.{name}", begin)
    flags = flags_of(command, capsys) or [""]

    @given(flag=st.sampled_from(flags), value=ODD)
    @settings(max_examples=150)
    def check(flag: str, value: str) -> None:
        with pytest.raises(SystemExit) as caught:
            main([command, *BEGINNINGS.get(command, []), f"{flag}={value}" if flag else value])
        code = caught.value.code
        # 2 is the parser's, which says in a frame what it cannot read.
        assert code in (2, "begun") or re.fullmatch(r"error: [^\n]+", str(code)), code

    check()
