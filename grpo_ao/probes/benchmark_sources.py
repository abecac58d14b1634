"""The data of the nine benchmarks: from a folder, or from the Hub and the oracles' repository.

Every reader yields contexts: a text, and the labels for which a question about it is answered Yes
or No. What the benchmarks are made of is that of Activation Oracles (arXiv 2512.15674).
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

import fsspec
from datasets import load_dataset
from pydantic import Field, TypeAdapter, ValidationError

from grpo_ao.errors import UserError, first_line
from grpo_ao.files import read_faults
from grpo_ao.probe import drawn_from

Row = Mapping[str, Any]
Columns = Mapping[str, TypeAdapter]
"""What the columns of a table hold, by their names."""
Templates = Sequence[str] | Mapping[str, Sequence[str]]
"""Question templates with ``{}`` for a label or an entity, or one list of them for each label."""
DATASETS = "https://raw.githubusercontent.com/adamkarvonen/activation_oracles/main/datasets"
REPOSITORY = f"{DATASETS}/classification_datasets"
"""The files of Activation Oracles, read one by one; GitHub's API, which lists them, has a limit."""
LISTING = "github://adamkarvonen:activation_oracles@main/datasets/classification_datasets"
TEMPLATE_FILE = "question_paraphrases.json"
_TOPICS = ("World News", "Sports", "Business", "Science/Technology")


@dataclass(frozen=True)
class Context:
    """A text with the labels that are right for it and those that are wrong.

    A benchmark that asks for no label has the empty one on the side that its answer is on.
    ``sample`` names what it shares with other contexts (a subject, told truly and falsely).
    """

    text: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    sample: str = ""


def load_contexts(benchmark: str, data_dir: Path | None) -> list[Context]:
    """Return a benchmark's contexts, each text once, in the order of the data.

    Raises UserError, in one sentence, for missing data and for a missing column.
    """
    if data_dir:
        return _merged(_FOLDER[benchmark](data_dir))
    with _network(benchmark):
        return _merged(_NETWORK[benchmark]())


def load_templates(benchmark: str, data_dir: Path | None) -> Templates:
    """Return a benchmark's question templates: the folder's, or those of Activation Oracles.

    Raises UserError, in one sentence, where there are none.
    """
    name, text = _template_file(benchmark, data_dir)
    with read_faults(name):
        every = _OBJECT.validate_json(text)
    if benchmark not in every:
        raise UserError(f"{name} has no templates for {benchmark}.")
    with read_faults(name):
        templates = _TEMPLATES.validate_python(every[benchmark])
    if benchmark == "snli":  # the hypothesis stands behind the question
        return [f"{template} {{}}" for template in templates]
    return templates


def _template_file(benchmark: str, data_dir: Path | None) -> tuple[str, str]:
    if data_dir is None:
        with _network(benchmark):
            return "question.json", _fetched("paraphrases/question.json")
    path = data_dir / TEMPLATE_FILE
    if not path.is_file():
        raise UserError(f"the data folder {data_dir} has no {TEMPLATE_FILE}.")
    return str(path), _content(path)


def _merged(contexts: Iterable[Context]) -> list[Context]:
    """Join the labels of equal texts; a label that is right here and wrong there is neither."""
    labels: dict[str, tuple[list[str], list[str]]] = {}
    samples: dict[str, str] = {}
    for context in contexts:
        samples.setdefault(context.text, context.sample)
        right, wrong = labels.setdefault(context.text, ([], []))
        right.extend(context.right)
        wrong.extend(context.wrong)
    return [
        Context(
            text,
            tuple(x for x in dict.fromkeys(right) if x not in wrong),
            tuple(x for x in dict.fromkeys(wrong) if x not in right),
            samples[text],
        )
        for text, (right, wrong) in labels.items()
        if text
    ]


def _truths(rows: Iterable[Row]) -> Iterator[Context]:
    for row in rows:
        yield _no_label(row["statement"].strip(), row["label"] == 1, row.get("city", ""))


