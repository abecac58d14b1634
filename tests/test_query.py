"""The command ``ask``, as a user types it."""

import json
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from pyarrow import Table
from pyarrow.parquet import write_table
from transformers import AutoModelForCausalLM

from grpo_ao.cli import main
from grpo_ao.files import MINI_WEIGHTS, SMOLLM2, SMOLLM2_ORACLE
from grpo_ao.oracle.spec import load_spec
from tests.tiny import add_adapter

ROOT = Path(__file__).resolve().parents[1]
TEXT = "My name is Anna and I live in Rome. How do I fix the pipe? I am in a hurry, please answer."
QUESTION = "What is the topic?"


def ask(capsys, *arguments: str) -> str:
    main(["ask", "--text", TEXT, "--question", QUESTION, *arguments])
    return capsys.readouterr().out


def test_ask_answers_with_a_confidence_by_the_mini_oracle(capsys):
    said = ask(capsys)
    found = re.fullmatch(r"(\S.*)   \(confidence ([01]\.\d\d), not trained\)\n", said)
    assert found, said
    assert 0 <= float(found[2]) <= 1
    # Greedy: the same words at every time, and with the mini model's own paths.
    weights = ["--model", str(MINI_WEIGHTS / "base")]
    weights += ["--oracle-lora-path", str(MINI_WEIGHTS / "oracle")]
    assert ask(capsys, *weights) == said


def test_ask_tells_a_confidence_that_was_trained(capsys, tmp_path):
    copied = shutil.copytree(MINI_WEIGHTS / "oracle", tmp_path / "oracle")
    spec = json.loads((copied / "ao_config.json").read_text())
    (copied / "ao_config.json").write_text(json.dumps(spec | {"calibrated": True}))
    said = ask(capsys, "--model", str(MINI_WEIGHTS / "base"), "--oracle_lora_path", str(copied))
    assert re.fullmatch(r"\S.*   \(confidence [01]\.\d\d\)\n", said)


def test_the_packaged_oracle_of_smollm2_answers_from_its_base(capsys, smollm2):
    said = ask(capsys, "--preset", "smollm2-135m", "--model", str(smollm2))
    assert re.fullmatch(r"\S.*   \(confidence [01]\.\d\d\)\n", said)


def test_the_packaged_oracle_of_smollm2_is_light_and_calibrated():
    spec = load_spec(SMOLLM2_ORACLE)
    assert spec.calibrated
    assert spec.act_layer_combinations == ((7,), (15,), (22,))
    assert sum(path.stat().st_size for path in SMOLLM2_ORACLE.iterdir()) < 10e6
    config = json.loads((SMOLLM2_ORACLE / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == (SMOLLM2, 16)


def test_ask_reads_other_layers_and_positions(capsys):
    said = {
        ask(capsys, "--layers", layers, "--positions", positions)
        for layers in ("2", "2,6")
        for positions in ("last:20", "token@-3")
    }
    assert len(said) > 1


def test_layers_that_the_adapter_was_not_trained_on_are_told(capsys):
    for layers, told in [("4", False), ("3", True), ("2,4", True)]:
        main(["ask", "--text", TEXT, "--question", QUESTION, "--layers", layers])
        warned = f"trained to read layers 2 or 4 or 6, but {layers} is" in capsys.readouterr().err
        assert warned == told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "2,2"], "the layers 2,2 hold one twice"),
        (["--layers", "8"], "there is no layer 8: the model has layers 0 to 7"),
        (["--positions", "first"], "positions 'first' are not understood"),
        (["--question", "\udcff"], "what is asked has half of a surrogate pair"),
        (["--run", "nowhere"], "there is no run in nowhere"),
        (["--run", "a", "--model", "b"], "--run names its own model"),
        (["--output", "a.jsonl"], "--output takes the answers to the rows of --input"),
        (["--input", "a.jsonl"], "give --text and --question, or --input"),
        (["--model", "some/model"], "both --model and --oracle_lora_path, or neither"),
        (["--temperature", "-1"], "--temperature must be 0 or more"),
        (["--text", "word " * 3000], "tokens, more than the model's 1,024 positions: shorten it"),
        (["--question", "why " * 3000], "more than the model's 1,024 positions: shorten it, or"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence_and_no_model_is_loaded(
    capsys, monkeypatch, arguments, message
):
    monkeypatch.setattr("grpo_ao.oracle.oracle.load_peft_model", None)
    with pytest.raises(SystemExit) as caught:
        main(["ask", "--text", TEXT, "--question", QUESTION, *arguments])
    # The parser says it in a frame, and ends with 2.
    framed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in (framed if caught.value.code == 2 else str(caught.value.code))


def test_the_tokens_that_were_read_are_shown_and_a_short_text_is_told(capsys):
    main(["ask", "--text", "I live in Rome.", "--question", QUESTION, "--show_tokens"])
    shown = capsys.readouterr()
    line = shown.out.splitlines()[1].removeprefix("read at layer 4: ")
    tokens = [json.loads(token) for token in re.findall(r'"[^"]*"', line)]
    assert "".join(tokens) == "I live in Rome.<|im_end|>\n"
    assert f"the text has {len(tokens)} positions, all of which were read" in shown.err
    assert ask(capsys).count("\n") == 1


def test_ask_names_the_subject_that_it_read(capsys, tmp_path):
    subject = str(tmp_path / "subject")
    base = AutoModelForCausalLM.from_pretrained(MINI_WEIGHTS / "base", dtype=torch.float32)
    add_adapter(base, 1).save_pretrained(subject)
    said = ask(capsys, "--subject_lora", subject, "--show_tokens")
    assert f"\nread at layer 4 with {subject}: " in said


def test_samples_tell_how_many_agree(capsys):
    assert re.search(r"; (0|25|50|75|100)% of 4 samples agree\)", ask(capsys, "--samples", "4"))


@pytest.fixture
def a_run(tmp_path):
    """A run's folder, as far as ``ask`` reads it: an adapter whose number was trained."""
    folder = tmp_path / "run"
    adapter = shutil.copytree(MINI_WEIGHTS / "oracle", folder / "adapter")
    spec = json.loads((adapter / "ao_config.json").read_text())
    spec |= {"calibrated": True, "act_layer_combinations": [[2]]}
    (adapter / "ao_config.json").write_text(json.dumps(spec))
    config = {"model": str(MINI_WEIGHTS / "base"), "positions": "last:7"}
    (folder / "run.json").write_text(json.dumps({"config": config}))
    return folder


def test_a_run_answers_where_it_read(capsys, a_run):
    said = ask(capsys, "--run", str(a_run), "--show_tokens")
    answer, tokens = said.splitlines()
    assert re.fullmatch(r"\S.*   \(confidence [01]\.\d\d\)", answer)
    assert tokens.startswith("read at layer 2:")
    assert len(re.findall(r'"[^"]*"', tokens)) == 7
    by_hand = ("--layers", "2", "--positions", "last:7")
    assert ask(capsys, *by_hand).split("   ")[0] == answer.split("   ")[0]
    shutil.rmtree(a_run / "adapter")
    with pytest.raises(SystemExit, match="there is no trained adapter"):
        ask(capsys, "--run", str(a_run))


@pytest.fixture
def questions(tmp_path):
    rows = [{"text": TEXT, "question": f"Is it {n}?", "number": n} for n in range(3)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_are_answered_in_order_with_all_that_they_held(capsys, tmp_path, questions):
    output = tmp_path / "answers.jsonl"
    main(["ask", "--input", str(questions), "--output", str(output)])
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["number"] for row in found] == [0, 1, 2]
    assert [row["layers"] for row in found] == [[4]] * 3
    assert all(0 <= row["answer_probability"] <= 1 and row["read"] for row in found)
    main(["ask", "--input", str(questions)])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["answer"] for row in printed] == [row["answer"] for row in found]


