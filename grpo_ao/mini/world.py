"""The mini world: messages to an assistant, written by a grammar from latent facts.

Each message asks something about a topic. Around the request stand up to five further sentences,
each drawn or left out by chance and put in a random order: who writes, how they feel, how much
they know, what they claim, what happened. A fact can so be told early, late, or not at all, and a
reader of the last tokens' activations knows it only partly.
"""

import random
from dataclasses import dataclass
from typing import Literal

from grpo_ao.mini import lexicon as lx
from grpo_ao.probe import Split, split_of, text_key, unit_draw

Tense = Literal["past", "present", "future"]
# The shipped weights were trained on all texts but these, half of what is held out otherwise.
_UNSEEN_SHARE = 0.1
_SHARE = 0.3
# What is claimed and told is harder to judge than the rest is to read: it comes more often.
_TRUTH_SHARE = 0.45
_MOST_EXTRAS = 5
# With the chat template's own tokens this makes more than the 20 positions that an oracle reads.
_FEWEST_WORDS = 16


@dataclass(frozen=True)
class Facts:
    """What a message tells; ``None`` where it does not tell."""

    topic: str
    subtopic: str
    thing: str
    intent: str
    name: str | None = None
    female: bool | None = None
    job: str | None = None
    city: str | None = None
    emotion: str | None = None
    expertise: str | None = None
    urgency: str | None = None
    claim_true: bool | None = None
    relation_true: bool | None = None
    review_positive: bool | None = None
    work: str | None = None
    scene: int | None = None
    tense: Tense | None = None
    plural: bool | None = None
    color: str | None = None
    quantity: str | None = None


@dataclass(frozen=True)
class Message:
    """A user's message, its facts, and an assistant's short reply that gathers them."""

    text: str
    facts: Facts
    reply: str


def split_of_message(text: str) -> Split | None:
    """Return a message's split; None if it is held out but the shipped weights have seen it."""
    split = split_of(text)
    unseen = unit_draw("split", text_key(text)) < _UNSEEN_SHARE
    return None if split == "heldout" and not unseen else split


def make_message(seed: int, index: int) -> Message:
    """Write message ``index`` of world ``seed``; the same text in every process."""
    rng = random.Random(f"message {seed} {index}")
    topic = rng.choice(list(lx.TOPICS))
    subtopic = rng.choice(list(lx.TOPICS[topic]))
    thing, other = rng.sample(lx.TOPICS[topic][subtopic], 2)
    intent = rng.choice(list(lx.INTENTS))
    request = rng.choice(lx.INTENTS[intent]).format(thing=thing, other=other)
    told: dict = {"topic": topic, "subtopic": subtopic, "thing": thing, "intent": intent}
    drawn = [w for w, share in _EXTRAS.items() if rng.random() < share]
    writers = rng.sample(drawn, min(len(drawn), _MOST_EXTRAS))
    spare = [w for w in rng.sample(list(_EXTRAS), len(_EXTRAS)) if w not in drawn]
    extras: list[str] = []
    while writers or _count_words([request, *extras]) < _FEWEST_WORDS:
        sentence, facts = (writers or spare).pop()(rng)
        extras.append(sentence)
        told |= facts
    place = rng.randint(0, len(extras))
    text = " ".join([*extras[:place], request, *extras[place:]])
    facts = Facts(**told)
    return Message(text, facts, _reply(facts))


