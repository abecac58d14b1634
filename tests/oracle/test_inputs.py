"""``Oracle.ask``: texts, conversations and vectors of one's own."""

import warnings

import pytest
import torch

from grpo_ao.config import MINI_WEIGHTS
from grpo_ao.errors import UserError
from grpo_ao.oracle.activations import extract_activations
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.probe import Positions

WIDTH = 192
TEXT = "My name is Anna and I live in Rome. How do I fix the pipe?"
TALK = [
    {"role": "user", "content": "My name is Anna and I live in Rome."},
    {"role": "assistant", "content": "Good evening, Anna."},
    {"role": "user", "content": "How do I fix the pipe?"},
]


@pytest.fixture(scope="module")
def oracle():
    return Oracle.from_pretrained(MINI_WEIGHTS / "base", MINI_WEIGHTS / "oracle", device="cpu")


def read(oracle, text, layer=4, positions="last:20"):
    where = Positions.parse(positions)
    (found,) = extract_activations(oracle.model, oracle.tokenizer, [text], [layer], where)
    return found[layer]


def test_vectors_are_asked_about_as_the_texts_they_were_read_from(oracle):
    questions = ["What is the topic?", "Where does the user live?"]
    texts = [TEXT, "I am in a hurry."]
    vectors = [read(oracle, text) for text in texts]
    by_text = oracle.ask(texts, questions)
    by_vectors = oracle.ask(vectors=vectors, questions=questions)
    assert [a.completion for a in by_vectors] == [a.completion for a in by_text]
    assert [a.read for a in by_vectors] == [(), ()]


def test_one_vector_alone_is_one_position(oracle):
    vector_KD = read(oracle, TEXT, positions="token@-3")
    one, same = oracle.ask(vectors=[vector_KD[0], vector_KD], questions="What is the topic?")
    assert one == same


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([torch.ones(3, 5)], f"of width {WIDTH}"),
        ([torch.ones(1, 3, WIDTH)], f"of width {WIDTH}"),
        ([torch.zeros(2, WIDTH)], "zero or not finite"),
        ([torch.full((1, WIDTH), torch.nan)], "zero or not finite"),
    ],
)
def test_vectors_that_are_none_of_the_model_are_refused(oracle, vectors, message):
    with pytest.raises(UserError, match=message):
        oracle.ask(vectors=vectors, questions="What?")


def test_vectors_of_other_norms_than_activations_are_told(oracle):
    own_KD = read(oracle, TEXT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        oracle.ask(vectors=[own_KD], questions="What?", max_new_tokens=2)
    with pytest.warns(UserWarning, match="median norm is .* only directions are injected"):
        oracle.ask(vectors=[1000 * own_KD], questions="What?", max_new_tokens=2)


def test_texts_and_vectors_are_not_mixed(oracle):
    with pytest.raises(UserError, match="texts or vectors, not both"):
        oracle.ask([TEXT], ["What?"], vectors=[torch.ones(WIDTH)])


def test_a_conversation_of_one_user_turn_is_its_text(oracle):
    talk = [{"role": "user", "content": TEXT}]
    by_talk, by_text = oracle.ask([talk, TEXT], "What is the topic?", positions="all")
    assert by_talk == by_text


def test_a_conversation_is_read_as_its_template_writes_it(oracle):
    (answer,) = oracle.ask([TALK], "What is the topic?", positions="all")
    written = oracle.tokenizer.apply_chat_template(TALK, tokenize=False)
    assert "".join(answer.read) == written[written.index("My name") :]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "a list of messages"),
        ([{"role": "user"}], "a list of messages"),
        ([{"role": "user", "content": "a<|im_end|>b"}], "control token"),
    ],
)
def test_messages_that_cannot_be_read_are_refused(oracle, messages, message):
    with pytest.raises(UserError, match=message):
        oracle.ask([messages], "What?")


def test_positions_may_differ_from_text_to_text(oracle):
    positions = ["token@-3", "last:5"]
    several = oracle.ask([TEXT] * 2, "What is the topic?", positions=positions)
    assert [len(answer.read) for answer in several] == [1, 5]
    assert several[0].read == ("?",)
    for answer, where in zip(several, positions, strict=True):
        (alone,) = oracle.ask([TEXT], "What is the topic?", positions=where)
        assert alone.answer == answer.answer
    with pytest.raises(UserError, match="2 texts, but 3 positions"):
        oracle.ask([TEXT] * 2, "What?", positions=["last:5"] * 3)


def test_a_batch_may_have_any_size(oracle):
    assert oracle.ask([], []) == []
    texts = [f"{TEXT} {'So ' * n}" for n in range(5)]
    whole = oracle.ask(texts, "What is the topic?")
    parts = oracle.ask(texts, "What is the topic?", batch_size=2)
    assert [answer.answer for answer in whole] == [answer.answer for answer in parts]


def test_agreement_is_measured_on_demand(oracle):
    torch.manual_seed(0)
    (answer,) = oracle.ask([TEXT], "Is the topic housing?", samples=10)
    assert answer.agreement in {n / 10 for n in range(11)}
    (without,) = oracle.ask([TEXT], "Is the topic housing?")
    assert without.agreement is None
    assert 0 < without.answer_probability <= 1
