import math

import numpy as np
import pytest
import torch

from grpo_ao.measuring.confidences import (
    METHODS,
    agreement,
    answer_probabilities,
    answers_of,
    baselines,
    generated_tokens,
    sequence_probability,
    stated,
    token_probability,
)
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.spec import OracleSpec
from tests.tiny import WIDTH, tiny_peft, tiny_tokenizer


def row(n=0, confidence: int | None = 80, said: str | None = "Yes", correct=1, **others):
    return {
        "context_id": f"context {n}",
        "parsed": confidence is not None,
        "confidence": confidence,
        "said": said,
        "correct": correct,
        "yes_probability": 0.7,
        "sequence_probability": 0.6,
        "samples": {"Yes": 14, "No": 5, "neither": 1},
        "tokens": 9,
        "sample_tokens": 180,
    } | others


# Confidences of a row


def test_each_method_is_sure_of_the_answer_that_was_given():
    yes, no = row(), row(said="No")
    assert [method(yes) for method in METHODS.values()] == pytest.approx([0.8, 0.7, 0.6, 0.7])
    assert [method(no) for method in METHODS.values()] == pytest.approx([0.8, 0.3, 0.6, 0.25])


def test_what_is_not_known_is_none():
    assert stated(row(confidence=None)) is None
    neither = row(said=None, correct=0)
    assert token_probability(neither) is None
    assert agreement(neither) is None
    assert sequence_probability(neither) == 0.6
    unsampled = row()
    del unsampled["samples"]
    assert agreement(unsampled) is None


def test_rows_become_answers():
    answers = answers_of([row(1), row(2, confidence=None, said=None, correct=0)])
    assert answers.confidence_N[0] == 0.8
    assert answers.correct_N.tolist() == [1, 0]
    assert answers.stated_N.tolist() == [True, False]
    assert answers.neither_N.tolist() == [False, True]
    assert answers.context_N.tolist() == ["context 1", "context 2"]


# Recalibrated


def rows(count=400):
    rng = np.random.default_rng(0)
    stated_N = rng.integers(50, 101, count)
    right_N = rng.random(count) < stated_N / 100 - 0.3  # thirty points too sure
    return [
        row(n, confidence=int(c), correct=int(right))
        for n, (c, right) in enumerate(zip(stated_N, right_N, strict=True))
    ]


def test_what_is_fitted_is_measured_on_the_other_half():
    found = baselines(rows())
    whole = found["stated confidence"]
    half = found["stated confidence + isotonic"]
    assert len(whole) == 400
    assert 150 < len(half) < 250
    assert set(half.context_N) == set(found["constant"].context_N) < set(whole.context_N)
    fitted_on = sorted(set(whole.context_N) - set(half.context_N))
    base_rate = np.mean([whole.correct_N[whole.context_N == c][0] for c in fitted_on])
    assert found["constant"].confidence_N.tolist() == pytest.approx([base_rate] * len(half))
    assert found["constant"].correct_N.tolist() == half.correct_N.tolist()


def test_recalibration_mends_overconfidence():
    found = baselines(rows())
    gap = {n: abs(a.confidence_N.mean() - a.correct_N.mean()) for n, a in found.items()}
    assert gap["stated confidence"] > 0.25
    assert gap["stated confidence + isotonic"] < 0.15
    assert gap["stated confidence + temperature"] < 0.2


def test_a_method_that_says_nothing_is_left_out():
    silent = [row(n, confidence=None) for n in range(40)]
    assert not [name for name in baselines(silent) if name.startswith("stated")]
    assert "constant" in baselines(silent)
    for one in silent:
        del one["samples"]
    assert not [name for name in baselines(silent) if name.startswith("agreement")]


def test_agreement_costs_its_samples_and_the_answer_itself():
    costs = generated_tokens([row(), row(tokens=11, sample_tokens=220)])
    assert costs["stated confidence"] == costs["token probability"] == 10
    assert costs["agreement of 20"] == 210
    unsampled = row()
    del unsampled["samples"]
    assert "agreement of 20" not in generated_tokens([unsampled])


# Probabilities of a model


TAG = "[epistemic status: 40]"


@pytest.fixture(scope="module")
def oracle():
    # A vocabulary of bytes has no token for " Yes": the answers here are single letters.
    return Oracle(tiny_peft(), tiny_tokenizer(), OracleSpec(hook_onto_layer=1))


@pytest.fixture
def letters(monkeypatch):
    monkeypatch.setattr("grpo_ao.measuring.confidences._YES", ("Y", "y"))
    monkeypatch.setattr("grpo_ao.measuring.confidences._NO", ("N", "no"))


def ask(oracle, completions, questions=None, seed=0):
    torch.manual_seed(seed)
    vectors = [torch.randn(2 + n % 2, WIDTH) for n in range(len(completions))]
    questions = questions or [f"{'so ' * n}?" for n in range(len(completions))]
    prompts = [
        oracle.prompt(2, len(v), question) for v, question in zip(vectors, questions, strict=True)
    ]
    ids = [oracle.tokenizer.encode(text, add_special_tokens=False) for text in completions]
    return prompts, vectors, ids


def log_probabilities(oracle, prompt, vectors_KD, ids):
    """One row at a time, without padding: what the batched reading must give."""
    from grpo_ao.oracle.injection import Injection

    whole = torch.tensor([[*prompt.input_ids, *ids, oracle.tokenizer.eos_token_id]])
    injection = Injection.from_rows([prompt.positions], [vectors_KD])
    with torch.no_grad(), oracle.hook.serving(injection):
        logits = oracle.model(input_ids=whole).logits[0]
    return logits.log_softmax(-1)[len(prompt.input_ids) - 1 : -1]


def test_probabilities_are_those_behind_the_tag_and_of_each_rows_own_vectors(oracle, letters):
    prompts, vectors, ids = ask(oracle, [TAG + "Y", TAG + "No, it is not", "N"])
    known = answer_probabilities(oracle, prompts, vectors, ids, batch_size=2)
    for prompt, vectors_KD, row_ids, found in zip(prompts, vectors, ids, known, strict=True):
        logp_CV = log_probabilities(oracle, prompt, vectors_KD, row_ids)
        start = len(TAG) if len(row_ids) > len(TAG) else 0
        token = lambda text: oracle.tokenizer.encode(text)[0]  # noqa: E731
        yes = logp_CV[start, [token("Y"), token("y")]].exp().sum()
        no = logp_CV[start, token("N")].exp()
        answer = [*row_ids, oracle.tokenizer.eos_token_id][start:]
        logp = sum(logp_CV[start + n, i].item() for n, i in enumerate(answer))
        assert found.yes == pytest.approx((yes / (yes + no)).item(), rel=1e-3)
        assert found.sequence == pytest.approx(math.exp(logp), rel=1e-3)


def test_another_activation_gives_another_probability(oracle, letters):
    prompts, vectors, ids = ask(oracle, [TAG + "Y"])
    (first,) = answer_probabilities(oracle, prompts, vectors, ids)
    (second,) = answer_probabilities(oracle, prompts, [-v for v in vectors], ids)
    assert first.yes != pytest.approx(second.yes, abs=1e-6)


def test_a_tokenizer_that_splits_yes_is_refused(oracle):
    prompts, vectors, ids = ask(oracle, ["Y"])
    with pytest.raises(ValueError, match=r"none of ' Yes', 'Yes'.* is one token"):
        answer_probabilities(oracle, prompts, vectors, ids)
