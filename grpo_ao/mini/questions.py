"""Questions about a message's facts, closed and open, in paraphrased templates.

A template is a frame around a noun phrase. Each split has frames of its own and combinations of
noun and modifier of its own, so that a held-out question is worded as no training question was,
of words that training questions hold too. The oracle is taught those of training; it is calibrated
on those of validation, since its answers to wordings that it was taught are right more often. The
frames of validation hold every word of the held-out ones, in other orders: a verb that it had been
calibrated on nowhere ("Can you name the goal?") would be answered wrongly and with confidence.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from grpo_ao.mini import lexicon as lx
from grpo_ao.mini.world import Facts, Message
from grpo_ao.probe import QuestionKind, Split


@dataclass(frozen=True)
class Question:
    """A question with its answer; ``template`` is its wording with the slots left open."""

    text: str
    answer: str
    kind: QuestionKind
    family: str
    template: str


_OPEN_FRAMES: dict[Split, tuple[str, ...]] = {
    "train": (
        "What is {np}?",
        "Name {np}.",
        "Tell me {np}.",
        "State {np}.",
        "Give {np}.",
        "Please say what {np} is.",
        "I want to know {np}.",
        "Can you tell what {np} is?",
        "Do you know {np}?",
        "Please tell me what you know of {np}.",
    ),
    "validation": (
        "Please give {np}.",
        "Tell me what {np} is.",
        "I want you to say what {np} is.",
        "Do you know what {np} is?",
        "Can you give {np}?",
        "What do you know of {np}?",
        "Please tell me {np}.",
        "Can you tell me {np}?",
        "I want to know what {np} is.",
        "Do you think you know {np}?",
        "Please name {np}.",
        "Can you state {np}?",
        "I want you to name {np}.",
        "I want you to state {np}.",
        "Say to me what {np} is.",
    ),
    "heldout": ("Please state {np}.", "Say what {np} is.", "Can you name {np}?"),
}
_CLOSED_FRAMES: dict[Split, tuple[str, ...]] = {
    "train": (
        "Is {np} {x}?",
        "Would you say that {np} is {x}?",
        "Is it true that {np} is {x}?",
        "Do you think {np} is {x}?",
        "I guess {np} is {x}, right?",
        "Yes or no: is {np} {x}?",
        "Can you tell whether {np} is {x}?",
        "Someone says {np} is {x}, is that so?",
        "Tell me if {np} is {x}.",
    ),
    "validation": (
        "Can you say if {np} is {x}?",
        "I would say {np} is {x}, is it true?",
        "Do you guess that {np} is {x}?",
        "Someone says that {np} is {x}, right?",
        "Is it so that {np} is {x}?",
        "Would you think {np} is {x}?",
        "Tell me: is {np} {x}?",
        "Can it be true that {np} is {x}?",
        "Do you say {np} is {x}?",
        "Say whether {np} is {x}.",
        "I think that {np} is {x}, right?",
        "Can you tell me whether {np} is {x}?",
        "Does one say {np} is {x}?",
        "I would think {np} is {x}, is it so?",
    ),
    "heldout": (
        "Can one say that {np} is {x}?",
        "Tell me whether {np} is {x}.",
        "I think {np} is {x}, is that true?",
    ),
}
_CHOICE_FRAMES: dict[Split, tuple[str, ...]] = {
    "train": (
        "Is {np} {x} or {y}?",
        "Say whether {np} is {x} or {y}.",
        "What is {np}, {x} or {y}?",
        "Do you think {np} is {x} or {y}?",
        "Choose: is {np} {x} or {y}?",
        "Can you tell if {np} is {x} or {y}?",
    ),
    "validation": (
        "Would you guess that {np} is {x} or {y}?",
        "Tell me if {np} is {x} or {y}.",
        "Can you say if {np} is {x} or {y}?",
        "Do you guess {np} is {x} or {y}?",
        "Choose if {np} is {x} or {y}.",
        "Tell me: is {np} {x} or {y}?",
        "Can you say whether {np} is {x} or {y}?",
        "Do you say that {np} is {x} or {y}?",
    ),
    "heldout": ("Would you say that {np} is {x} or {y}?", "Tell me whether {np} is {x} or {y}."),
}
_SNLI_FRAMES: dict[Split, tuple[str, ...]] = {
    "train": (
        "Does the message mean that someone {x}?",
        "Does it follow that someone {x}?",
        "Does the text mean that someone {x}?",
        "Can we conclude that someone {x}?",
        "Given the message, is it true that someone {x}?",
        "Yes or no: someone {x}?",
        "Would you say that someone {x}?",
        "Do you think someone {x}?",
        "Tell me if someone {x}.",
    ),
    "validation": (
        "Can you say that someone {x}?",
        "I guess that someone {x}, right?",
        "Is it true that someone {x}?",
        "Does the text say that someone {x}?",
        "Can you conclude that someone {x}?",
        "Would it follow that someone {x}?",
        "Do you guess that someone {x}?",
        "Tell me: is it true that someone {x}?",
        "Say whether someone {x}.",
        "Given the text, can you say that someone {x}?",
        "Does one conclude that someone {x}?",
    ),
    "heldout": (
        "Can one conclude that someone {x}?",
        "Is it true, given the text, that someone {x}?",
        "Tell me whether someone {x}.",
    ),
}
_NER_FRAMES: dict[Split, tuple[str, ...]] = {
    "train": (
        "Is {x} mentioned in the message?",
        "Does the text mention {x}?",
        "Does {x} occur in the text?",
        "Is the word {x} in the message?",
        "Do we read of {x}?",
        "Yes or no: is {x} mentioned?",
        "Would you say that {x} is mentioned?",
        "Can you find {x} in the text?",
        "Tell me if the message mentions {x}.",
    ),
    "validation": (
        "Can you tell if {x} is in the text?",
        "Do you find {x} in the message?",
        "Do we read {x} in the text?",
        "Does the message mention {x}?",
        "Is {x} a word of the text?",
        "Do you read of {x} in the text?",
        "Tell me: does the text mention {x}?",
        "Would you say that {x} occurs in the text?",
        "Say whether the message mentions {x}.",
        "Do we find {x} in the message?",
        "Can you read of {x} in the text?",
    ),
    "heldout": (
        "Can we read of {x} in the message?",
        "Tell me whether the text mentions {x}.",
        "Is {x} in the text?",
    ),
}

_TEXT = ("", " of the message", " of the text", " of the request")
_OWNER = ("", " of the user", " of the writer", " of the author")
_PERSON = ("", " of the person", " of the one who is named", " of the named person")
_HOME = ("", " of the person", " where the person lives", " where the named person lives")
_THINGS = ("", " of the things", " of the items", " of the objects")
_EVENT = (" of the event", " of the action", " of the deed", " of what happens")
# family -> nouns, modifiers; every noun goes with every modifier.
_NOUN_PHRASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "topic": (("topic", "main topic", "general topic", "main subject", "theme"), _TEXT),
    "subtopic": (
        ("subtopic", "narrow topic", "exact topic", "special field", "precise subject"),
        _TEXT,
    ),
    "intent": (("intent", "aim", "purpose", "goal", "kind of request"), _OWNER),
    "emotion": (("mood", "emotion", "feeling", "emotional state", "state of mind"), _OWNER),
    "expertise": (("expertise", "skill level", "level", "experience", "knowledge"), _OWNER),
    "urgency": (
        ("urgency", "time pressure", "hurry", "degree of hurry"),
        ("", " of the request", " of the message", " of the matter"),
    ),
    "name": (("name", "first name", "given name"), _PERSON),
    "job": (("job", "profession", "occupation", "trade", "work"), _PERSON),
    "city": (("city", "home town", "town", "place"), _HOME),
    "country": (("country", "home country", "nation", "land"), _HOME),
    "thing": (
        ("thing", "object", "item", "matter"),
        (" asked about", " of the request", " of the question", " in question"),
    ),
    "color": (("color", "shade", "tint", "paint"), _THINGS),
    "quantity": (
        ("number", "amount", "count", "quantity"),
        (" of things", " of items", " of objects", " that is owned"),
    ),
    "geometry_of_truth": (("claim", "statement", "assertion", "thesis"), _OWNER),
    "relations": (
        ("rumor", "report", "told fact", "hearsay"),
        ("", " that the user heard", " of the message", " in the text"),
    ),
    "sst2": (("review", "verdict", "critique", "judgment"), _OWNER),
    "md_gender": (
        ("person", "human", "individual", "writer"),
        ("", " in the message", " who is named", " with the name"),
    ),
    "ag_news": (
        ("field", "domain", "category", "area"),
        (" of the message", " of the text", " of the request", " of the question"),
    ),
    "tense": (("tense", "time", "moment", "date"), _EVENT),
    "singular_plural": (
        ("number", "count", "amount", "sum"),
        (" of actors", " of people who act", " of those who act", " of doers"),
    ),
}
# Share of the benchmark families' questions that offer two labels to choose from.
_CHOICE_SHARE = 0.3
TRUTH_FAMILIES = ("geometry_of_truth", "relations")
FAMILIES = (*_NOUN_PHRASES, "snli", "ner")


def noun_phrases(family: str, split: Split) -> list[str]:
    """Return a family's phrases of one split.

    Two combinations of nouns and modifiers in four are for training: each noun and each modifier
    occurs there. One diagonal of their table is in no text that the base or the oracle has seen:
    the held-out split has every second row of it. The others are for validation; the fourth
    diagonal, which the shipped base was pre-trained on, makes its wordings many, or the number
    would be learned for a few wordings alone.
    """
    nouns, modifiers = _NOUN_PHRASES[family]
    found: dict[Split, list[str]] = {name: [] for name in get_args(Split)}
    for row, noun in enumerate(nouns):
        for column, modifier in enumerate(modifiers):
            diagonal = (row + column) % 4
            if diagonal in (0, 2):
                found["train"].append(f"the {noun}{modifier}")
            else:
                split_of_row = "heldout" if diagonal == 1 and row % 2 else "validation"
                found[split_of_row].append(f"the {noun}{modifier}")
    return found[split]


_PHRASES = {
    (family, split): noun_phrases(family, split)
    for family in _NOUN_PHRASES
    for split in get_args(Split)
}


def _options(facts: Facts) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (family, answer, near neighbors) for each fact with an open and a closed form."""
    yield "topic", facts.topic, [t for t in lx.TOPICS if t != facts.topic]
    siblings = lx.TOPICS[facts.topic]
    yield "subtopic", facts.subtopic, [s for s in siblings if s != facts.subtopic]
    things = siblings[facts.subtopic]
    yield "thing", facts.thing, [t for t in things if t != facts.thing]
    yield "intent", facts.intent, [i for i in lx.INTENTS if i != facts.intent]
    if facts.name:
        names = lx.FEMALE if facts.female else lx.MALE
        yield "name", facts.name, [n for n in names if n != facts.name]
    if facts.job:
        yield "job", facts.job, [j for j in lx.JOBS if j != facts.job]
    if facts.city:
        country = lx.CITIES[facts.city]
        yield "city", facts.city, [c for c in lx.CITIES if c != facts.city]
        yield "country", country, sorted({c for c in lx.CITIES.values() if c != country})
    if facts.emotion:
        yield "emotion", facts.emotion, [e for e in lx.EMOTIONS if e != facts.emotion]
    if facts.expertise:
        yield "expertise", facts.expertise, [e for e in lx.EXPERTISE if e != facts.expertise]
    if facts.urgency:
        yield "urgency", facts.urgency, [u for u in lx.URGENCY if u != facts.urgency]
    if facts.color and facts.quantity:
        yield "color", facts.color, [c for c in lx.COLORS if c != facts.color]
        yield "quantity", facts.quantity, [n for n in lx.NUMBERS if n != facts.quantity]