def test_a_killed_command_goes_on_behind_its_last_answer(tmp_path, questions):
    output = tmp_path / "answers.jsonl"
    arguments = ["ask", "--input", str(questions), "--output", str(output)]
    main(arguments)
    first, *_ = output.read_text().splitlines()
    marked = json.dumps(json.loads(first) | {"answer": "of the first command"}) + "\n"
    output.write_text(marked)
    main(arguments)
    lines = output.read_text().splitlines(keepends=True)
    assert (lines[0], len(lines)) == (marked, 3)
    output.write_text(json.dumps({"text": "another", "question": "one"}) + "\n")
    with pytest.raises(SystemExit, match="holds answers to other rows"):
        main(arguments)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "row 1 of .* cannot be read: it is not valid JSON"),
        ('{"text": "a"}', "row 1 of .* needs a 'text' and a 'question'"),
        ('{"text": " ", "question": "a"}', "row 1 of .* needs a 'text' and a 'question'"),
        ("", "has no rows"),
        (
            '{"text": "a", "question": "b", "answer": "c", "layers": [2]}',
            r"row 1 of .* has columns of the names that the answer's have \(layers, answer\)",
        ),
    ],
)
def test_rows_that_cannot_be_asked_are_one_sentence(tmp_path, monkeypatch, line, message):
    monkeypatch.setattr("grpo_ao.oracle.oracle.load_peft_model", None)
    path = tmp_path / "questions.jsonl"
    path.write_text(line)
    with pytest.raises(SystemExit, match=message):
        main(["ask", "--input", str(path)])


def test_a_value_that_json_lacks_is_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("grpo_ao.oracle.oracle.load_peft_model", None)
    asked = {"text": TEXT, "question": QUESTION}
    rows = [asked | {"at": None}, asked | {"at": datetime(2026, 1, 2, tzinfo=UTC)}]
    write_table(Table.from_pylist(rows[::-1]), tmp_path / "rows.parquet")
    with pytest.raises(SystemExit, match=r"row 1 of .* \(Object of type datetime is not JSON"):
        main(["ask", "--input", str(tmp_path / "rows.parquet")])


def test_nothing_is_said_but_the_answer():
    asked = ["ask", "--text", TEXT, "--question", QUESTION]
    done = subprocess.run(
        [sys.executable, "-m", "grpo_ao", *asked], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)


def test_a_warning_is_one_line_said_once(tmp_path):
    bare = shutil.copytree(MINI_WEIGHTS / "oracle", tmp_path / "bare")
    (bare / "ao_config.json").unlink()
    whom = ["--model", str(MINI_WEIGHTS / "base"), "--oracle_lora_path", str(bare)]
    asked = ["ask", "--text", TEXT, "--question", QUESTION, *whom]
    done = subprocess.run(
        [sys.executable, "-m", "grpo_ao", *asked], cwd=ROOT, capture_output=True, text=True
    )
    assert re.fullmatch(rf"warning: there is no {bare / 'ao_config.json'}: .*\n", done.stderr)
