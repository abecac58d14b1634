import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import fsspec
import pytest
from aiohttp import ClientPayloadError, ServerDisconnectedError
from datasets.exceptions import DatasetGenerationError

from grpo_ao.errors import UserError
from grpo_ao.probe import Positions, Split, split_of
from grpo_ao.probes import benchmark_sources
from grpo_ao.probes.benchmark_sources import (
    Context,
    Templates,
    entities,
    load_contexts,
    load_templates,
)
from grpo_ao.probes.benchmarks import (
    INSTRUCTION,
    groups,
    load_items,
    load_own_items,
    make_items,
    split_templates,
    training_items,
)
from grpo_ao.probes.items import Item, probes_of
from grpo_ao.probes.names import BENCHMARKS, IN_DISTRIBUTION, check_benchmarks

CONTEXTS = [Context(f"text {n}", ("a", "b"), ("c",)) for n in range(400)]
WORDINGS = [f"Is it {{}} in wording {n}?" for n in range(10)]


def items(
    contexts: Sequence[Context] = CONTEXTS,
    templates: Templates = WORDINGS,
    split: Split = "heldout",
    count: int | None = 40,
    benchmark="sst2",
):
    return make_items(benchmark, contexts, templates, split, count)


# Answers


# Splits


def test_the_splits_share_no_context_and_no_wording():
    heldout, train = items(count=None), items(split="train", count=None)
    assert heldout and train
    assert not {i.text for i in heldout} & {i.text for i in train}
    wording = lambda item: item.question.split()[-1]  # noqa: E731
    assert not {wording(i) for i in heldout} & {wording(i) for i in train}


def test_an_item_does_not_depend_on_the_order_or_the_number_of_contexts():
    assert items(CONTEXTS[::-1]) == items(CONTEXTS)
    every = set(items(count=None))
    assert set(items(count=10)) < set(items(count=40)) < every
    # Other contexts beside it change neither a context's split nor its question.
    known = {item.text: item for item in every}
    some = [item for item in items(CONTEXTS[100:], count=None) if item.text in known]
    assert len(some) > 20
    assert all(item == known[item.text] for item in some)


def test_templates_of_each_label_are_divided_among_the_splits():
    templates = {label: [f"About {label}, {n}?" for n in range(20)] for label in "ab"}
    parts = [split_templates(templates, split, whole=False) for split in get_args(Split)]
    for label, wordings in templates.items():
        found = [part[label] for part in parts if isinstance(part, dict)]
        assert sorted(map(len, found)) == [5, 6, 9]
        assert {wording for part in found for wording in part} == set(wordings)


def test_few_templates_leave_each_split_one():
    parts = [split_templates(["a", "b", "c"], split, whole=False) for split in get_args(Split)]
    assert sorted(map(len, parts)) == [1, 1, 1]
    with pytest.raises(UserError, match="2 wordings of a question are too few"):
        split_templates(["a", "b"], "train", whole=False)


def test_what_no_oracle_was_trained_on_is_held_out_whole():
    outside = items(count=None, benchmark="ag_news")
    assert len({i.text for i in outside}) > 300
    with pytest.raises(ValueError, match="train split of ag_news has 0 contexts"):
        items(split="train", benchmark="ag_news")


def test_what_the_program_holds_out_is_asked_first_where_all_is_held_out():
    first = items(count=40, benchmark="ag_news")
    assert {split_of(item.text) for item in first} == {"heldout"}


def test_validation_has_texts_and_wordings_of_its_own():
    wording = lambda item: item.question.split()[-1]  # noqa: E731
    validation, train = items(split="validation", count=None), items(split="train", count=None)
    assert {split_of(item.text) for item in validation} == {"validation"}
    assert not {wording(item) for item in validation} & {wording(item) for item in train}


def test_of_the_contexts_of_one_sample_one_is_asked_about():
    pairs = [
        Context(f"{answer} {n}", right, wrong, sample=str(n))
        for n in range(400)
        for answer, right, wrong in (("so", ("x",), ()), ("not", (), ("x",)))
    ]
    numbers = [item.text.split()[1] for item in make_items("sst2", pairs, ["{}?"], "heldout", None)]
    assert len(set(numbers)) == len(numbers) > 40


def test_half_of_the_answers_are_yes():
    assert Counter(i.target for i in items()) == {"Yes": 20, "No": 20}
    assert Counter(i.target for i in items(count=None))["Yes"] == len(items(count=None)) / 2


def test_the_answer_is_that_of_the_label_that_is_asked_for():
    for item in items(count=None):
        label = item.question.removeprefix(INSTRUCTION + "Is it ").split()[0]
        assert item.target == ("Yes" if label in ("a", "b") else "No")


