import json
from dataclasses import replace

from grpo_ao.report.browsing import heldout_items, rollout_items, within_budget
from grpo_ao.reward import reward_rule
from tests.report.made_run import heldout_answers, rollouts


def item(confidence: float, informativeness: float | None, question: str = "q") -> dict:
    answer = {"confidence": confidence, "informativeness": informativeness}
    return {"question": question, "answers": [answer]}


def test_an_item_holds_the_answers_of_every_measurement():
    heldout = {
        "before sampled": heldout_answers(1, knows=False),
        "after sampled": heldout_answers(2, knows=True),
    }
    items = heldout_items(heldout, rule=reward_rule(0.5))
    assert len(items) == 60
    first = items[3]
    assert [answer["view"] for answer in first["answers"]] == ["before sampled", "after sampled"]
    assert first["question"] == "Question 3?"
    stated = heldout["before sampled"][3].confidence
    assert stated is not None
    assert first["answers"][0]["reward"] == round(-0.5 * stated**2, 3)


def test_a_malformed_answer_states_nothing_and_gets_the_floor():
    items = heldout_items(
        {"before sampled": heldout_answers(1, knows=False)}, rule=reward_rule(0.5)
    )
    malformed, ungraded = items[1]["answers"][0], items[2]["answers"][0]
    assert (malformed["confidence"], malformed["reward"]) == (None, -1.5)
    assert (ungraded["informativeness"], ungraded["reward"]) == (None, None)
    assert ungraded["confidence"] is not None


def test_rollouts_are_grouped_by_step_and_question():
    items = rollout_items(rollouts())
    assert [item["step"] for item in items] == [10, 10, 20, 20]
    assert [len(item["answers"]) for item in items] == [4] * 4
    assert items[0]["answers"][1]["reward"] == 0.25


def test_long_texts_are_cut():
    answer = heldout_answers(1, knows=False)[5]
    answer = replace(
        answer, probe=replace(answer.probe, text="word " * 1000), answer="long " * 1000
    )
    (found,) = heldout_items({"after sampled": [answer]}, rule=reward_rule(0.5))
    assert found["text"][:2] == ["", ""]
    assert len(found["text"][2]) < 2010 and found["text"][2].endswith("word …")
    assert len(found["answers"][0]["answer"]) < 610


def test_a_long_text_is_shown_where_it_is_read():
    text = "word " * 1000 + "is read" + " behind" * 1000
    answer = heldout_answers(1, knows=False)[5]
    probe, read = replace(answer.probe, text=text), (5000, 5007)
    answer = replace(answer, probe=probe, characters_read=read)
    (found,) = heldout_items({"after sampled": [answer]}, rule=reward_rule(0.5))
    before, middle, after = found["text"]
    assert middle == "is read"
    assert before == "… " + "word " * 200 and after.startswith(" behind behind")
    assert len(after) < 2010


def test_everything_that_fits_is_kept_in_its_order():
    items = [item(n / 10, 1.0, str(n)) for n in range(10)]
    assert within_budget(items) == items


def test_a_part_holds_the_worst_of_both_sorts():
    middling = [item(0.5, 0.5, f"m{n}") for n in range(50)]
    items = [
        *middling,
        item(0.99, 0.0, "over"),
        item(0.01, 1.0, "under"),
        item(0.8, None, "ungraded"),
    ]
    size = len(json.dumps(items[0]))
    kept = within_budget(items, budget=4 * size)
    questions = [entry["question"] for entry in kept]
    assert {"over", "under"} <= set(questions)
    assert "ungraded" not in questions
    assert 3 <= len(kept) <= 4
    assert sum(len(json.dumps(entry)) for entry in kept) <= 4 * size
