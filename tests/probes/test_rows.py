import json
import re
from collections import Counter
from itertools import pairwise

import pytest
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from grpo_ao.errors import UserError
from grpo_ao.probe import Positions, split_of
from grpo_ao.probes import sources as module
from grpo_ao.probes.items import Item, probes_of
from grpo_ao.probes.rows import (
    items_of,
    load_rows,
    parse_row,
)

LAST = Positions.parse("last:20")
LAYERS = [(9,), (18,), (27,)]
SOUND = {
    "wildchat_question": "It is late.",
    "language": "english",
    "oracle_questions": ["Is it late?", "What time is it?"],
}


def probes_at(rows, layers):
    return probes_of(items_of(rows), layers, [LAST])


def write(tmp_path, *lines):
    path = tmp_path / "questions.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts))
    return str(path)


def test_a_row_without_kinds_and_references():
    assert parse_row(SOUND) == [
        Item("closed", "It is late.", "Is it late?", None, kind="closed"),
        Item("open", "It is late.", "What time is it?", None, kind="open"),
    ]


def test_a_rows_own_kinds_and_references_are_taken():
    row = SOUND | {"question_kinds": ["open", "open"], "reference_answers": ["Yes", None]}
    found = [(item.kind, item.target, item.family) for item in parse_row(row)]
    assert found == [("open", "Yes", "open"), ("open", None, "open")]


def test_a_rows_own_families_are_its_probes():
    row = parse_row(SOUND | {"question_families": ["hour", "hour"]})
    assert [probe.family for probe in probes_at([row], [(9,)])] == ["hour", "hour"]


def test_columns_that_are_null_are_as_good_as_absent():
    row = SOUND | {"question_kinds": None, "reference_answers": None}
    assert parse_row(row) == parse_row(SOUND)


def test_the_text_is_taken_as_it_is_and_questions_without_the_space_around_them():
    row = {"wildchat_question": " It is late.\n", "oracle_questions": [" Is it late?\n"]}
    (item,) = parse_row(row)
    assert (item.text, item.question) == (" It is late.\n", "Is it late?")


BROKEN = [
    ('{"wildchat_question": ', r"it is not valid JSON \("),
    ("[1, 2]", "it is a list, not an object with columns"),
    ("null", "it is a NoneType, not an object"),
    ({"oracle_questions": ["Late?"]}, "the column 'text' is missing"),
    ({"wildchat_question": "Late."}, "the column 'questions' is missing"),
    (SOUND | {"wildchat_question": None}, "'wildchat_question' is not a text or is empty"),
    (SOUND | {"wildchat_question": " \n"}, "'wildchat_question' is not a text or is empty"),
    (SOUND | {"wildchat_question": "a \ud800"}, "surrogates not allowed"),
    (SOUND | {"oracle_questions": "Late?"}, "'oracle_questions' is not a list of texts"),
    (SOUND | {"oracle_questions": None}, "'oracle_questions' is not a list of texts"),
    (SOUND | {"oracle_questions": ["Late?", 3]}, "'oracle_questions' is not a list of texts"),
    (SOUND | {"oracle_questions": ["Late?", "\udfff"]}, "surrogates not allowed"),
    (SOUND | {"oracle_questions": []}, "'oracle_questions' has no questions or an empty one"),
    (SOUND | {"oracle_questions": ["Late?", " "]}, "has no questions or an empty one"),
    (SOUND | {"question_kinds": ["open"]}, "'question_kinds' is not a list of 2 entries"),
    (SOUND | {"question_kinds": "open"}, "'question_kinds' is not a list of 2 entries"),
    (SOUND | {"question_kinds": ["open", "yes"]}, "other than 'closed' and 'open'"),
    (SOUND | {"question_kinds": ["open", ["x"]]}, "other than 'closed' and 'open'"),
    (SOUND | {"question_kinds": ["open", None]}, "other than 'closed' and 'open'"),
    (SOUND | {"question_families": ["hour"]}, "'question_families' is not a list of 2 entries"),
    (SOUND | {"question_families": ["hour", ""]}, "holds something other than names"),
    (SOUND | {"reference_answers": []}, "'reference_answers' is not a list of 2 entries"),
    (SOUND | {"reference_answers": ["Yes", "\ud800"]}, "surrogates not allowed"),
    (SOUND | {"reference_answers": ["Yes", 12]}, "holds something other than texts and null"),
]


