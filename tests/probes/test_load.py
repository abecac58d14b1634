"""Loading the probes of a run."""

import dataclasses
import json
from collections import Counter

import pytest
from rich.console import Console

from grpo_ao.config import TrainConfig, make_defaults
from grpo_ao.errors import UserError
from grpo_ao.oracle.activations import SubjectTexts
from grpo_ao.oracle.loading import load_tokenizer
from grpo_ao.oracle.prompt import build_oracle_prompt
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.prepare import probes_of_run
from grpo_ao.probe import Positions, Probe, split_of
from grpo_ao.probes.limits import ProbeLimits
from grpo_ao.probes.load import RunProbes, data_digest
from tests.tiny import tiny_tokenizer

TEXT = "Number {} of the texts, which is long enough that twenty of its tokens can be read here."


@pytest.fixture
def questions(tmp_path):
    """A question set of 60 sound rows and, in line 3, a broken one."""
    rows = [
        {"wildchat_question": TEXT.format(n), "oracle_questions": ["Is it so?", "What is it?"]}
        for n in range(60)
    ]
    rows.insert(2, {"oracle_questions": ["Is it so?"]})
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config_of(questions, strict) -> TrainConfig:
    mini = make_defaults("mini", None)
    return TrainConfig(
        model=mini.model,
        oracle_lora_path=mini.oracle_lora_path,
        questions=str(questions),
        strict=strict,
        benchmarks=(),
    )


def probes_of(config: TrainConfig, console: Console) -> tuple[RunProbes, list[Probe]]:
    return probes_of_run(config, SubjectTexts(load_tokenizer(config.model)), console)


def load(config: TrainConfig, console: Console) -> tuple[list[Probe], list[Probe]]:
    probes, _ = probes_of(config, console)
    return [*probes.warm_start, *probes.grpo], probes.heldout


def test_a_broken_row_is_reported_by_its_number_and_left_out(questions):
    console = Console(width=500)
    with console.capture() as printed:
        train, heldout = load(config_of(questions, strict=False), console)
    assert "row 3 of" in printed.get()
    assert "the column 'text' is missing" in printed.get()
    assert len(train) > 60 and len(heldout) > 10
    assert not {probe.text for probe in train} & {probe.text for probe in heldout}


def test_with_strict_a_broken_row_is_an_error(questions):
    with pytest.raises(ValueError, match=r"row 3 of .* the column 'text' is missing"):
        load(config_of(questions, strict=True), Console())


def quiet() -> Console:
    return Console(quiet=True)


def test_a_text_is_in_one_split_whatever_the_order_of_the_rows(questions):
    config = config_of(questions, strict=False)
    train, heldout = load(config, quiet())
    assert {split_of(p.text) for p in train} == {"train"}
    assert {split_of(p.text) for p in heldout} == {"heldout"}
    questions.write_text("".join(reversed(questions.read_text().splitlines(keepends=True))))
    again, _ = load(config, quiet())
    assert {p.id for p in again} == {p.id for p in train}


def test_num_prompts_takes_some_training_texts_with_all_of_their_questions(questions):
    config = config_of(questions, strict=False)
    everything, heldout = load(config, quiet())
    some, same = load(dataclasses.replace(config, num_prompts=3), quiet())
    assert len({p.text_key for p in some}) == 3
    assert {p.id for p in some} < {p.id for p in everything}
    assert len(some) == 6
    assert same == heldout


def test_texts_that_differ_in_white_space_are_taken_together(questions):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    spaced = [
        row | {"wildchat_question": row["wildchat_question"] + " "} for row in rows if len(row) > 1
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *spaced]))
    config = dataclasses.replace(config_of(questions, strict=False), num_prompts=3)
    some, _ = load(config, quiet())
    assert (len({p.text_key for p in some}), len({p.text for p in some})) == (3, 6)


