import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo_ao.answer import Agreement, Answer, read_answer_rows
from grpo_ao.errors import UserError
from grpo_ao.files import append_jsonl
from grpo_ao.probe import Positions, Probe

PROBE = Probe(
    "I live in Rome.", "Where?", "open", (18,), Positions.parse("last:20"), "Rome", "place"
)
SHARES = st.none() | st.floats(0, 1)


def test_a_completion_is_read_into_confidence_and_answer():
    answer = Answer.read(PROBE, "[epistemic status: 85] Rome", [5, 6, 7])
    assert (answer.confidence, answer.answer, answer.parsed) == (0.85, "Rome", True)
    assert answer.token_ids == (5, 6, 7)
    assert answer.informativeness is None


def test_without_a_well_formed_tag_there_is_no_confidence_and_all_is_the_answer():
    answer = Answer.read(PROBE, "[epistemic status: 101] Rome")
    assert (answer.confidence, answer.parsed) == (None, False)
    assert answer.answer == "[epistemic status: 101] Rome"


@given(
    confidence=SHARES,
    informativeness=SHARES,
    reward=st.none() | st.floats(-2, 1),
    probability=SHARES,
    agreement=st.none() | st.just(Agreement(15, 20, 180)),
    reply=st.none() | st.text(),
    read=st.none() | st.tuples(st.integers(0), st.integers(0)),
    text=st.text(),
    positions=st.sampled_from(["last:20", "window:50@-1", "token@-3", "all"]),
    choices=st.lists(st.text()).map(tuple),
)
def test_an_answer_comes_back_from_its_row_as_it_was(
    confidence,
    informativeness,
    reward,
    probability,
    agreement,
    reply,
    read,
    text,
    positions,
    choices,
):
    probe = Probe(text, "Is it?", "closed", (3,), Positions.parse(positions), None, "f", choices)
    answer = Answer(
        probe,
        "a completion",
        (1, 2, 3),
        confidence,
        "Yes",
        informativeness,
        "no reply",
        -0.1,
        reward,
        probability,
        probability,
        agreement,
        reply,
        read,
    )
    row = json.loads(json.dumps(answer.to_row() | {"step": 7}))
    assert Answer.from_row(row) == answer


def test_a_row_names_one_layer_or_all_of_several():
    several = Answer.read(replace(PROBE, layers=(17, 18)), "Rome")
    assert Answer.read(PROBE, "Rome").to_row()["layer"] == 18
    assert several.to_row()["layer"] == [17, 18]
    assert Answer.from_row(json.loads(json.dumps(several.to_row()))) == several


def test_a_row_that_another_version_wrote_is_refused():
    row = Answer.read(PROBE, "Rome").to_row()
    del row["informativeness"]
    with pytest.raises(ValueError, match=r"lacks 'informativeness'.*make the file anew"):
        Answer.from_row(row)


def test_a_row_of_the_first_version_is_read():
    row = Answer.read(PROBE, "Rome").to_row()
    later = {"judge_reply", "characters_read", "subject", "choices"}
    answer = Answer.from_row({name: row[name] for name in row.keys() - later})
    assert answer == Answer.read(PROBE, "Rome")


def test_a_row_of_another_probe_is_refused():
    row = Answer.read(PROBE, "Rome").to_row() | {"text": "I live in Paris."}
    with pytest.raises(ValueError, match=f"the row of probe {PROBE.id} holds that of"):
        Answer.from_row(row)


ROW = replace(Answer.read(PROBE, "Rome", [1]), agreement=Agreement(1, 2, 3)).to_row()
WRONG = {
    "text": 3,
    "layer": "18",
    "reference": ["Rome"],
    "confidence": True,
    "informativeness": "0.5",
    "token_ids": [1, "2"],
    "agreement": {"same": 1, "samples": 2},
    "positions": None,
    "judge_reply": 3,
    "characters_read": [3],
    "choices": "Rome",
}


@pytest.mark.parametrize(("name", "value"), WRONG.items())
def test_a_value_of_another_type_is_one_sentence_with_the_name_of_the_file(tmp_path, name, value):
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, [ROW, ROW | {name: value}])
    with pytest.raises(UserError, match=rf"rows\.jsonl cannot be used: .* as its {name}: make"):
        read_answer_rows(path)


def test_a_file_is_read_as_its_rows_and_their_answers(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_answer_rows(path) == []
    append_jsonl(path, [ROW | {"step": 7}])
    assert read_answer_rows(path) == [(ROW | {"step": 7}, Answer.from_row(ROW))]