def test_columns_may_have_plain_names(tmp_path):
    plain = {"text": "It is late.", "questions": SOUND["oracle_questions"]}
    assert parse_row(plain) == parse_row(SOUND)
    known = {"kinds": ["open", "open"], "answers": ["Yes", "Noon"], "families": ["a", "b"]}
    assert parse_row(plain | known) == [
        Item("a", "It is late.", "Is it late?", "Yes", kind="open"),
        Item("b", "It is late.", "What time is it?", "Noon", kind="open"),
    ]
    with pytest.raises(ValueError, match="'answers' is not a list of 2 entries"):
        parse_row(plain | {"answers": ["Yes"]})


def test_a_row_of_csv_has_one_question(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('text,question,answer,family\n"It is late, I know.",Is it late?,Yes,\n')
    (row,) = load_rows(str(path), strict=True).rows
    assert row == [Item("closed", "It is late, I know.", "Is it late?", "Yes")]


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_a_broken_row_is_left_out_by_its_number_and_reason(tmp_path, line, reason):
    source = write(tmp_path, SOUND, line, SOUND)
    loaded = load_rows(source)
    assert loaded.rows == [parse_row(SOUND)] * 2
    (problem,) = loaded.problems
    assert problem.startswith(f"row 2 of {source} is left out: ")
    assert re.search(reason, problem)


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_a_broken_row_is_an_error_with_strict(tmp_path, line, reason):
    with pytest.raises(ValueError, match=rf"row 2 of .* is left out: .*{reason}"):
        load_rows(write(tmp_path, SOUND, line, SOUND), strict=True)


def test_every_broken_row_is_reported(tmp_path):
    lines = [line for line, _ in BROKEN]
    loaded = load_rows(write(tmp_path, *lines, SOUND))
    assert len(loaded.rows) == 1
    assert [int(problem.split()[1]) for problem in loaded.problems] == [*range(1, len(BROKEN) + 1)]


def test_empty_lines_count_as_lines_but_are_no_rows(tmp_path):
    loaded = load_rows(write(tmp_path, "", SOUND, "   ", "{"))
    assert len(loaded.rows) == 1
    (problem,) = loaded.problems
    assert problem.startswith("row 4 ")


def test_bytes_that_are_no_utf8_break_their_own_row_only(tmp_path):
    path = tmp_path / "questions.jsonl"
    sound = json.dumps(SOUND | {"wildchat_question": "Zürich"}, ensure_ascii=False)
    path.write_bytes(sound.encode() + b"\n" + sound.encode("latin-1") + b"\n")
    loaded = load_rows(str(path))
    assert [row[0].text for row in loaded.rows] == ["Zürich"]
    assert loaded.problems == [f"row 2 of {path} is left out: it is not UTF-8."]


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(SOUND).encode())
    assert load_rows(str(path), strict=True).rows == [parse_row(SOUND)]


@pytest.mark.parametrize("lines", [(), ("", " "), ({"oracle_questions": []},)])
def test_a_set_without_questions_is_refused(tmp_path, lines):
    with pytest.raises(ValueError, match=r"questions\.jsonl has no rows with questions\."):
        load_rows(write(tmp_path, *lines))


def test_a_set_of_broken_rows_is_refused_with_the_first_reason(tmp_path):
    with pytest.raises(ValueError, match=r"no rows with questions\. row 1 of .* is missing"):
        load_rows(write(tmp_path, {"text": "It is late."}, "{"))