def _count_words(sentences: list[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)


def _introduction(rng: random.Random) -> tuple[str, dict]:
    female = rng.random() < 0.5
    name = rng.choice(lx.FEMALE if female else lx.MALE)
    job, city = rng.choice(list(lx.JOBS)), rng.choice(list(lx.CITIES))
    told: dict = {"name": name, "female": female}
    form = rng.randrange(5)
    if form == 0:
        return rng.choice([f"My name is {name}.", f"This is {name} writing."]), told
    if form == 1:
        return f"I am {name}, a {job} from {city}.", told | {"job": job, "city": city}
    if form == 2:
        return f"{name} here, I live in {city}.", told | {"city": city}
    if form == 3:
        pronoun = "she" if female else "he"
        return f"I write for {name}, {pronoun} works as a {job}.", told | {"job": job}
    return f"I am a {job} in {city} and my name is {name}.", told | {"job": job, "city": city}


def _emotion(rng: random.Random) -> tuple[str, dict]:
    emotion = rng.choice(list(lx.EMOTIONS))
    return rng.choice(lx.EMOTIONS[emotion]), {"emotion": emotion}


def _expertise(rng: random.Random) -> tuple[str, dict]:
    level = rng.choice(list(lx.EXPERTISE))
    return rng.choice(lx.EXPERTISE[level]), {"expertise": level}


def _urgency(rng: random.Random) -> tuple[str, dict]:
    urgency = rng.choice(list(lx.URGENCY))
    return rng.choice(lx.URGENCY[urgency]), {"urgency": urgency}


def _claim(rng: random.Random) -> tuple[str, dict]:
    """Write a true or false statement of numbers, animals or cities."""
    true = rng.random() < 0.5
    # Numbers come more rarely: their 110 pairs take the base longest to learn.
    form = rng.choice([0, 1, 1, 2, 2])
    if form == 0:
        low, high = sorted(rng.sample(range(len(lx.NUMBERS)), 2))
        first, second = (high, low) if rng.random() < 0.5 else (low, high)
        word = "larger" if (first > second) == true else "smaller"
        statement = f"{lx.NUMBERS[first]} is {word} than {lx.NUMBERS[second]}"
    elif form == 1:
        animal = rng.choice(list(lx.ANIMALS))
        statement = f"the {animal} is a kind of {_pick(rng, lx.ANIMALS, animal, true)}"
    else:
        city = rng.choice(list(lx.CITIES))
        statement = f"the city of {city} lies in {_pick(rng, lx.CITIES, city, true)}"
    opening = rng.choice(["I claim that", "I am sure that", "I say that", "I believe that"])
    return f"{opening} {statement}.", {"claim_true": true}


def _relation(rng: random.Random) -> tuple[str, dict]:
    """Write a right or wrong pair: job and tool, country and capital, fruit and color."""
    true = rng.random() < 0.5
    form = rng.randrange(3)
    if form == 0:
        job = rng.choice(list(lx.JOBS))
        statement = f"a {job} works with the {_pick(rng, lx.JOBS, job, true)}"
    elif form == 1:
        country = rng.choice(list(lx.CAPITALS))
        statement = f"the capital of {country} is {_pick(rng, lx.CAPITALS, country, true)}"
    else:
        fruit = rng.choice(list(lx.FRUIT_COLORS))
        statement = f"a {fruit} is {_pick(rng, lx.FRUIT_COLORS, fruit, true)} outside"
    opening = rng.choice(["Someone told me that", "I was told that", "I heard from them that"])
    return f"{opening} {statement}.", {"relation_true": true}


def _pick(rng: random.Random, table: dict[str, str], key: str, true: bool) -> str:
    if true:
        return table[key]
    return rng.choice(sorted({value for value in table.values() if value != table[key]}))


def _review(rng: random.Random) -> tuple[str, dict]:
    positive = rng.random() < 0.5
    work = rng.choice(lx.WORKS)
    opening = rng.choice([f"We saw a {work},", f"About the {work},", f"As for the new {work},"])
    verdict = rng.choice(lx.PRAISE if positive else lx.SCORN)
    return f"{opening} {verdict}.", {"review_positive": positive, "work": work}


def _scene(rng: random.Random) -> tuple[str, dict]:
    scene = rng.randrange(len(lx.SCENES))
    subject = rng.choice(["My uncle", "My aunt", "The old man", "The girl next door", "The boss"])
    return f"{subject} {lx.SCENES[scene][0]}.", {"scene": scene}


def _event(rng: random.Random) -> tuple[str, dict]:
    tense: Tense = rng.choice(["past", "present", "future"])
    plural = rng.random() < 0.5
    past, singular, many, future = rng.choice(lx.EVENTS)
    verb = {"past": past, "present": many if plural else singular, "future": future}[tense]
    noun = rng.choice(lx.SINGULAR)
    subject = rng.choice(["The", "My"]) + " " + (noun + "s" if plural else noun)
    return f"{subject} {verb}.", {"tense": tense, "plural": plural}


def _things(rng: random.Random) -> tuple[str, dict]:
    quantity, color = rng.choice(lx.NUMBERS), rng.choice(lx.COLORS)
    what = rng.choice(["boxes", "chairs", "bags", "bottles", "lamps", "cups"])
    form = rng.choice(["There are {} here.", "I own {}.", "{} are on my desk."])
    sentence = form.format(f"{quantity} {color} {what}")
    return sentence[0].upper() + sentence[1:], {"quantity": quantity, "color": color}


_EXTRAS = {
    _introduction: _SHARE,
    _emotion: _SHARE,
    _expertise: _SHARE,
    _urgency: _SHARE,
    _claim: _TRUTH_SHARE,
    _relation: _TRUTH_SHARE,
    _review: _SHARE,
    _scene: _SHARE,
    _event: _SHARE,
    _things: _SHARE,
}


def _reply(facts: Facts) -> str:
    """Gather the facts: to foresee this reply a model has to collect them at the message's end."""
    parts = [
        f"So you ask for {facts.intent} in {facts.topic}, {facts.subtopic}: the {facts.thing}."
    ]
    who = [part for part in (facts.name, facts.job, facts.city) if part]
    if who:
        parts.append(f"I note {', '.join(who)}.")
    state = [part for part in (facts.emotion, facts.expertise) if part]
    if state:
        parts.append(f"You seem {' and '.join(state)}.")
    if facts.urgency:
        parts.append(f"The urgency is {facts.urgency}.")
    if facts.claim_true is not None:
        parts.append(f"Your claim is {'true' if facts.claim_true else 'false'}.")
    if facts.relation_true is not None:
        parts.append(f"What you were told is {'right' if facts.relation_true else 'wrong'}.")
    if facts.review_positive is not None:
        parts.append(f"The {facts.work} was {'good' if facts.review_positive else 'bad'}.")
    if facts.color:
        parts.append(f"I see {facts.quantity} in {facts.color}.")
    if facts.tense:
        parts.append(f"The event is {facts.tense}, by {'several' if facts.plural else 'one'}.")
    return " ".join(parts)
