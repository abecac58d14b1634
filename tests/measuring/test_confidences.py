import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from grpo_ao.answer import Agreement, Answer
from grpo_ao.config import MINI_WEIGHTS
from grpo_ao.measuring.answer_probability import with_probabilities
from grpo_ao.measuring.ask import complete
from grpo_ao.measuring.confidences import (
    METHODS,
    agreement,
    baselines,
    generated_tokens,
    token_probability,
)
from grpo_ao.oracle.injection import Injection
from grpo_ao.oracle.layers import decoder_of
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probe import Positions, Probe, QuestionKind


def answer(n=0, confidence: int | None = 80, says="Yes", informativeness=1.0, tokens=9):
    probe = Probe(f"text {n}", "Is it?", "closed", (2,), Positions(20), "Yes", "family")
    tag = "" if confidence is None else f"[epistemic status: {confidence}] "
    return replace(
        Answer.read(probe, tag + says, range(tokens)),
        informativeness=informativeness,
        yes_probability=0.7,
        answer_probability=0.6,
        agreement=Agreement(14, 20, 180),
    )


# Confidences of an answer


def test_each_method_is_sure_of_the_answer_that_was_given():
    assert [method(answer()) for method in METHODS.values()] == pytest.approx([0.8, 0.7, 0.6, 0.7])
    assert token_probability(answer(says="No")) == pytest.approx(0.3)


def test_what_is_not_known_is_none():
    assert METHODS["stated confidence"](answer(confidence=None)) is None
    neither = answer(says="Perhaps")
    assert token_probability(neither) is None
    assert METHODS["answer probability"](neither) == 0.6
    assert token_probability(replace(answer(), yes_probability=None)) is None
    assert agreement(replace(answer(), agreement=None)) is None


# Recalibrated


def answers(count=400):
    rng = np.random.default_rng(0)
    stated_N = rng.integers(50, 101, count)
    right_N = rng.random(count) < stated_N / 100 - 0.3  # thirty points too sure
    return [
        answer(n, confidence=int(c), informativeness=float(right))
        for n, (c, right) in enumerate(zip(stated_N, right_N, strict=True))
    ]


def test_what_is_fitted_on_one_half_serves_the_other_so_that_all_have_the_same_answers():
    found = baselines(answers())
    whole, constant = found["stated confidence"], found["constant"]
    assert len(whole) == 400
    assert {len(columns) for columns in found.values()} == {400}
    for columns in found.values():
        assert columns.context_N.tolist() == whole.context_N.tolist()
    one, other = sorted(set(constant.confidence_N))
    halves = [constant.confidence_N == rate for rate in (one, other)]
    assert min(half.sum() for half in halves) > 150
    assert not set(whole.context_N[halves[0]]) & set(whole.context_N[halves[1]])
    # Each half is told the base rate of the other.
    assert whole.informativeness_N[halves[1]].mean() == pytest.approx(one)
    assert whole.informativeness_N[halves[0]].mean() == pytest.approx(other)


def test_recalibration_mends_overconfidence():
    gap = {
        name: abs(columns.confidence_N.mean() - columns.informativeness_N.mean())
        for name, columns in baselines(answers()).items()
    }
    assert gap["stated confidence"] > 0.25
    assert gap["stated confidence + isotonic"] < 0.15
    assert gap["stated confidence + temperature"] < 0.2


def test_a_method_that_says_nothing_is_left_out():
    silent = [replace(answer(n, confidence=None), agreement=None) for n in range(40)]
    found = baselines(silent)
    assert "constant" in found
    assert not [name for name in found if name.startswith(("stated", "agreement"))]


def test_agreement_on_a_part_is_compared_on_that_part():
    part = [answer(n) if n < 10 else replace(answer(n), agreement=None) for n in range(40)]
    found = baselines(part)
    assert len(found["stated confidence"]) == 40
    assert len(found["agreement of 20"]) == 10
    beside = found["stated confidence, where agreement is known"]
    assert beside.context_N.tolist() == found["agreement of 20"].context_N.tolist()
    assert "stated confidence, where agreement is known" not in baselines(part[:10])


def test_agreement_costs_its_samples_and_the_answer_itself():
    more = replace(answer(tokens=11), agreement=Agreement(14, 20, 220))
    costs = generated_tokens([answer(), more])
    assert costs["stated confidence"] == costs["token probability"] == 10
    assert costs["agreement of 20"] == 210
    assert "agreement of 20" not in generated_tokens([replace(answer(), agreement=None)])


# Probabilities of a model


@pytest.fixture(scope="module")
def oracle():
    return Oracle.from_pretrained(MINI_WEIGHTS / "base", MINI_WEIGHTS / "oracle", device="cpu")


def table_of(oracle, completions, kind: QuestionKind = "closed", ended=True):
    generator = torch.Generator().manual_seed(0)
    width = oracle.model.config.hidden_size
    vectors = [torch.randn(2 + n % 2, width, generator=generator) for n in range(len(completions))]
    questions = [f"Is it {'so ' * n}?" for n in range(len(completions))]
    probes = [Probe("a text", q, kind, (2,), Positions(20), "Yes", "family") for q in questions]
    end = [oracle.tokenizer.eos_token_id] if ended else []
    answers = [
        Answer.read(p, c, [*oracle.tokenizer.encode(c, add_special_tokens=False), *end])
        for p, c in zip(probes, completions, strict=True)
    ]
    return ProbeTable.of_vectors(oracle, probes, vectors), answers