def test_what_is_taken_of_a_sorted_file_is_of_all_its_families(tmp_path):
    path = tmp_path / "sorted.jsonl"
    rows = [
        {
            "wildchat_question": f"Text {n} of family {family}, long enough to be read.",
            "oracle_questions": ["Is it so?"],
            "question_families": [family],
        }
        for family in ("first", "second")
        for n in range(200)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = dataclasses.replace(config_of(path, strict=True), eval_probes=20, num_prompts=20)
    for found in load(config, quiet()):
        assert Counter(p.family for p in found)["first"] == pytest.approx(10, abs=6)


def test_eval_probes_is_the_most_that_is_measured(questions):
    config = dataclasses.replace(config_of(questions, strict=False), eval_probes=3)
    _, heldout = load(config, quiet())
    assert len(heldout) == 3


def test_layers_are_those_of_the_percents_and_positions_the_ones_asked_for(questions):
    config = dataclasses.replace(
        config_of(questions, strict=False), layer_percents=(25, 75), positions="window:5@-3"
    )
    train, _ = load(config, quiet())
    assert {p.layers for p in train} == {(2,), (6,)}
    assert {p.positions for p in train} == {Positions(5, -3, window=True)}


def test_a_short_text_is_read_as_far_as_it_goes_and_said(questions):
    config = dataclasses.replace(config_of(questions, strict=False), positions="last:90")
    console = Console(width=500)
    with console.capture() as printed:
        train, _ = load(config, console)
    assert train
    assert "120 probes have texts shorter than 'last:90'" in printed.get()
    strict = dataclasses.replace(config, strict_positions=True)
    with pytest.raises(ValueError, match=r"Number .* of the 90 positions"):
        load(strict, quiet())


LONG = {
    "text": {"wildchat_question": "word " * 3000, "oracle_questions": ["Is it so?"]},
    "question": {"wildchat_question": TEXT, "oracle_questions": ["why " * 3000]},
}


@pytest.mark.parametrize("part", LONG)
def test_what_the_model_has_too_few_positions_for_is_left_out_and_said(questions, part):
    with questions.open("a") as file:
        file.write(json.dumps(LONG[part]) + "\n")
    console = Console(width=500)
    with console.capture() as printed:
        train, heldout = load(config_of(questions, strict=False), console)
    assert len(train) + len(heldout) > 60
    assert max(len(p.text + p.question) for p in train + heldout) < 200
    said = printed.get()
    assert f"1 probes are left out. The first: the {part} '" in said
    assert "more than the model's 1,024 positions" in " ".join(said.split())


def test_with_strict_a_text_that_is_too_long_is_an_error(questions):
    questions.write_text(json.dumps(LONG["text"]) + "\n" + questions.read_text().split("\n", 1)[0])
    with pytest.raises(
        UserError, match=r"has [\d,]+ tokens, more than the model's 1,024 positions"
    ):
        load(config_of(questions, strict=True), quiet())


# Lengths around the limit: (the tokens of the prompt, the answer included, less the positions)
@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize("layers", [(2,), (1, 2, 3)])
def test_a_prompt_may_fill_the_positions_together_with_its_answer(excess, layers):
    question, where = "Is it so, or is it not?", Positions.parse("last:3")
    probe = Probe(TEXT, question, "closed", layers, where, "Yes", "family")
    count = 3 * len(layers)
    prompt = build_oracle_prompt(tiny_tokenizer(), layers, count, question, OracleSpec())
    tokens = len(prompt.input_ids)
    texts = SubjectTexts(tiny_tokenizer())
    texts[TEXT] = [0] * 50
    limits = ProbeLimits(texts, OracleSpec(), tokens + 9, max_new_tokens=9 + excess)
    if excess:
        with pytest.raises(UserError, match=f"a prompt of {tokens} tokens, which with 10 of"):
            limits.check(probe)
    else:
        limits.check(probe)


def test_the_mini_world_has_probes_enough_for_every_stage():
    config = dataclasses.replace(
        make_defaults("mini", None),
        warm_start_probes=12,
        max_steps=8,
        questions_per_step=5,
        validation_probes=16,
        eval_probes=12,
    )
    probes, _ = probes_of(config, quiet())
    assert list(map(len, probes)) == [12, 40, 16, 12]
    # The warm start's questions are the same ones whatever GRPO asks.
    alone, _ = probes_of(dataclasses.replace(config, max_steps=0), quiet())
    assert alone.warm_start == probes.warm_start
    assert alone.grpo == []


def test_texts_that_are_held_out_are_in_no_stage_of_the_mini_world(tmp_path):
    config = dataclasses.replace(
        make_defaults("mini", None),
        warm_start_probes=12,
        max_steps=2,
        questions_per_step=5,
        validation_probes=8,
    )
    asked, _ = probes_of(config, quiet())
    texts = {probe.text for part in asked[:3] for probe in part[:4]}
    path = tmp_path / "heldout.jsonl"
    rows = [{"wildchat_question": text, "oracle_questions": ["Is it so?"]} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    probes, _ = probes_of(dataclasses.replace(config, heldout=str(path)), quiet())
    assert {probe.text for probe in probes.heldout} == texts
    assert not texts & {probe.text for part in probes[:3] for probe in part}
    assert list(map(len, probes[:3])) == [12, 10, 8]


def test_stages_never_share_a_text(questions):
    mini = dataclasses.replace(
        make_defaults("mini", None), warm_start_probes=10, max_steps=3, questions_per_step=5
    )
    for config in (mini, config_of(questions, strict=False)):
        probes, _ = probes_of(config, quiet())
        texts = [{probe.text for probe in part} for part in probes]
        assert all(texts)
        assert sum(map(len, texts)) == len(set.union(*texts))


def test_the_digest_is_of_all_that_a_result_depends_on():
    probe = Probe(TEXT, "Is it so?", "closed", (4,), Positions.parse("last:20"), "Yes", "family")
    digests = {
        data_digest([dataclasses.replace(probe, **change)])
        for change in (
            {},
            {"text": "Another."},
            {"question": "Is it?"},
            {"kind": "open"},
            {"layers": (2,)},
            {"positions": Positions.parse("last:19")},
            {"reference": "No"},
            {"family": "other"},
        )
    }
    assert len(digests) == 8
    assert data_digest([probe]) == data_digest([dataclasses.replace(probe)])


# Benchmarks


def test_without_names_there_are_no_benchmarks():
    assert probes_of(make_defaults("mini", None), quiet())[1] == []


def test_the_paper_s_questions_are_asked_in_both_modes_at_one_layer(shared, questions):
    config = dataclasses.replace(
        config_of(questions, strict=False),
        benchmarks=("sst2",),
        data_dir=shared / "classification",
        eval_contexts=10,
    )
    probes = probes_of(config, quiet())[1]
    assert [str(p.positions) for p in probes] == ["token@-3", "window:50@-1"] * 10
    assert {p.layers for p in probes} <= {(2,), (4,), (6,)}
    assert len({p.text for p in probes}) == 10


def test_a_set_of_ones_own_is_held_out_and_asked_in_no_other_stage(questions, tmp_path):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    texts = [row["wildchat_question"] for row in rows if "wildchat_question" in row]
    own = [*texts[:5], "A text that is in no other set, and is long enough to be read here."]
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps({"text": t, "question": "Why?"}) + "\n" for t in own))
    config = config_of(questions, strict=False)
    probes, _ = probes_of(dataclasses.replace(config, heldout=str(path)), quiet())
    assert sorted(probe.text for probe in probes.heldout) == sorted(own)
    trained = {probe.text for probe in [*probes.warm_start, *probes.grpo]}
    validation = {probe.text for probe in probes.validation}
    # What would be held out of the question set is trained on, as it is measured no more.
    assert trained | validation == set(texts[5:])
    assert {split_of(text) for text in trained} == {"train", "heldout"}
    assert {split_of(text) for text in validation} == {"validation"}