def test_a_context_without_a_label_on_one_side_is_asked_on_the_other():
    contexts = [
        Context(f"{n}", ("x",), ()) if n % 2 else Context(f"{n}", (), ("x",)) for n in range(400)
    ]
    for item in items(contexts, count=None):
        assert item.target == ("Yes" if int(item.text) % 2 else "No")


def test_each_label_has_wordings_of_its_own_where_they_are_given_so():
    templates = {label: [f"About {label}, {n}?" for n in range(5)] for label in "abc"}
    for item in items(templates=templates):
        assert item.question.removeprefix(INSTRUCTION + "About ")[0] in "abc"


def test_too_little_data_is_one_sentence():
    with pytest.raises(
        ValueError, match="heldout split of sst2 has 0 contexts with the answer Yes"
    ):
        items([])
    with pytest.raises(ValueError, match="needs both"):
        items([Context(f"{n}", ("x",), ()) for n in range(40)])


def test_an_unknown_benchmark_is_named():
    with pytest.raises(ValueError, match="no benchmark 'sst3': choose from geometry_of_truth"):
        check_benchmarks(["sst2", "sst3"])


def test_groups_tell_apart_what_the_public_oracles_were_trained_on():
    assert groups("paper", BENCHMARKS)["in_distribution"] == IN_DISTRIBUTION
    assert groups("paper", ["sst2"]) == {"all": ("sst2",), "in_distribution": ("sst2",)}
    assert groups("mini", BENCHMARKS) == {"all": BENCHMARKS}


# Training


def test_a_training_context_is_asked_several_different_questions(tmp_path):
    rows = [[f"text {n}", n % 2] for n in range(300)]
    write_csv(tmp_path / "sst2/a.tsv", ["sentence", "label"], *rows, delimiter="\t")
    templates = {"sst2": [f"Is it {{}} in wording {n}?" for n in range(10)]}
    (tmp_path / "question_paraphrases.json").write_text(json.dumps(templates))
    once, four = (training_items("sst2", tmp_path, count) for count in (1, 4))
    assert {split_of(item.text) for item in four} == {"train"}
    assert set(once) < set(four)
    assert len({item.text for item in once}) == len(once)
    assert 3 * len(once) < len(four) == len(set(four)) <= 4 * len(once)
    assert Counter(item.target for item in four)["Yes"] / len(four) == pytest.approx(0.5, abs=0.02)
    # Of the ten wordings five are taught, and two are left to the calibration.
    kept = training_items("sst2", tmp_path, 4, "validation")
    taught, untaught = ({i.question.split()[-1] for i in part} for part in (four, kept))
    assert (len(taught), len(untaught), len(taught & untaught)) == (5, 2, 0)
    for item in four:
        positive = int(item.text.removeprefix("text ")) % 2 == 1
        assert item.target == ("Yes" if ("positive" in item.question) == positive else "No")


# A file of one's own


OWN = {"text": "It rains.", "question": "Does it rain?", "target": "Yes", "family": "weather"}


def own_file(tmp_path, *rows):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_own_items_are_asked_as_they_stand_and_named_by_their_family(tmp_path):
    path = own_file(tmp_path, OWN, OWN | {"question": "Is it dry?", "target": "No"})
    items = load_items("mini", ["tense", str(path)], 4, None)
    assert [item.family for item in items] == ["tense"] * 4 + ["weather"] * 2
    assert items[4] == Item("weather", "It rains.", "Does it rain?", "Yes")
    assert load_items("paper", [str(path)], 4, None) == items[4:]
    families = list(dict.fromkeys(item.family for item in items))
    assert groups("mini", families) == {"all": ("tense", "weather"), "own": ("weather",)}


def test_an_own_row_that_is_there_twice_counts_once_and_one_of_two_answers_is_refused(tmp_path):
    assert len(load_own_items(own_file(tmp_path, OWN, OWN | {"family": "rain"}, OWN))) == 2
    with pytest.raises(UserError, match=r"row 2 of .* asks what an earlier row asks"):
        load_own_items(own_file(tmp_path, OWN, OWN | {"target": "No"}))


def test_an_own_row_with_half_of_a_surrogate_pair_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"row 1 of .* holds half of a surrogate pair"):
        load_own_items(own_file(tmp_path, OWN | {"question": "Is it \ud800?"}))