def log_probabilities(oracle, table, row, ids):
    """One row at a time, without padding: what the batched reading must give."""
    prompt = table.prompts[row]
    injection = Injection.of([prompt], [table.vectors[row]])
    whole = torch.tensor([[*prompt.input_ids, *ids]])
    with torch.no_grad(), oracle.hook.serving(injection):
        logits = oracle.model(input_ids=whole).logits[0]
    return logits.log_softmax(-1)[len(prompt.input_ids) - 1 : -1]


def tag_of(oracle, answer):
    pieces = [oracle.tokenizer.decode([i]) for i in answer.token_ids]
    return next(n for n, piece in enumerate(pieces, 1) if "]" in piece)


SAID = ["[epistemic status: 40] Yes", "[epistemic status: 7] No, it is not", "No ] at all"]


@pytest.mark.parametrize("ended", [True, False])
def test_probabilities_are_those_behind_the_tag_and_of_each_rows_own_vectors(oracle, ended):
    table, answers = table_of(oracle, SAID, ended=ended)
    found = with_probabilities(oracle, table, answers, batch_size=2)
    # An output without a tag is all answer, brackets and all.
    starts = [tag_of(oracle, answers[0]), tag_of(oracle, answers[1]), 0]
    for row, (answer, start) in enumerate(zip(found, starts, strict=True)):
        ids = answer.token_ids
        logp_CV = log_probabilities(oracle, table, row, ids)
        logp = sum(logp_CV[place, ids[place]].item() for place in range(start, len(ids)))
        assert answer.answer_probability == pytest.approx(math.exp(logp), rel=1e-3)
        mass = [
            sum(logp_CV[start, i].exp().item() for i in single_tokens(oracle, words))
            for words in ((" Yes", "Yes", " yes", "yes"), (" No", "No", " no", "no"))
        ]
        assert answer.yes_probability == pytest.approx(mass[0] / sum(mass), rel=1e-3)


def test_probabilities_are_read_with_the_weights_that_sample_and_leave_the_base_as_it_was(oracle):
    table, answers = table_of(oracle, SAID, ended=True)
    decoder, adapted = decoder_of(oracle.model), []
    before = {name: weight.clone() for name, weight in decoder.state_dict().items()}

    def count(*_):
        adapted.append(sum(isinstance(module, BaseTunerLayer) for module in decoder.modules()))

    hook = decoder.register_forward_pre_hook(count)
    with_probabilities(oracle, table, answers, batch_size=2)
    hook.remove()
    assert adapted == [0, 0]
    after = decoder.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def single_tokens(oracle, words):
    encoded = [oracle.tokenizer.encode(word, add_special_tokens=False) for word in words]
    return {ids[0] for ids in encoded if len(ids) == 1}


class TellsNone:
    """A rollout engine without log-probabilities."""

    def __init__(self, oracle):
        self.rollouts = oracle.rollouts


@pytest.mark.parametrize("engine", [None, TellsNone])
def test_what_decoding_tells_of_an_answer_is_what_a_reading_tells(oracle, engine, monkeypatch):
    table, _ = table_of(oracle, SAID)
    monkeypatch.setattr(oracle, "engine", engine and engine(oracle))
    torch.manual_seed(0)
    samples = complete(oracle, table, range(3), 1.0, 12, 2, batch_size=4, probabilities=True)
    answers, rows = [answer for own in samples for answer in own], [0, 0, 1, 1, 2, 2]
    read = with_probabilities(oracle, table.part(rows), answers, batch_size=2)
    others = with_probabilities(oracle, table.part([1, 1, 2, 2, 0, 0]), answers, batch_size=2)
    for found, expected, other in zip(answers, read, others, strict=True):
        assert found.answer_probability == pytest.approx(expected.answer_probability, rel=1e-3)
        assert found.yes_probability == pytest.approx(expected.yes_probability, rel=1e-3)
        assert found.answer_probability != pytest.approx(other.answer_probability, rel=1e-3)


def test_another_activation_gives_another_probability(oracle):
    table, answers = table_of(oracle, SAID[:1])
    (first,) = with_probabilities(oracle, table, answers, batch_size=1)
    table.vectors[0] = -table.vectors[0]
    (second,) = with_probabilities(oracle, table, answers, batch_size=1)
    assert first.yes_probability != pytest.approx(second.yes_probability, abs=1e-6)


def test_the_token_that_ended_the_answer_counts_whatever_the_tokenizers_own_is(oracle):
    table, answers = table_of(oracle, SAID[:1], ended=False)
    other = oracle.tokenizer.encode(" city", add_special_tokens=False)[0]
    ended = [replace(answers[0], token_ids=(*answers[0].token_ids, other))]
    (found,) = with_probabilities(oracle, table, ended, batch_size=1)
    (cut,) = with_probabilities(oracle, table, answers, batch_size=1)
    logp = log_probabilities(oracle, table, 0, ended[0].token_ids)[-1, other].item()
    assert cut.answer_probability is not None
    expected = cut.answer_probability * math.exp(logp)
    assert found.answer_probability == pytest.approx(expected, rel=1e-3)


def test_an_open_question_has_no_probability_of_yes(oracle):
    table, answers = table_of(oracle, SAID[:1], kind="open")
    (found,) = with_probabilities(oracle, table, answers, batch_size=1)
    assert found.yes_probability is None
    assert found.answer_probability is not None