def _no_label(text: str, true: bool, sample: str) -> Context:
    return Context(text, ("",), (), sample) if true else Context(text, (), ("",), sample)


@dataclass(frozen=True)
class _Pair:
    """What stands in a relation to what."""

    subject: str
    object: str


@dataclass(frozen=True)
class _Relation:
    """A file of pairs, and sentences with ``{}`` for the subject, before the object."""

    prompt_templates: Annotated[list[str], Field(min_length=1)]
    samples: list[_Pair]


_RELATION = TypeAdapter(_Relation)
_OBJECT = TypeAdapter(dict[str, Any])
_TEMPLATES = TypeAdapter(list[str] | dict[str, list[str]])
_ROWS = TypeAdapter(list[dict[str, Any]])


def _relations(relation: _Relation) -> Iterator[Context]:
    """Fill a template with the true object, and with another object of the same relation."""
    objects = sorted({sample.object for sample in relation.samples})
    for sample in relation.samples:
        subject, true = sample.subject, sample.object
        template = drawn_from(relation.prompt_templates, "relation template", subject, true)
        text = f"{template.replace('{}', subject)} {true}."
        yield _no_label(text, True, text)
        others = [other for other in objects if other != true]
        if others:
            false = drawn_from(others, "relation object", subject, true)
            yield _no_label(f"{template.replace('{}', subject)} {false}.", False, text)


def _labelled(text: str, right: str, labels: Sequence[str]) -> Context:
    return Context(text, (right,), tuple(label for label in labels if label != right))


def _reviews(rows: Iterable[Row]) -> Iterator[Context]:
    labels = ("negative", "positive")
    for row in rows:
        yield _labelled(row["sentence"].strip(), labels[row["label"]], labels)


def _genders(rows: Iterable[Row]) -> Iterator[Context]:
    """Take funpedia's persons: 1 female, 2 male, 0 neither (left out)."""
    labels = ("female", "male")
    for row in rows:
        if row["label"]:
            yield _labelled(row["text"].strip(), labels[row["label"] - 1], labels)


def _inferences(rows: Iterable[Row]) -> Iterator[Context]:
    """Take entailment (0) and contradiction (2); the label is the hypothesis."""
    for row in rows:
        hypothesis = row["hypothesis"].strip()
        if row["label"] == 0:
            yield Context(row["premise"].strip(), (hypothesis,), ())
        elif row["label"] == 2:
            yield Context(row["premise"].strip(), (), (hypothesis,))


def _news(rows: Iterable[Row]) -> Iterator[Context]:
    for row in rows:
        text = f"{row['Title'].strip()}\n\n{row['Description'].strip()}"
        yield _labelled(text, _TOPICS[row["Class Index"] - 1], _TOPICS)


def _tenses(rows: Iterable[Row]) -> Iterator[Context]:
    for row in rows:
        yield _labelled(row["sentence"].strip(), row["label"], ("past", "present", "future"))


def _numbers(rows: Iterable[Row]) -> Iterator[Context]:
    for row in rows:
        yield _labelled(row["sentence"].strip(), row["n_subjects"], ("single", "multiple"))


_Sentence = tuple[list[str], list[str]]


def _sentences(rows: Iterable[Row]) -> Iterator[_Sentence]:
    """Gather the words and tags of each sentence; its number stands at its first word alone."""
    words: list[str] = []
    tags: list[str] = []
    for row in rows:
        if row["Sentence #"] and words:
            yield words, tags
            words, tags = [], []
        words.append(row["Word"])
        tags.append(row["Tag"])
    if words:
        yield words, tags


def entities(words: Sequence[str], tags: Sequence[str]) -> list[str]:
    """Return the entities of a sentence: runs of B- and I- tags, each B- starts one."""
    found: list[list[str]] = []
    before = "O"
    for word, tag in zip(words, tags, strict=True):
        if tag.startswith("B-"):
            found.append([word])
        elif tag.startswith("I-") and before != "O":
            found[-1].append(word)
        before = tag if tag.startswith("B-") or before != "O" else "O"
    return [" ".join(parts) for parts in dict.fromkeys(map(tuple, found))]


