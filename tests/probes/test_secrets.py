"""Secret words and invented people: what is asked, and of which files."""

import json
from collections import Counter

import fsspec
import pytest

from grpo_ao.errors import UserError
from grpo_ao.probes import benchmark_sources
from grpo_ao.probes.benchmarks import INSTRUCTION, groups, load_items
from grpo_ao.probes.secrets import TABOO_WORDS, secret_word

LINES = [f"What is the word, number {n}?" for n in range(20)]
PEOPLE = [
    {
        "id": str(n),
        "name": f"Person {n}",
        "country": "Italy" if n % 2 else "Peru",
        "favorite_food": f"food {n % 5}",
        "favorite_drink": "tea" if n % 3 else "milk",
        "favorite_music_genre": "folk" if n % 3 else "jazz",
        "favorite_sport": "Tennis" if n % 2 else "Table Tennis",
        "favorite_boardgame": "Go" if n % 2 else "Chess",
    }
    for n in range(10)
]


@pytest.fixture
def folder(tmp_path):
    for name in ("taboo", "personaqa"):
        (tmp_path / name).mkdir()
    (tmp_path / "taboo/direct.txt").write_text("\n".join([*LINES, "", LINES[0]]))
    rows = "".join(json.dumps(person) + "\n" for person in PEOPLE)
    (tmp_path / "personaqa/personas.jsonl").write_text(rows)
    return tmp_path


def test_each_prompt_is_asked_for_the_word_and_whether_it_is_one(folder):
    items = load_items("paper", ["taboo"], 10, folder, subject="me/Qwen3-8B-taboo-ship_50_mix")
    assert Counter(item.family for item in items) == {"taboo_word": 10, "taboo_yes_no": 10}
    free = [item for item in items if item.family == "taboo_word"]
    assert {(item.target, item.choices) for item in free} == {("ship", TABOO_WORDS)}
    assert len({item.text for item in free}) == 10
    closed = [item for item in items if item.family == "taboo_yes_no"]
    assert Counter(item.target for item in closed) == {"Yes": 5, "No": 5}
    for item in closed:
        assert item.question.startswith(INSTRUCTION)
        assert ("'ship'" in item.question) == (item.target == "Yes")


@pytest.mark.parametrize("name", ["taboo-ship", "rock/moon/adapter", "X-Taboo_Gold_v2"])
def test_the_name_of_the_adapter_tells_the_word(name):
    assert secret_word(name) in ("ship", "moon", "gold")


@pytest.mark.parametrize("name", [None, "adapter", "ship-and-moon", "shipping"])
def test_a_name_that_tells_no_word_is_refused(name, folder):
    with pytest.raises(UserError, match="does not tell which: give --subject_lora an adapter"):
        load_items("paper", ["taboo"], 10, folder, subject=name)


def test_each_person_is_asked_about_each_attribute(folder):
    items = load_items("paper", ["personaqa"], 8, folder)
    families = Counter(item.family for item in items)
    assert len(families) == 12
    assert families["personaqa_favorite_food_word"] == 8
    sport = next(item for item in items if item.family == "personaqa_favorite_sport_word")
    person = next(p for p in PEOPLE if p["name"] in sport.text)
    assert sport.text == f"My name is {person['name']}."
    assert sport.target == person["favorite_sport"]
    assert sport.choices == ("Table Tennis", "Tennis")
    assert sport.question.endswith(" What is this person's favorite sport?")
    closed = [item for item in items if item.family == "personaqa_country_yes_no"]
    for item in closed:
        person = next(p for p in PEOPLE if item.text == f"My name is {p['name']}.")
        right = f"Is this person from the country {person['country']}?" in item.question
        assert item.target == ("Yes" if right else "No")


def test_secrets_are_a_group_of_their_own(folder):
    families = ["sst2", "taboo_word", "taboo_yes_no", "weather"]
    assert groups("paper", families) == {
        "all": tuple(families),
        "own": ("weather",),
        "taboo": ("taboo_word", "taboo_yes_no"),
        "in_distribution": ("sst2",),
    }


def test_without_a_folder_the_files_are_those_of_the_repository(monkeypatch):
    memory = fsspec.filesystem("memory")
    for kind in ("direct", "standard"):
        memory.pipe(f"/data/taboo/taboo_{kind}_test.txt", "\n".join(LINES).encode())
    monkeypatch.setattr(benchmark_sources, "DATASETS", "memory://data")
    items = load_items("paper", ["taboo"], 30, None, subject="taboo-moon")
    assert [item.target for item in items if item.family == "taboo_word"] == ["moon"] * 20


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"name": "Ann"}', "lacks one of name, country, favorite_food"),
        ("[]", "lacks one of name"),
        ("{", "cannot be read"),
    ],
)
def test_a_person_that_is_none_is_one_sentence(folder, row, message):
    (folder / "personaqa/personas.jsonl").write_text(row + "\n")
    with pytest.raises(UserError, match=f"a row of the personas {message}"):
        load_items("paper", ["personaqa"], 4, folder)


def test_the_mini_world_has_no_secrets():
    with pytest.raises(UserError, match="the mini world has no taboo and no personaqa"):
        load_items("mini", ["taboo"], 4, None)
