import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from grpo_ao.errors import UserError
from grpo_ao.mini import lexicon as lx
from grpo_ao.mini.probes import mini_lessons, mini_probes
from grpo_ao.mini.world import make_message, split_of_message
from grpo_ao.probe import Positions, split_of
from tools.mini_world.corpus import training_messages

LAST_20 = Positions.parse("last:20")
SENTENCE = re.compile(r"[.?!](?= |$)")


@pytest.fixture(scope="module")
def messages():
    return [make_message(5, index) for index in range(2000)]


def test_the_world_is_no_toy(messages):
    assert len(lx.TOPICS) >= 20
    assert all(len(subtopics) == 3 for subtopics in lx.TOPICS.values())
    assert {m.facts.topic for m in messages} == set(lx.TOPICS)
    words = {word for m in messages for word in re.findall(r"[a-z]+", m.text.lower())}
    assert len(words) > 700
    assert len({m.text for m in messages}) == len(messages)


def test_a_message_has_two_to_six_sentences_and_enough_words(messages):
    assert {len(SENTENCE.findall(m.text)) for m in messages} == {2, 3, 4, 5, 6}
    assert min(len(m.text.split()) for m in messages) >= 16


def test_facts_are_told_early_late_or_not_at_all(messages):
    places = [m.text.find(m.facts.name) / len(m.text) for m in messages if m.facts.name]
    assert 0.2 < len(places) / len(messages) < 0.5
    assert min(places) < 0.1
    assert max(places) > 0.9
    for fact in ("emotion", "expertise", "urgency", "claim_true", "scene", "tense", "color"):
        told = sum(getattr(m.facts, fact) is not None for m in messages)
        assert 0.2 < told / len(messages) < 0.6, fact


def test_what_a_message_tells_stands_in_its_text(messages):
    for m in messages:
        facts = m.facts
        assert facts.thing in m.text
        assert facts.thing in lx.TOPICS[facts.topic][facts.subtopic]
        for word in (facts.name, facts.job, facts.city, facts.color, facts.work):
            assert word is None or word in m.text
        assert facts.quantity is None or facts.quantity in m.text.lower()
        assert facts.emotion is None or any(s in m.text for s in lx.EMOTIONS[facts.emotion])
        assert facts.urgency is None or any(s in m.text for s in lx.URGENCY[facts.urgency])
        assert facts.scene is None or lx.SCENES[facts.scene][0] in m.text


def test_true_claims_are_true_and_false_ones_false(messages):
    table = {**lx.ANIMALS, **lx.CITIES}
    pattern = re.compile(r"the (?:city of )?(\w+) (?:is a kind of|lies in) (\w+)\.")
    checked = 0
    for m in messages:
        if found := pattern.search(m.text):
            assert (table[found[1]] == found[2]) is m.facts.claim_true, m.text
            checked += 1
        if found := re.search(r"(\w+) is (larger|smaller) than (\w+)", m.text):
            first, second = lx.NUMBERS.index(found[1]), lx.NUMBERS.index(found[3])
            assert ((first > second) == (found[2] == "larger")) is m.facts.claim_true, m.text
            checked += 1
    assert checked > 500
    claims = [m.facts.claim_true for m in messages if m.facts.claim_true is not None]
    assert 0.4 < sum(claims) / len(claims) < 0.6


DIGEST = """
import hashlib, random
from grpo_ao.mini.questions import questions_about
from grpo_ao.mini.world import make_message
digest = hashlib.sha256()
for index in range(100):
    message = make_message(7, index)
    digest.update(message.text.encode() + message.reply.encode())
    for split in ("train", "heldout"):
        for question in questions_about(message, random.Random(index), split):
            digest.update(f"{question.text} {question.answer}".encode())
print(digest.hexdigest())
"""


def test_the_world_is_the_same_in_every_process():
    root = Path(__file__).resolve().parents[2]
    said = [
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert len(said[0].strip()) == 64


def test_the_world_is_the_one_that_the_weights_were_trained_on():
    texts = "\n".join(make_message(0, index).text for index in range(500))
    digest = hashlib.sha256(texts.encode()).hexdigest()[:16]
    assert digest == "32b82d2328f75b26"


# Probes


def test_held_out_texts_are_seen_by_no_stage_of_training():
    heldout = {p.text for p in mini_probes("heldout", 400, [(2,), (4,), (6,)], LAST_20)}
    assert len(heldout) > 90
    assert {split_of(text) for text in heldout} == {"heldout"}
    for split in ("train", "validation"):
        probes = mini_probes(split, 400, [(2,), (4,), (6,)], LAST_20)
        assert {split_of(probe.text) for probe in probes} == {split}
    # What the base and the oracle were built from leaves such texts out, whatever the seed.
    for seed in (0, 1):
        built = training_messages(seed, 0, 300)
        assert 0.8 < len(built) / 300 < 0.98
        assert "heldout" not in {split_of_message(m.text) for m in built}


def test_no_text_and_no_template_that_is_asked_about_was_taught():
    lessons = list(mini_lessons(4000))
    asked = [p for s in ("train", "validation") for p in mini_probes(s, 400, [(2,)], LAST_20)]
    assert len(lessons) == 4000
    assert not {lesson.text for lesson in lessons} & {probe.text for probe in asked}
    opens = {probe.question for probe in asked if probe.kind == "open"}
    assert not {lesson.question for lesson in lessons} & opens


def test_probes_are_always_the_same_and_have_answers():
    probes = mini_probes("train", 120, [(2,), (4,), (6,)], LAST_20)
    assert [p.id for p in probes] == [
        p.id for p in mini_probes("train", 200, [(2,), (4,), (6,)], LAST_20)
    ][:120]
    assert len({p.id for p in probes}) == 120
    assert all(p.reference for p in probes)
    assert {p.layers for p in probes} == {(2,), (4,), (6,)}
    assert max(sum(p.text == text for p in probes) for text in {p.text for p in probes}) == 4


def test_more_probes_than_memory_holds_are_refused():
    with pytest.raises(UserError, match="makes 1,000,000 probes of a stage at most, and 2,147,483"):
        mini_probes("train", 2**31 - 1, [(2,)], LAST_20)