def _named(sentences: Iterable[_Sentence]) -> Iterator[Context]:
    """Ask for an entity of the sentence, or for one of another sentence that is not in this one."""
    every = [(" ".join(words), entities(words, tags)) for words, tags in sentences]
    pool = sorted({entity for _, inside in every for entity in inside})
    for text, inside in every:
        if not inside:
            continue
        drawn = (drawn_from(pool, "entity", text, str(n)) for n in range(100))
        wrong = next((x for x in drawn if x.lower() not in text.lower()), None)
        yield Context(text, tuple(inside), (wrong,) if wrong else ())


# A folder


def _files(data_dir: Path, benchmark: str, suffix: str) -> list[Path]:
    found = sorted((data_dir / benchmark).rglob(f"*{suffix}"))
    if not found:
        raise UserError(f"{data_dir} has no data of {benchmark} ({benchmark}/*{suffix}).")
    return found


def _content(path: Path, encoding: str = "utf-8") -> str:
    with read_faults(path):
        return path.read_text(encoding=encoding)


def _table(
    data_dir: Path, benchmark: str, suffix: str, columns: Columns, encoding: str = "utf-8"
) -> Iterator[Row]:
    for path in _files(data_dir, benchmark, suffix):
        yield from _parsed(_content(path, encoding), str(path), columns)


