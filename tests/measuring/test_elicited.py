"""Expected numbers, P(True), choices and words: what is read off the oracle's probabilities."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from grpo_ao.answer import Answer
from grpo_ao.epistemic import TAG_PREFIX, render_tag
from grpo_ao.files import MINI_WEIGHTS
from grpo_ao.measuring.elicited import (
    SURE_WORDS,
    choice_probabilities,
    expected_confidences,
    number_tokens,
    sureness,
    sureness_table,
    truth_table,
)
from grpo_ao.oracle.ends import end_of_turn_id
from grpo_ao.oracle.injection import Injection
from grpo_ao.oracle.loading import load_tokenizer
from tests.rigs import make_oracle, planted_table
from tests.tiny import tiny_tokenizer


@pytest.fixture(scope="module")
def oracle():
    return make_oracle()


def test_numbers_of_one_token_need_no_closing_bracket():
    tokenizer = load_tokenizer(MINI_WEIGHTS / "base")
    opening, numbers = number_tokens(tokenizer)
    assert tokenizer.decode(list(opening)) == TAG_PREFIX
    assert [tokenizer.decode(list(ids)) for ids in numbers] == [str(n) for n in range(101)]
    assert {len(ids) for ids in numbers} == {1}


def with_bracket_if_open(number):
    """Behind 1 to 10 another digit makes another number."""
    return f"{number}]" if 1 <= number <= 10 else str(number)


def test_numbers_that_open_others_are_told_from_them_by_the_bracket():
    opening, numbers = number_tokens(tiny_tokenizer())
    assert tiny_tokenizer().decode(list(opening)) == TAG_PREFIX
    found = [tiny_tokenizer().decode(list(ids)) for ids in numbers]
    assert found == list(map(with_bracket_if_open, range(101)))
    # What has to be read: nothing, a digit of 1 to 9, or 10.
    assert len({ids[:cut] for ids in numbers for cut in range(len(ids))}) == 11


def test_the_expected_number_is_that_of_all_hundred_and_one_written_out(oracle):
    table = planted_table(oracle, 5)
    expected = []
    for row in range(5):
        logp = torch.tensor([log_probability(oracle, table, row, n) for n in range(101)])
        expected.append((logp.softmax(0) @ torch.arange(101.0)).item() / 100)
    assert expected_confidences(oracle, table) == pytest.approx(expected, rel=1e-4)
    assert len({round(value, 4) for value in expected}) == 5


def log_probability(oracle, table, row, number):
    """Of the number's own tokens, one row at a time and without padding."""
    prompt = table.prompts[row].input_ids
    before = render_tag(number).removesuffix(f"{number}]")
    written = with_bracket_if_open(number)
    tag = oracle.tokenizer.encode(before + written, add_special_tokens=False)
    own = len(oracle.tokenizer.encode(written, add_special_tokens=False))
    injection = Injection.of([table.prompts[row]], [table.vectors[row]])
    with torch.no_grad(), oracle.hook.serving(injection):
        logits = oracle.model(input_ids=torch.tensor([[*prompt, *tag]])).logits[0]
    logp = logits.log_softmax(-1)[-own - 1 : -1]
    return logp[range(own), tag[-own:]].sum().item()


def test_known_answers_are_weighed_against_each_other(oracle):
    table = planted_table(oracle, 3)
    table.probes[1:] = [replace(p, choices=("sea", "the sky")) for p in table.probes[1:]]
    tag = "[epistemic status: 80] "
    said = [tag + "Sky", "no tag", tag + "sea"]
    ids = [oracle.tokenizer.encode(text) for text in said]
    answers = [Answer.read(*row) for row in zip(table.probes, said, ids, strict=True)]
    none, untagged, tagged = choice_probabilities(oracle, table, answers)
    assert none == {}
    for row, found, before in ((1, untagged, ""), (2, tagged, tag)):
        logp = {c: log_probability_of(oracle, table, row, before, c) for c in ("sea", "the sky")}
        total = sum(np.exp(value) for value in logp.values())
        assert found == pytest.approx({c: np.exp(logp[c]) / total for c in logp}, rel=1e-3)
    assert sum(tagged.values()) == pytest.approx(1)


def test_a_choice_has_a_capital_where_the_answer_has_one(oracle):
    table = planted_table(oracle, 1)
    table.probes[0] = replace(table.probes[0], choices=("sea", "sky"))
    small, capital = (
        choice_probabilities(oracle, table, [Answer.read(table.probes[0], said, (1,))])[0]
        for said in ("sky", "Sky")
    )
    logp = {c: log_probability_of(oracle, table, 0, "", c.capitalize()) for c in ("sea", "sky")}
    odds = np.exp(logp["sea"] - logp["sky"])
    assert capital["sea"] / capital["sky"] == pytest.approx(odds, rel=1e-3)
    assert small != pytest.approx(capital)


def log_probability_of(oracle, table, row, before, choice):
    """Of the choice's tokens and the end of the turn, one row at a time and without padding."""
    prompt = table.prompts[row].input_ids
    written = oracle.tokenizer.encode(before + choice, add_special_tokens=False)
    written.append(end_of_turn_id(oracle.tokenizer))
    own = len(written) - max(0, len(oracle.tokenizer.encode(before.rstrip())))
    with torch.no_grad(), oracle.hook.serving(table.injection([row])):
        logits = oracle.model(input_ids=torch.tensor([[*prompt, *written]])).logits[0]
    logp = logits.log_softmax(-1)[-own - 1 : -1]
    return logp[range(own), written[-own:]].sum().item()


def test_the_oracle_is_asked_whether_its_answer_is_right(oracle):
    table = planted_table(oracle, 3)
    said = [Answer.read(p, f"[epistemic status: 80] word {n}") for n, p in enumerate(table.probes)]
    graded = [
        replace(answer, informativeness=grade)
        for answer, grade in zip(said, (1.0, 0.4, 0.5), strict=True)
    ]
    asked = truth_table(oracle, table, graded)
    assert [probe.reference for probe in asked.probes] == ["Yes", "No", "Yes"]
    assert np.all([a is b for a, b in zip(asked.vectors, table.vectors, strict=True)])
    for number, (probe, before) in enumerate(zip(asked.probes, table.probes, strict=True)):
        assert probe.question.startswith(f"{before.question}\nAnswer: word {number}\n")
        assert probe.kind == "closed"
        assert "80" not in probe.question


def test_words_for_how_sure_an_answer_is_count_as_likely_as_they_are(oracle):
    table = planted_table(oracle, 2)
    answers = [Answer.read(p, f"{render_tag(80)} word {n}") for n, p in enumerate(table.probes)]
    asked = sureness_table(oracle, table, answers)
    for number, probe in enumerate(asked.probes):
        assert f"\nAnswer: word {number}\nHow sure is the answer?" in probe.question
        assert (probe.reference, probe.choices) == (None, tuple(SURE_WORDS))
    replies = [Answer.read(probe, f"{render_tag(30)} who knows") for probe in asked.probes]
    likely = choice_probabilities(oracle, asked, replies)
    expected = [
        own["certain"] + 0.75 * own["probable"] + 0.5 * own["even"] + 0.3 * own["improbable"]
        for own in likely
    ]
    assert sureness(oracle, asked, replies) == pytest.approx(expected)