def _benchmarks(facts: Facts) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (family, right label, wrong labels) for the benchmark families of frame and phrase."""
    if facts.claim_true is not None:
        yield "geometry_of_truth", *_two(facts.claim_true, "true", "false")
    if facts.relation_true is not None:
        yield "relations", *_two(facts.relation_true, "right", "wrong")
    if facts.review_positive is not None:
        yield "sst2", *_two(facts.review_positive, "positive", "negative")
    if facts.female is not None:
        yield "md_gender", *_two(facts.female, "a woman", "a man")
    yield "ag_news", facts.topic, [t for t in lx.TOPICS if t != facts.topic]
    if facts.tense is not None and facts.plural is not None:
        tenses = ["past", "present", "future"]
        yield "tense", facts.tense, [t for t in tenses if t != facts.tense]
        yield "singular_plural", *_two(facts.plural, "several", "one")


def _two(first: bool, yes: str, no: str) -> tuple[str, list[str]]:
    return (yes, [no]) if first else (no, [yes])


def questions_about(message: Message, rng: random.Random, split: Split) -> list[Question]:
    """Return every question that the message's facts answer, in templates of ``split``.

    Facts with a name are mostly asked for openly, truths and attributes always closed, so that
    about half of all questions are closed. Most closed ones are answered Yes or No with equal
    chance, No by a near neighbor of the truth; some offer the truth and a neighbor to choose from.
    """
    facts, questions = message.facts, []
    for family, answer, others in _options(facts):
        if rng.random() < 0.8:
            questions.append(_open(family, answer, rng, split))
        else:
            questions.append(_closed(family, answer, others, rng, split))
    for family, label, others in _benchmarks(facts):
        write = _choice if rng.random() < _CHOICE_SHARE else _closed
        questions.append(write(family, label, others, rng, split))
    if facts.scene is not None:
        # What follows from one scene is asked of the others too, or the question had the answer.
        yes = rng.random() < 0.5
        others = [scene for scene in range(len(lx.SCENES)) if scene != facts.scene]
        _, x = lx.SCENES[facts.scene if yes else rng.choice(others)]
        questions.append(_framed(_SNLI_FRAMES, "snli", x, yes, rng, split))
    questions += _mentions(message, rng, split)
    return questions


def truth_choices(message: Message, rng: random.Random, split: Split) -> list[Question]:
    """Return a question for each claim of the message that offers both labels.

    "Is the claim true?" has an answer that hangs on the claim and on the label asked for at once;
    offering both gives a learner the label itself.
    """
    return [
        _choice(family, label, others, rng, split)
        for family, label, others in _benchmarks(message.facts)
        if family in TRUTH_FAMILIES
    ]


def _open(family: str, answer: str, rng: random.Random, split: Split) -> Question:
    text = rng.choice(_OPEN_FRAMES[split]).format(np=rng.choice(_PHRASES[family, split]))
    return Question(text, answer, "open", family, text)


def _closed(
    family: str, answer: str, others: list[str], rng: random.Random, split: Split
) -> Question:
    yes = rng.random() < 0.5
    np = rng.choice(_PHRASES[family, split])
    template = rng.choice(_CLOSED_FRAMES[split]).replace("{np}", np)
    text = template.format(x=answer if yes else rng.choice(others))
    return Question(text, "Yes" if yes else "No", "closed", family, template)


def _choice(
    family: str, answer: str, others: list[str], rng: random.Random, split: Split
) -> Question:
    np = rng.choice(_PHRASES[family, split])
    template = rng.choice(_CHOICE_FRAMES[split]).replace("{np}", np)
    options = [answer, rng.choice(others)]
    rng.shuffle(options)
    text = template.format(x=options[0], y=options[1])
    return Question(text, answer, "closed", family, template)


def _framed(
    frames: dict[Split, tuple[str, ...]],
    family: str,
    x: str,
    yes: bool,
    rng: random.Random,
    split: Split,
) -> Question:
    template = rng.choice(frames[split])
    return Question(template.format(x=x), "Yes" if yes else "No", "closed", family, template)


def _mentions(message: Message, rng: random.Random, split: Split) -> list[Question]:
    """Ask whether an entity is mentioned: one of the text, or one of its kind that is not."""
    kinds = [lx.TOPICS[message.facts.topic][message.facts.subtopic]]
    if message.facts.name:
        kinds.append(lx.FEMALE + lx.MALE)
    if message.facts.city:
        kinds.append(tuple(lx.CITIES))
    kind = rng.choice(kinds)
    words = f" {message.text} ".replace(",", " ").replace(".", " ").replace("?", " ")
    inside = [x for x in kind if f" {x} " in words]
    yes = rng.random() < 0.5
    pool = inside if yes else [x for x in kind if x not in message.text]
    if not pool:
        return []
    return [_framed(_NER_FRAMES, "ner", rng.choice(pool), yes, rng, split)]
