"""The commands, as a user types them."""

import dataclasses
import re
from pathlib import Path

import pytest

from grpo_ao.cli import main, parse_train_config
from grpo_ao.config import MINI_WEIGHTS, TrainConfig

TEXT = "My name is Anna and I live in Rome. How do I fix the pipe? I am in a hurry, please answer."
QUESTION = "What is the topic?"


def ask(capsys, *arguments: str) -> str:
    main(["ask", "--text", TEXT, "--question", QUESTION, *arguments])
    return capsys.readouterr().out


def test_ask_answers_with_a_confidence_by_the_mini_oracle(capsys):
    said = ask(capsys)
    found = re.fullmatch(r"(\S.*)   \(confidence (\d+)\)\n", said)
    assert found, said
    assert 0 <= int(found[2]) <= 100
    # Greedy: the same words at every time, and with the mini model's own paths.
    weights = ["--model", str(MINI_WEIGHTS / "base")]
    weights += ["--oracle-lora-path", str(MINI_WEIGHTS / "oracle")]
    assert ask(capsys, *weights) == said


def test_ask_reads_other_layers_and_positions(capsys):
    said = {
        ask(capsys, "--layer", layer, "--positions", positions)
        for layer in ("2", "6")
        for positions in ("last:20", "token@-3")
    }
    assert len(said) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "8"], "there is no layer 8: the model has layers 0 to 7"),
        (["--positions", "last:99"], "fewer than the positions 'last:99' read"),
        (["--positions", "first"], "positions 'first' are not understood"),
        (["--model", "some/model"], "both --model and --oracle_lora_path, or neither"),
        (["--temperature", "-1"], "the temperature must be 0"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(["ask", "--text", TEXT, "--question", QUESTION, *arguments])
    said = str(caught.value.code)
    assert said.startswith("error: ")
    assert message in said
    assert "\n" not in said


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


def test_train_py_is_the_same_command():
    source = (Path(__file__).resolve().parents[1] / "train.py").read_text()
    assert "train_main()" in source


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