def test_own_items_may_have_answers_of_their_own(tmp_path):
    path = own_file(tmp_path, OWN | {"target": "wet", "choices": ["wet", "dry"]})
    (item,) = load_own_items(path)
    assert (item.target, item.choices) == ("wet", ("wet", "dry"))
    (probe,) = probes_of([item], [(2,)], [Positions(3)])
    assert (probe.kind, probe.choices) == ("closed", ("wet", "dry"))
    path = own_file(tmp_path, OWN | {"target": "of rain", "kind": "open"})
    (probe,) = probes_of(load_own_items(path), [(2,)], [Positions(3)])
    assert (probe.kind, probe.reference) == ("open", "of rain")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"target": "maybe"}, "row 2 of .* has the target 'maybe'"),
        ({"choices": ["wet", "dry"]}, "row 2 of .* has the target 'Yes'.*row's 'choices'"),
        ({"kind": "vague"}, "row 2 of .* has the kind 'vague': write closed or open"),
        ({"choices": "wet"}, "row 2 of .* has 'choices' that are no list of texts"),
        ({"family": "taboo_word"}, "a benchmark's: name it otherwise"),
        ({"target": None}, "row 2 of .* has no 'target'"),
        ({"text": " "}, "row 2 of .* has no 'text'"),
        ({"family": "sst2"}, "a benchmark's: name it otherwise"),
    ],
)
def test_a_row_that_is_no_item_is_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load_own_items(own_file(tmp_path, OWN, OWN | change))


def test_a_file_without_items_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="has no rows"):
        load_own_items(own_file(tmp_path))
    with pytest.raises(UserError, match=r"row 1 of .* cannot be read: it is no object"):
        load_own_items(own_file(tmp_path, 5))
    with pytest.raises(UserError, match="there is no file"):
        load_items("mini", [str(tmp_path / "none.jsonl")], 4, None)


# The mini world's suite


def test_the_mini_suite_is_balanced_and_always_the_same():
    made = load_items("mini", BENCHMARKS, 6, None)
    assert Counter((i.family, i.target) for i in made) == {
        (family, target): 3 for family in BENCHMARKS for target in ("Yes", "No")
    }
    assert load_items("mini", BENCHMARKS, 6, None) == made
    assert load_items("mini", ["ner"], 6, None) == [i for i in made if i.family == "ner"]


# A folder


