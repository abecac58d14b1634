"""What the supervised stage leaves to the calibration."""

import csv
import json
from collections import Counter
from dataclasses import replace

import pytest

from grpo_ao.probe import split_of
from grpo_ao.probes.items import Item
from grpo_ao.probes.rows import load_rows
from grpo_ao.training.make_oracle import Sources
from grpo_ao.training.make_oracle_config import MakeOracleConfig
from grpo_ao.training.untaught import SORTS, form_examples, write_question_set

WORDS = ["amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty"]


@pytest.fixture
def config(tmp_path) -> MakeOracleConfig:
    """A benchmark of 400 texts, 400 labelled ones and 400 plain ones."""
    (tmp_path / "sst2").mkdir()
    with (tmp_path / "sst2/a.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["sentence", "label"])
        writer.writerows([f"review {n} of a film", n % 2] for n in range(400))
    templates = {"sst2": [f"Is it {{}} in wording {n}?" for n in range(12)]}
    (tmp_path / "question_paraphrases.json").write_text(json.dumps(templates))
    labelled, plain = tmp_path / "labelled.jsonl", tmp_path / "plain.txt"
    rows = [{"text": f"letter {n}", "label": ("good", "bad")[n % 2]} for n in range(400)]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [f"{WORDS[n % 10]} {WORDS[n // 10 % 10]} number {n}" for n in range(400)]
    plain.write_text("\n\n".join(texts))
    return MakeOracleConfig(
        model="none",
        output_dir=tmp_path / "run",
        benchmarks=("sst2",),
        data_dir=tmp_path,
        labelled=(labelled,),
        plain=str(plain),
        eval_examples=10,
    )


@pytest.fixture
def sources(config, monkeypatch) -> Sources:
    names = ("sst2",)
    monkeypatch.setattr("grpo_ao.training.make_oracle.BENCHMARKS", names)
    return Sources.load(config)


def test_no_text_and_no_wording_is_taught_and_asked_again(sources):
    assert not {e.text for e in sources.taught} & {e.text for e in sources.untaught}
    assert not {e.text for e in sources.untaught} & set(sources.plain)
    for source in ("sst2", "labelled", "mentions"):
        taught, untaught = (
            {_wording(e) for e in part if e.family == source}
            for part in (sources.taught, sources.untaught)
        )
        assert taught and untaught and not taught & untaught


def _wording(example: Item) -> str:
    words = [w for w in example.question.split() if w.strip("'?") not in WORDS]
    return " ".join(words).replace("positive", "").replace("negative", "").replace("good", "bad")


def test_every_split_has_questions_of_every_source(sources):
    found = {(e.family.partition(":")[0], split_of(e.text)) for e in sources.untaught}
    assert found == {
        (source, split)
        for source in ("sst2", "labelled", "mentions", "form")
        for split in ("train", "validation", "heldout")
    }


def test_the_set_is_read_back_with_its_answers_and_families(sources, tmp_path):
    path = tmp_path / "set.jsonl"
    asked = [*sources.untaught, Item("open", "A text.", "What is it?", "A text")]
    write_question_set(path, asked)
    rows = load_rows(str(path), strict=True).rows
    kinds = {"Yes": "closed", "No": "closed"}
    wanted = {replace(item, kind=kinds.get(str(item.target), "open")) for item in asked}
    assert {item for row in rows for item in row} == wanted
    assert len({row[0].text for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("name", "with_it", "without"),
    [
        ("digits", "It was 1912.", "It was long ago."),
        ("questions", "Who is it?", "Who it is."),
        ("speech", 'He said "no".', "He said no."),
        ("first person", "Then I left.", "Then Ina left."),
        ("women", "Then her aunt left.", "Then Herbert left."),
        ("sentences", "One. Two! Three? Four.", "One. Two. Three."),
        ("length", "word " * 60, "word " * 59),
        ("opening", '"Maybe so."', '"Now so."'),
    ],
)
def test_a_form_is_told_from_its_absence(name, with_it, without):
    (sort,) = (sort for sort in SORTS if sort.name == name)
    assert sort.holds(with_it) and not sort.holds(without)


def test_forms_are_asked_about_and_denied_alike_so_that_no_sort_tells_the_answer():
    texts = [f"Nobody has said so, {word} {n}." for n in range(400) for word in WORDS]
    found = list(form_examples(texts))
    assert [e.text for e in found] == texts
    for sort in SORTS:
        answers = Counter(e.target for e in found if e.family == f"form: {sort.name}")
        assert answers["Yes"] / answers.total() == pytest.approx(0.5, abs=0.1)
        assert answers.total() == pytest.approx(len(texts) / len(SORTS), rel=0.2)