def _parsed(text: str, name: str, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a table with its columns read; UserError where one cannot be."""
    for number, row in enumerate(_rows(text, name), start=1):
        for column in columns:
            if column not in row:
                raise UserError(f"{name} has no column '{column}'.")
        try:
            yield {**row, **{c: kind.validate_python(row[c]) for c, kind in columns.items()}}
        except ValidationError as error:
            raise UserError(f"{name} cannot be read: row {number} is {row!r:.100}.") from error


def _rows(text: str, name: str) -> Iterator[Row]:
    with read_faults(name):
        if name.endswith(".json"):
            yield from _ROWS.validate_json(text)
        else:
            delimiter = "\t" if name.endswith(".tsv") else ","
            yield from csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)


def _relation_files(texts: Iterable[tuple[str, str]]) -> Iterator[Context]:
    for name, text in texts:
        with read_faults(name):
            relation = _RELATION.validate_json(text)
        yield from _relations(relation)


_TEXT = TypeAdapter(str)


def _index(least: int, most: int) -> TypeAdapter:
    return TypeAdapter(Annotated[int, Field(ge=least, le=most)])


_TRUTH: Columns = {"statement": _TEXT, "label": _index(0, 1)}
_REVIEW: Columns = {"sentence": _TEXT, "label": _index(0, 1)}
_GENDER: Columns = {"text": _TEXT, "label": _index(0, 2)}
_INFERENCE: Columns = {"premise": _TEXT, "hypothesis": _TEXT, "label": _index(-1, 2)}
_NEWS: Columns = {"Class Index": _index(1, 4), "Title": _TEXT, "Description": _TEXT}
_NER: Columns = dict.fromkeys(("Sentence #", "Word", "Tag"), _TEXT)
_TENSE: Columns = dict.fromkeys(("sentence", "label"), _TEXT)
_NUMBER: Columns = dict.fromkeys(("sentence", "n_subjects"), _TEXT)

_FOLDER = {
    "geometry_of_truth": lambda d: _truths(_table(d, "geometry_of_truth", ".csv", _TRUTH)),
    "relations": lambda d: _relation_files(
        (str(path), _content(path)) for path in _files(d, "relations", ".json")
    ),
    "sst2": lambda d: _reviews(_table(d, "sst2", ".tsv", _REVIEW)),
    "md_gender": lambda d: _genders(_table(d, "md_gender", ".csv", _GENDER)),
    "snli": lambda d: _inferences(_table(d, "snli", ".tsv", _INFERENCE)),
    "ag_news": lambda d: _news(_table(d, "ag_news", ".csv", _NEWS)),
    "ner": lambda d: _named(_sentences(_table(d, "ner", ".csv", _NER, "latin-1"))),
    "tense": lambda d: _tenses(_table(d, "tense", ".json", _TENSE)),
    "singular_plural": lambda d: _numbers(_table(d, "singular_plural", ".csv", _NUMBER)),
}


# The Hub, and the repository of Activation Oracles for what is on no Hub

_TRUTH_FILES = ("sp_en_trans", "cities", "smaller_than", "larger_than", "companies_true_false")


@contextmanager
def _network(benchmark: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    # The network, broken downloads, data sets that were changed: each library has its own types.
    except Exception as error:
        said = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"the data of {benchmark} could not be fetched ({said}): check the network, give a "
            "folder with the data as --data_dir, or name other --benchmarks."
        ) from error


def _hub(name: str, split: str, **options: Any) -> Iterator[Row]:
    rows: Any = load_dataset(name, split=split, **options)
    yield from rows


def texts_of(benchmark: str, data_dir: Path | None, suffix: str, paths: Sequence[str]) -> list[str]:
    """Return the texts of a benchmark's files: the folder's, or those at ``paths`` in DATASETS."""
    if data_dir is not None:
        return [_content(path) for path in _files(data_dir, benchmark, suffix)]
    with _network(benchmark):
        return [_text(f"{DATASETS}/{path}") for path in paths]


def _fetched(path: str) -> str:
    return _text(f"{REPOSITORY}/{path}")


def _text(address: str) -> str:
    with fsspec.open(address, "rt", encoding="utf-8") as file:
        return cast(TextIO, file).read()


def _fetched_table(path: str, columns: Columns) -> Iterator[Row]:
    yield from _parsed(_fetched(path), path, columns)


def _relation_names() -> list[str]:
    """List the repository's relation files, in the order of their names."""
    filesystem, root = fsspec.url_to_fs(LISTING)
    found = filesystem.glob(f"{root}/relations/*/*.json")
    return sorted("/".join(str(path).split("/")[-3:]) for path in found)


def _funpedia(rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        text = f"{row['text']}\n\nThis text is about {row['title']}."
        yield {"text": text, "label": row["gender"]}


def _topics(rows: Iterable[Row]) -> Iterator[Context]:
    # The Hub's copy holds title and description as one text.
    for row in rows:
        yield _labelled(row["text"].strip(), _TOPICS[row["label"]], _TOPICS)


def _tagged(rows: Iterable[Row]) -> Iterator[_Sentence]:
    # The integers of the tags alternate B-, I- after the O at 0.
    for row in rows:
        tags = ["O" if tag == 0 else "B-x" if tag % 2 else "I-x" for tag in row["ner_tags"]]
        yield row["tokens"], tags


_NETWORK = {
    "geometry_of_truth": lambda: _truths(
        row for name in _TRUTH_FILES for row in _fetched_table(f"gmt/{name}.csv", _TRUTH)
    ),
    "relations": lambda: _relation_files((name, _fetched(name)) for name in _relation_names()),
    "sst2": lambda: _reviews(_hub("stanfordnlp/sst2", "train+validation")),
    "md_gender": lambda: _genders(
        _funpedia(
            _hub(
                "parquet",
                "train",
                # The main branch holds a loading script, which is no longer run.
                data_files="hf://datasets/facebook/md_gender_bias@refs/convert/parquet/"
                "funpedia/*/*.parquet",
            )
        )
    ),
    # The test split: the public oracles were trained on contexts of the train split.
    "snli": lambda: _inferences(_hub("stanfordnlp/snli", "test")),
    "ag_news": lambda: _topics(_hub("fancyzhx/ag_news", "test")),
    "ner": lambda: _named(
        _tagged(_hub("rjac/kaggle-entity-annotated-corpus-ner-dataset", "train"))
    ),
    "tense": lambda: _tenses(_fetched_table("tense/tense_processed.json", _TENSE)),
    "singular_plural": lambda: _numbers(
        _fetched_table("singular_plural/singular_plural.csv", _NUMBER)
    ),
}