def write_csv(path, header, *rows, delimiter=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


def test_each_files_rows_become_contexts(tmp_path):
    write_csv(
        tmp_path / "geometry_of_truth/a.csv", ["statement", "label"], ["One is one.", 1], ["No.", 0]
    )
    write_csv(tmp_path / "sst2/a.tsv", ["sentence", "label"], ["fine ", 1], delimiter="\t")
    write_csv(tmp_path / "md_gender/a.csv", ["text", "label"], ["she", 1], ["it", 0], ["he", 2])
    snli = ["premise", "hypothesis", "label"]
    rows = [["p", "h0", 0], ["p", "h1", 1], ["p", "h2", 2]]
    write_csv(tmp_path / "snli/a.tsv", snli, *rows, delimiter="\t")
    write_csv(tmp_path / "ag_news/a.csv", ["Class Index", "Title", "Description"], [2, "T", "D"])
    (tmp_path / "tense").mkdir()
    (tmp_path / "tense/a.json").write_text('[{"sentence": "It was.", "label": "past"}]')
    write_csv(
        tmp_path / "singular_plural/a.csv", ["sentence", "n_subjects"], ["We go.", "multiple"]
    )
    assert load_contexts("geometry_of_truth", tmp_path) == [
        Context("One is one.", ("",), ()),
        Context("No.", (), ("",)),
    ]
    assert load_contexts("sst2", tmp_path) == [Context("fine", ("positive",), ("negative",))]
    assert [c.right for c in load_contexts("md_gender", tmp_path)] == [("female",), ("male",)]
    assert load_contexts("snli", tmp_path) == [Context("p", ("h0",), ("h2",))]
    others = ("World News", "Business", "Science/Technology")
    assert load_contexts("ag_news", tmp_path) == [Context("T\n\nD", ("Sports",), others)]
    assert load_contexts("tense", tmp_path) == [
        Context("It was.", ("past",), ("present", "future"))
    ]
    assert load_contexts("singular_plural", tmp_path) == [
        Context("We go.", ("multiple",), ("single",))
    ]


def test_a_relation_gives_a_true_and_a_false_context_of_each_sample(tmp_path):
    (tmp_path / "relations/factual").mkdir(parents=True)
    relation = {
        "prompt_templates": ["{} lies in"],
        "samples": [
            {"subject": "Rome", "object": "Italy"},
            {"subject": "Bonn", "object": "Germany"},
        ],
    }
    (tmp_path / "relations/factual/city.json").write_text(json.dumps(relation))
    assert load_contexts("relations", tmp_path) == [
        Context("Rome lies in Italy.", ("",), (), "Rome lies in Italy."),
        Context("Rome lies in Germany.", (), ("",), "Rome lies in Italy."),
        Context("Bonn lies in Germany.", ("",), (), "Bonn lies in Germany."),
        Context("Bonn lies in Italy.", (), ("",), "Bonn lies in Germany."),
    ]


def test_entities_are_runs_of_tags_and_each_b_starts_one():
    words = ["Mr.", "Abe", "of", "Tokyo", "Japan", "left", "May"]
    tags = ["B-per", "I-per", "O", "B-geo", "B-geo", "O", "I-tim"]
    assert entities(words, tags) == ["Mr. Abe", "Tokyo", "Japan"]


def test_a_sentence_is_asked_for_its_own_entities_and_for_one_of_another(tmp_path):
    header = ["Sentence #", "Word", "POS", "Tag"]
    first = [["Sentence: 1", "Rome", "", "B-geo"], ["", "is", "", "O"], ["", "old", "", "O"]]
    second = [["Sentence: 2", "Bonn", "", "B-geo"], ["", "too", "", "O"]]
    third = [["Sentence: 3", "Nothing", "", "O"]]
    write_csv(tmp_path / "ner/a.csv", header, *first, *second, *third)
    assert load_contexts("ner", tmp_path) == [
        Context("Rome is old", ("Rome",), ("Bonn",)),
        Context("Bonn too", ("Bonn",), ("Rome",)),
    ]


def test_equal_texts_are_one_context_and_a_label_that_is_both_is_neither(tmp_path):
    rows = [["same", 1], ["same", 0], ["other", 1]]
    write_csv(tmp_path / "sst2/a.tsv", ["sentence", "label"], *rows, delimiter="\t")
    assert load_contexts("sst2", tmp_path) == [
        Context("same", (), ()),
        Context("other", ("positive",), ("negative",)),
    ]


def test_missing_data_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no data of sst2 \(sst2/\*.tsv\)"):
        load_contexts("sst2", tmp_path)
    write_csv(tmp_path / "sst2/a.tsv", ["sentence", "grade"], ["x", 1], delimiter="\t")
    with pytest.raises(ValueError, match=r"a\.tsv has no column 'label'"):
        load_contexts("sst2", tmp_path)
    with pytest.raises(UserError, match=r"no question_paraphrases\.json"):
        load_items("paper", ["sst2"], 4, tmp_path)
    with pytest.raises(UserError, match="there is no data folder"):
        load_items("paper", ["sst2"], 4, tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sst2/a.tsv", b"sentence\tlabel\nbad \xff\t1\n"),
        ("sst2/a.tsv", b"sentence\tlabel\nbad\tmany\n"),
        ("sst2/a.tsv", b"sentence\tlabel\nbad\n"),
        ("sst2/a.tsv", b"sentence\tlabel\nbad\t7\n"),
        ("ag_news/a.csv", b"Class Index,Title,Description\n0,Old,News\n"),
        ("snli/a.tsv", b"premise\thypothesis\tlabel\nIt is.\tIt is.\tyes\n"),
        ("tense/a.json", b"[1]"),
        ("tense/a.json", b"["),
        ("tense/a.json", b"[" * 100_000),
        ("tense/a.json", b'{"sentence": "It is."}'),
        ("relations/a/a.json", b'{"prompt_templates": ["{} is"], "samples": [{}]}'),
        ("relations/a/a.json", b'{"prompt_templates": [], "samples": []}'),
        ("relations/a/a.json", b"\xff"),
        ("relations/a/a.json", b"[]"),
        ("question_paraphrases.json", b"[]"),
        ("question_paraphrases.json", b'{"snli": "So?"}'),
        ("question_paraphrases.json", b"{"),
    ],
)
def test_a_damaged_file_is_one_sentence_with_its_name_or_its_folders(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    read = load_templates if name.startswith("question") else load_contexts
    with pytest.raises(UserError, match=rf"{tmp_path}.* (cannot be read|has no)"):
        read(Path(name).parts[0] if "/" in name else "snli", tmp_path)


def test_a_bug_of_our_own_is_not_told_as_a_damaged_file(tmp_path, monkeypatch):
    def bug(*_):
        raise IndexError("a bug")

    path = tmp_path / "relations/a.json"
    path.parent.mkdir()
    path.write_text('{"prompt_templates": ["{} is"], "samples": [{"subject": "A", "object": "B"}]}')
    monkeypatch.setattr(benchmark_sources, "drawn_from", bug)
    with pytest.raises(IndexError, match="a bug"):
        load_contexts("relations", tmp_path)


def test_templates_come_from_the_folder(tmp_path):
    (tmp_path / "question_paraphrases.json").write_text(
        '{"snli": ["So?"], "sst2": {"positive": []}}'
    )
    assert load_templates("snli", tmp_path) == ["So? {}"]
    assert load_templates("sst2", tmp_path) == {"positive": []}
    with pytest.raises(ValueError, match="no templates for ner"):
        load_templates("ner", tmp_path)


# The network


HUB = {
    "stanfordnlp/sst2": [{"sentence": "good", "label": 1}],
    "stanfordnlp/snli": [{"premise": "p", "hypothesis": "h", "label": 0}],
    "fancyzhx/ag_news": [{"text": "news", "label": 1}],
    "rjac/kaggle-entity-annotated-corpus-ner-dataset": [
        {"tokens": ["Old", "Rome", "fell"], "ner_tags": [3, 4, 0]},
        {"tokens": ["Bonn"], "ner_tags": [1]},
    ],
    "parquet": [{"text": "She sings.", "title": "Ann", "gender": 1}],
}


def test_rows_of_the_hub_become_the_same_contexts(monkeypatch):
    monkeypatch.setattr(benchmark_sources, "load_dataset", lambda name, **_: HUB[name])
    assert load_contexts("sst2", None)[0].right == ("positive",)
    assert load_contexts("snli", None) == [Context("p", ("h",), ())]
    assert load_contexts("ag_news", None)[0].right == ("Sports",)
    assert load_contexts("ner", None)[0] == Context("Old Rome fell", ("Old Rome",), ("Bonn",))
    (person,) = load_contexts("md_gender", None)
    assert person == Context("She sings.\n\nThis text is about Ann.", ("female",), ("male",))


FILES = {
    "gmt/cities.csv": "statement,label,city\nTrue it is.,1,Rome\n",
    "gmt/sp_en_trans.csv": "statement,label\nFalse it is.,0\n",
    "gmt/smaller_than.csv": "statement,label\nTwo is less.,1\n",
    "gmt/larger_than.csv": "statement,label\nTwo is more.,0\n",
    "gmt/companies_true_false.csv": "statement,label\nIt sells.,1\n",
    "singular_plural/singular_plural.csv": "sentence,n_subjects\nBob is.,single\n",
    "tense/tense_processed.json": '[{"sentence": "It is.", "label": "present"}]',
    "relations/factual/b.json": '{"prompt_templates": ["{} is"], "samples": '
    '[{"subject": "b", "object": "x"}]}',
    "relations/bias/a.json": '{"prompt_templates": ["{} is"], "samples": '
    '[{"subject": "a", "object": "x"}]}',
    "paraphrases/question.json": '{"tense": ["Is it {}?"], "snli": ["So?"]}',
}


@pytest.fixture
def repository(monkeypatch):
    """The repository of Activation Oracles, in memory."""
    memory = fsspec.filesystem("memory")
    for path, text in FILES.items():
        memory.pipe(f"/oracles/{path}", text.encode())
    monkeypatch.setattr(benchmark_sources, "REPOSITORY", "memory://oracles")
    monkeypatch.setattr(benchmark_sources, "LISTING", "memory://oracles")


def test_files_of_the_oracles_repository_are_read_as_those_of_a_folder(repository):
    truths = load_contexts("geometry_of_truth", None)
    assert [c.text for c in truths][:2] == ["False it is.", "True it is."]
    assert (truths[1].right, truths[1].sample) == (("",), "Rome")
    assert load_contexts("singular_plural", None)[0].right == ("single",)
    assert load_contexts("tense", None)[0].right == ("present",)


def test_every_relation_file_of_the_repository_is_read(repository):
    assert [c.text for c in load_contexts("relations", None)] == ["a is x.", "b is x."]


def test_without_a_folder_the_wordings_are_those_of_the_repository(repository):
    assert load_templates("tense", None) == ["Is it {}?"]
    assert load_templates("snli", None) == ["So? {}"]
    with pytest.raises(UserError, match=r"question\.json has no templates for ner"):
        load_templates("ner", None)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("offline"),
        ClientPayloadError("offline"),
        ServerDisconnectedError("offline"),
        DatasetGenerationError("offline"),
    ],
)
def test_no_network_is_one_sentence(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(benchmark_sources, "load_dataset", fail)
    name = type(error).__name__
    with pytest.raises(UserError, match=rf"of sst2 could not be fetched \({name}: offline\): .*"):
        load_contexts("sst2", None)