@pytest.mark.parametrize("name", ["absent.jsonl", "absent.json"])
def test_a_missing_file_is_named_and_not_looked_for_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.setattr(module, "load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(UserError, match=rf"no file at .*{name}: give JSONL"):
        load_rows(str(tmp_path / name))


def test_a_folder_is_no_question_set(tmp_path):
    with pytest.raises(UserError, match="no file at"):
        load_rows(str(tmp_path))


def test_a_hub_id_is_loaded_from_its_train_split(monkeypatch):
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        return [SOUND, {"language": "english"}]

    monkeypatch.setattr(module, "load_dataset", load_dataset)
    loaded = load_rows("someone/questions")
    assert asked == [("someone/questions", "train", False)]
    assert loaded.rows == [parse_row(SOUND)]
    assert loaded.problems == [
        "row 2 of someone/questions is left out: the column 'text' is missing."
    ]


HUB_FAULTS = [
    (ConnectionError("Couldn't reach the Hub\n  a long story"), "the network"),
    (DatasetNotFoundError("Dataset 'someone/questions' doesn't exist on the Hub."), "its name"),
    (DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub."), "log in by `hf auth"),
    (RuntimeError("Dataset scripts are no longer supported, but found x.py"), "scripts"),
    (DatasetGenerationError("An error occurred while generating the dataset"), "generating"),
    (ValueError('Unknown split "train". Should be one of ["test"].'), "a split 'train'"),
    (ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']"), "configuration"),
    (OSError(), "OSError"),
]


@pytest.mark.parametrize("while_read", [False, True])
@pytest.mark.parametrize(("error", "words"), HUB_FAULTS)
def test_a_hub_set_that_cannot_be_read_gives_one_sentence(monkeypatch, error, words, while_read):
    def rows():
        yield SOUND
        raise error

    def load_dataset(*_, **__):
        if while_read:
            return rows()
        raise error

    monkeypatch.setattr(module, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"^'someone/questions' could not be read from the") as told:
        load_rows("someone/questions")
    assert words in str(told.value)
    assert "\n" not in str(told.value)


# Probes


def many(count):
    return [
        [
            Item("closed", f"text {i}", "Is it late?", "Yes"),
            Item("open", f"text {i}", "Why?", None, kind="open"),
        ]
        for i in range(count)
    ]


def test_one_probe_a_question():
    probes = probes_at(many(2), [(18,)])
    assert [(p.text, p.question, p.kind, p.reference, p.family) for p in probes] == [
        ("text 0", "Is it late?", "closed", "Yes", "closed"),
        ("text 0", "Why?", "open", None, "open"),
        ("text 1", "Is it late?", "closed", "Yes", "closed"),
        ("text 1", "Why?", "open", None, "open"),
    ]
    assert {(p.layers, p.positions) for p in probes} == {((18,), LAST)}


def test_equal_questions_about_equal_texts_are_one_probe():
    rows = [*many(3), *many(2)]
    assert probes_at(rows, LAYERS) == probes_at(many(3), LAYERS)


def test_layers_are_drawn_evenly_and_independently_of_the_order():
    forward = probes_at(many(600), LAYERS)
    backward = probes_at(reversed(many(600)), LAYERS)
    assert {p.id for p in forward} == {p.id for p in backward}
    layers = Counter(p.layers for p in forward)
    # 400 each, with a standard deviation of 16.
    assert all(abs(layers[read] - 400) < 65 for read in LAYERS)
    # The questions of one text are read at layers of their own.
    same = sum(one.layers == two.layers for one, two in list(pairwise(forward))[::2])
    assert same == pytest.approx(200, abs=50)


def test_the_layer_of_a_probe_is_this_one_for_ever():
    # The draw of "layer", "It is late.", "Is it late?" is .3659, so the second of three.
    (probe,) = probes_at([parse_row(SOUND | {"oracle_questions": ["Is it late?"]})], LAYERS)
    assert probe.layers == (18,)
    assert probe.id == "57858e4e83073e1c"


# The real files


def test_the_thousand_real_rows_load(shared):
    loaded = load_rows(str(shared / "wildchat_oracle_questions.jsonl"), strict=True)
    assert (len(loaded.rows), loaded.problems) == (1000, [])
    probes = probes_at(loaded.rows, LAYERS)
    assert len(probes) == 7997
    assert Counter(p.kind for p in probes) == {"closed": 4142, "open": 3855}
    assert {p.reference for p in probes} == {None}
    heldout = {p.text for p in probes if split_of(p.text) == "heldout"}
    assert len(heldout) == pytest.approx(200, abs=40)


def test_the_fifty_real_rows_load_and_the_questions_that_order_yes_or_no_are_closed(shared):
    loaded = load_rows(str(shared / "wildchat_oracle_questions_50_yesno.jsonl"), strict=True)
    asked = [(item.question, item.kind) for row in loaded.rows for item in row]
    assert (len(loaded.rows), len(asked)) == (50, 800)
    ordered = [kind for question, kind in asked if "ANSWER ONLY WITH YES OR NO" in question]
    assert ordered == ["closed"] * 199
    assert Counter(kind for _, kind in asked) == {"closed": 205, "open": 595}
    # Six texts come twice, with 20 of their questions.
    assert len(probes_at(loaded.rows, LAYERS)) == 780
