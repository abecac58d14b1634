"""The supervised stage, on a tiny random model and the CPU."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from peft.utils import load_peft_weights
from rich.console import Console

from grpo_ao.errors import UserError
from grpo_ao.interruption import Interrupted
from grpo_ao.oracle.gguf import local_base
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.spec import OracleSpec, load_spec
from grpo_ao.probe import split_of
from grpo_ao.processes import Processes
from grpo_ao.training import make_oracle as module
from grpo_ao.training.examples import is_taught
from grpo_ao.training.make_oracle import make_oracle, template_note
from grpo_ao.training.make_oracle_config import MakeOracleConfig
from tests.tiny import add_adapter, tiny_model, tiny_tokenizer

QUESTION = "Is it light?"


def room(number: int, light: str) -> str:
    return ("a" if light == "Yes" else "z") * 12 + f" {number}"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    """Rooms that are all light or all dark, and whether they are light."""
    rows = [
        {
            "wildchat_question": room(n, answer),
            "oracle_questions": [QUESTION],
            "reference_answers": [answer],
        }
        for n in range(200)
        for answer in ("Yes", "No")
    ]
    path = tmp_path_factory.mktemp("data") / "rooms.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(base: Path, folder: Path, **settings) -> MakeOracleConfig:
    defaults = {
        "model": str(base),
        "output_dir": folder,
        "benchmarks": (),
        "lora_rank": 8,
        "examples": 20 * 16,
        "batch_size": 16,
        "lr": 5e-3,
        "tokens_per_pass": 65_536,
        "eval_steps": 20,
        "eval_examples": 50,
        "save_steps": 8,
    }
    return MakeOracleConfig(**(defaults | settings))


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("named", "trained"), [((), ((1,), (2,), (3,))), (("3,1,2", "2"), ((1, 2, 3), (2,)))]
)
def test_a_planted_task_is_learned_and_the_oracle_can_be_asked(
    base, questions, tmp_path, named, trained
):
    config = config_of(
        base,
        tmp_path / "run",
        questions=(str(questions),),
        layer_combination=named,
        examples=80 * 32,
        batch_size=32,
        lr=1e-2,
    )
    adapter = make_oracle(config)
    rows = rows_of(tmp_path / "run")
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert rows[-1]["accuracy/rooms"] >= 0.95
    assert load_spec(adapter).act_layer_combinations == trained
    oracle = Oracle.from_pretrained(base, adapter, device="cpu")
    wanted = ["Yes", "No"] * 5
    texts = [room(n, light) for n, light in enumerate(wanted, start=300)]
    answers = oracle.ask(texts, [QUESTION] * len(texts), max_new_tokens=4)
    assert [answer.answer for answer in answers] == wanted
    assert "rooms | " in (adapter / "README.md").read_text()


def test_a_fine_tuned_subject_is_read_and_named(base, questions, tmp_path):
    subject = tmp_path / "subject"
    add_adapter(tiny_model(), seed=5).save_pretrained(subject)
    settings = {"questions": (str(questions),), "examples": 3 * 16}
    adapters = [
        make_oracle(
            config_of(
                base, tmp_path / Path(name or "base").name / "run", subject_lora=name, **settings
            )
        )
        for name in (str(subject), None)
    ]
    one, other = (load_peft_weights(str(folder), device="cpu") for folder in adapters)
    assert one.keys() == other.keys()
    assert not all(torch.allclose(one[name], other[name]) for name in one)
    assert f"read with the adapter {subject}" in (adapters[0] / "README.md").read_text()


class KilledError(Exception):
    pass


def test_a_killed_run_goes_on_bit_for_bit(base, questions, tmp_path, monkeypatch):
    whole = make_oracle(config_of(base, tmp_path / "whole", questions=(str(questions),)))
    learn, calls = module.learn, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 13:
            raise KilledError
        return learn(*arguments)

    config = config_of(base, tmp_path / "killed", questions=(str(questions),))
    monkeypatch.setattr(module, "learn", dying)
    with pytest.raises(KilledError):
        make_oracle(config)
    monkeypatch.setattr(module, "learn", learn)
    resumed = make_oracle(
        config_of(base, tmp_path / "killed", questions=(str(questions),), resume=True)
    )
    one, other = (load_peft_weights(str(f), device="cpu") for f in (whole, resumed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_main_process_alone_writes_the_log(base, questions, tmp_path):
    config = config_of(base, tmp_path, questions=(str(questions),))
    spec, sources = OracleSpec(act_layer_combinations=((1,),)), module.Sources.load(config)
    lessons = module.curriculum(config, tiny_tokenizer(), spec, sources.taught, [])
    (tmp_path / "metrics.jsonl").write_text('{"step": 20}\n')
    processes = Processes()
    for index, left in ((1, [{"step": 20}]), (0, [])):
        processes.index = index
        module.Making(config, processes, Console(), tiny_tokenizer(), spec, lessons, lessons)
        assert rows_of(tmp_path) == left


def test_a_run_that_is_told_to_stop_finishes_its_step_and_leaves_a_checkpoint(
    base, questions, tmp_path, monkeypatch
):
    learn, calls = module.learn, []

    def told(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(*arguments)

    monkeypatch.setattr(module, "learn", told)
    config = config_of(base, tmp_path / "run", questions=(str(questions),))
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 3, with a checkpoint"):
        make_oracle(config)
    path = tmp_path / "run" / "checkpoint.pt"
    assert torch.load(path, weights_only=True)["step"] == 3
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"the checkpoint {path} cannot be read"):
        make_oracle(dataclasses.replace(config, resume=True))


def test_passes_of_any_size_give_the_gradient_of_one(base, questions, tmp_path):
    adapters = [
        make_oracle(
            config_of(
                base,
                tmp_path / str(tokens),
                questions=(str(questions),),
                tokens_per_pass=tokens,
                examples=3 * 16,
            )
        )
        for tokens in (800, 100_000)
    ]
    one, other = (load_peft_weights(str(f), device="cpu") for f in adapters)
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=1e-3)


def test_passes_that_do_not_fit_into_memory_are_halved(
    base, questions, tmp_path, monkeypatch, capsys
):
    settings = {"questions": (str(questions),), "examples": 3 * 16}
    whole = make_oracle(config_of(base, tmp_path / "whole", **settings))
    learn, rows = module.learn, []

    def short(oracle, batches, targets):
        rows.append([len(batch.prompts_BL) for batch in batches])
        if max(rows[-1]) > 5:
            learn(oracle, batches[:1], targets)  # what is half done must not count
            raise torch.OutOfMemoryError
        return learn(oracle, batches, targets)

    monkeypatch.setattr(module, "learn", short)
    halved = make_oracle(config_of(base, tmp_path / "halved", **settings))
    assert rows == [[16], [8, 8], [4] * 4, [4] * 4, [4] * 4]
    assert capsys.readouterr().err.count("GPU memory is short") == 2
    one, other = (load_peft_weights(str(f), device="cpu") for f in (whole, halved))
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-4, rtol=1e-3)
    monkeypatch.setattr(module, "learn", fail_for_memory)
    with pytest.raises(UserError, match="does not suffice for one example"):
        make_oracle(config_of(base, tmp_path / "none", **settings))


def fail_for_memory(*_):
    raise torch.OutOfMemoryError


def test_a_tagged_oracle_learns_the_form_but_no_number(base, questions, tmp_path):
    config = config_of(
        base,
        tmp_path / "run",
        questions=(str(questions),),
        answer_format="tagged",
        examples=60 * 32,
        batch_size=32,
        lr=1e-2,
    )
    oracle = Oracle.from_pretrained(base, make_oracle(config), device="cpu")
    answers = oracle.ask([room(300, "Yes")], [QUESTION], max_new_tokens=40)
    assert answers[0].completion.startswith("[epistemic status: ")


def test_texts_are_kept_for_calibration():
    texts = [f"text {n}" for n in range(4000)]
    taught = [text for text in texts if is_taught(text, 0.3)]
    assert {split_of(text) for text in taught} == {"train"}
    assert len(taught) == pytest.approx(4000 * 0.7 * 0.7, rel=0.05)


def test_a_template_with_a_system_prompt_is_told_of():
    import copy

    assert template_note(tiny_tokenizer()) is None
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = "<|im_start|>system\nBe kind to all.<|im_end|>\n" + str(
        tokenizer.chat_template
    )
    assert "Be kind to all." in str(template_note(tokenizer))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no texts"),
        (b"Gr\xfc\xdfe aus Bergen", "is not UTF-8"),
        (b"It rains. " * 100, "of 1 texts 1 have more than 256 tokens"),
    ],
)
def test_plain_text_that_cannot_be_read_is_refused(base, tmp_path, content, message):
    path = tmp_path / "plain.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make_oracle(config_of(base, tmp_path / "run", plain=str(path)))
    assert not (tmp_path / "run").exists()


def test_plain_text_that_gives_no_held_out_question_is_refused(base, tmp_path):
    # Words that a question could mention are in Latin letters.
    path = tmp_path / "plain.txt"
    path.write_text("\n\n".join(f"Дождь идёт в городе номер {n}, и темно." for n in range(50)))
    with pytest.raises(UserError, match="no question with a text of the held-out split"):
        make_oracle(config_of(base, tmp_path / "run", plain=str(path)))
    assert not (tmp_path / "run").exists()


def test_what_has_nothing_to_teach_is_refused(base, tmp_path):
    with pytest.raises(ValueError, match="nothing to teach"):
        config_of(base, tmp_path)
    with pytest.raises(ValueError, match="--benchmarks ag_news sst3 cannot be taught: choose from"):
        config_of(base, tmp_path, benchmarks=("sst2", "sst3", "ag_news"))
    path = tmp_path / "open.jsonl"
    path.write_text('{"wildchat_question": "A text.", "oracle_questions": ["Who?"]}\n')
    with pytest.raises(ValueError, match="no reference answers"):
        make_oracle(config_of(base, tmp_path / "run", questions=(str(path),)))


def test_a_file_that_is_no_gguf_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    with pytest.raises(ValueError, match="there is no file"):
        local_base(path)
    path.write_bytes(b"not a model")
    monkeypatch.setattr("grpo_ao.oracle.gguf.HF_HOME", str(tmp_path / "home"))
    with pytest.raises(ValueError, match=r"gguf"):
        local_base(path)
    assert local_base("user/model") == "user/model"
