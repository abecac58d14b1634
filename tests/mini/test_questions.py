import random
import re
from collections import Counter
from typing import get_args

import pytest

from grpo_ao.judges.reference import closed_score, open_score
from grpo_ao.mini import lexicon as lx
from grpo_ao.mini.questions import (
    FAMILIES,
    TRUTH_FAMILIES,
    noun_phrases,
    questions_about,
    truth_choices,
)
from grpo_ao.mini.world import make_message
from grpo_ao.probe import Split
from grpo_ao.probes.names import BENCHMARKS


def asked(split, count=800, seed=5):
    rng = random.Random(f"{split} {seed}")
    messages = [make_message(seed, index) for index in range(count)]
    return [(m, q) for m in messages for q in questions_about(m, rng, split)]


@pytest.fixture(scope="module")
def train():
    return asked("train")


@pytest.fixture(scope="module")
def heldout():
    return asked("heldout")


def test_about_half_are_closed_and_of_yes_and_no_half_are_no(train, heldout):
    for questions in (train, heldout):
        kinds = Counter(q.kind for _, q in questions)
        assert 0.45 < kinds["closed"] / len(questions) < 0.6
        answers = Counter(q.answer for _, q in questions if q.kind == "closed")
        assert 0.47 < answers["No"] / (answers["Yes"] + answers["No"]) < 0.53
        # Some closed questions offer a choice; they are the fewer.
        assert (answers["Yes"] + answers["No"]) / kinds["closed"] > 0.75


def test_every_family_is_asked_about_and_nine_mirror_the_benchmarks(train, heldout):
    for questions in (train, heldout):
        assert {q.family for _, q in questions} == set(FAMILIES)
    assert set(BENCHMARKS) <= set(FAMILIES)
    assert {q.kind for _, q in train if q.family in BENCHMARKS} == {"closed"}


def test_held_out_templates_are_none_of_training(train, heldout):
    seen, unseen = ({q.template for _, q in questions} for questions in (train, heldout))
    assert len(seen) > 800
    assert len(unseen) > 100
    assert not seen & unseen


def test_held_out_templates_are_made_of_words_of_training(train, heldout):
    seen, unseen = (
        {word for _, q in questions for word in re.findall(r"\w+", q.template)}
        for questions in (train, heldout)
    )
    assert unseen - seen == set()


@pytest.mark.parametrize("kind", ["open", "closed"])
def test_held_out_questions_use_no_word_that_the_calibration_lacks(heldout, kind):
    calibration, unseen = (
        {word for _, q in questions if q.kind == kind for word in re.findall(r"\w+", q.template)}
        for questions in (asked("validation"), heldout)
    )
    assert unseen - calibration == set()


def test_phrases_of_the_splits_are_disjoint_and_share_their_parts():
    for family in set(FAMILIES) - {"snli", "ner"}:
        parts = [set(noun_phrases(family, split)) for split in get_args(Split)]
        assert all(parts)
        assert len(set.union(*parts)) == sum(map(len, parts))


def slot(question):
    """What a closed question puts into its template's {x}."""
    before, _, after = question.template.partition("{x}")
    found = re.fullmatch(re.escape(before) + "(.*)" + re.escape(after), question.text)
    assert found
    return found[1]


FACTS = {
    "topic": lambda f: f.topic,
    "subtopic": lambda f: f.subtopic,
    "thing": lambda f: f.thing,
    "intent": lambda f: f.intent,
    "name": lambda f: f.name,
    "job": lambda f: f.job,
    "city": lambda f: f.city,
    "country": lambda f: lx.CITIES[f.city],
    "emotion": lambda f: f.emotion,
    "expertise": lambda f: f.expertise,
    "urgency": lambda f: f.urgency,
    "color": lambda f: f.color,
    "quantity": lambda f: f.quantity,
    "geometry_of_truth": lambda f: "true" if f.claim_true else "false",
    "relations": lambda f: "right" if f.relation_true else "wrong",
    "sst2": lambda f: "positive" if f.review_positive else "negative",
    "md_gender": lambda f: "a woman" if f.female else "a man",
    "ag_news": lambda f: f.topic,
    "tense": lambda f: f.tense,
    "singular_plural": lambda f: "several" if f.plural else "one",
}


def is_choice(question):
    return question.kind == "closed" and question.answer not in ("Yes", "No")


def test_answers_are_the_facts(train):
    for message, question in train:
        if question.family not in FACTS:
            continue
        fact = FACTS[question.family](message.facts)
        if question.kind == "open" or is_choice(question):
            assert question.answer == fact
        else:
            assert (question.answer == "Yes") is (slot(question) == fact)
        if is_choice(question):
            assert fact in question.text


def test_a_no_is_a_near_neighbor_of_the_truth(train):
    seen = Counter()
    for message, question in train:
        if question.answer != "No" or question.family not in ("subtopic", "thing", "name"):
            continue
        facts, x = message.facts, slot(question)
        near = {
            "subtopic": set(lx.TOPICS[facts.topic]),
            "thing": set(lx.TOPICS[facts.topic][facts.subtopic]),
            "name": set(lx.FEMALE if facts.female else lx.MALE),
        }
        assert x in near[question.family]
        seen[question.family] += 1
    assert min(seen.values()) > 20
    assert len(seen) == 3


def test_mentions_are_in_the_text_or_not(train):
    answers = Counter()
    for message, question in train:
        if question.family == "ner":
            assert (question.answer == "Yes") is (slot(question) in message.text)
            answers[question.answer] += 1
    assert min(answers["Yes"], answers["No"]) > 0.4 * answers.total()


def test_entailment_is_the_scenes_and_no_hypothesis_has_one_answer_alone(train):
    answers = {entailed: Counter() for _, entailed in lx.SCENES}
    for message, question in train:
        if question.family == "snli":
            assert message.facts.scene is not None
            own = slot(question) == lx.SCENES[message.facts.scene][1]
            assert question.answer == ("Yes" if own else "No")
            answers[slot(question)][question.answer] += 1
    for counts in answers.values():
        assert 0.2 < counts["Yes"] / counts.total() < 0.8


def test_truths_can_be_asked_with_both_labels():
    message = next(
        m for m in (make_message(5, i) for i in range(100)) if m.facts.claim_true is not None
    )
    for question in truth_choices(message, random.Random(0), "train"):
        assert question.family in TRUTH_FAMILIES
        assert is_choice(question)
        assert question.answer in question.text


def test_the_reference_judge_gives_the_right_answer_full_marks(train):
    for _, question in train[:500]:
        score = closed_score if question.kind == "closed" else open_score
        assert score(question.answer, question.answer) == 1.0
        assert score("nothing of the kind", question.answer) < 1.0
