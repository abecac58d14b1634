import json

from grpo_ao.report.answers import heldout_items, rollout_items, within_budget
from tests.report.made_run import heldout_rows, rollout_rows


def item(confidence: int, score: float | None, question: str = "q") -> dict:
    return {"question": question, "answers": [{"confidence": confidence, "score": score}]}


def test_an_item_holds_the_answers_of_every_measurement():
    heldout = {
        "before sampled": heldout_rows(1, knows=False),
        "after sampled": heldout_rows(2, knows=True),
    }
    items = heldout_items(heldout, calibration_lambda=0.5)
    assert len(items) == 60
    first = items[3]
    assert [answer["view"] for answer in first["answers"]] == ["before sampled", "after sampled"]
    assert first["question"] == "Question 3?"
    stated = heldout["before sampled"][3]["confidence"]
    assert first["answers"][0]["reward"] == round(-0.5 * (stated / 100) ** 2, 3)


def test_a_malformed_answer_states_nothing_and_gets_the_floor():
    items = heldout_items({"before sampled": heldout_rows(1, knows=False)}, calibration_lambda=0.5)
    malformed, ungraded = items[1]["answers"][0], items[2]["answers"][0]
    assert (malformed["confidence"], malformed["score"], malformed["reward"]) == (None, None, -1.5)
    assert (ungraded["score"], ungraded["reward"]) == (None, None)
    assert ungraded["confidence"] is not None


def test_rollouts_are_grouped_by_step_and_question():
    items = rollout_items(rollout_rows())
    assert [item["step"] for item in items] == [10, 10, 20, 20]
    assert [len(item["answers"]) for item in items] == [4] * 4
    assert items[0]["answers"][1]["reward"] == 0.25


def test_long_texts_are_cut():
    row = heldout_rows(1, knows=False)[5] | {"text": "word " * 1000, "answer": "long " * 1000}
    (found,) = heldout_items({"after sampled": [row]}, calibration_lambda=0.5)
    assert len(found["text"]) < 2010 and found["text"].endswith("word …")
    assert len(found["answers"][0]["answer"]) < 610


def test_everything_that_fits_is_kept_in_its_order():
    items = [item(10 * n, 1.0, str(n)) for n in range(10)]
    assert within_budget(items) == items


def test_a_part_holds_the_worst_of_both_sorts():
    middling = [item(50, 0.5, f"m{n}") for n in range(50)]
    items = [*middling, item(99, 0.0, "over"), item(1, 1.0, "under"), item(80, None, "ungraded")]
    size = len(json.dumps(items[0]))
    kept = within_budget(items, budget=4 * size)
    questions = [entry["question"] for entry in kept]
    assert {"over", "under"} <= set(questions)
    assert "ungraded" not in questions
    assert 3 <= len(kept) <= 4
    assert sum(len(json.dumps(entry)) for entry in kept) <= 4 * size
