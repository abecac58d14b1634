from rich.console import Console

from grpo_ao.probes.question_statistics import question_statistics, statistics_table
from grpo_ao.probes.rows import load_rows, parse_row

ROWS = [
    {
        "wildchat_question": "It is late.",
        "oracle_questions": ["Is it late?", "Is it early?", "What is it about?"],
        "question_kinds": ["closed", "closed", "open"],
        "reference_answers": ["Yes", "no", "the time"],
    },
    {"wildchat_question": "it is  LATE.", "oracle_questions": ["is it late?", "Why?"]},
]


def test_counts_by_hand():
    assert question_statistics([parse_row(row) for row in ROWS]) == {
        "questions": (5, 2),
        "closed": (3, 5),
        "open": (2, 5),
        "closed with the answer Yes": (1, 2),
        "closed with the answer No": (1, 2),
        "with a reference answer": (3, 5),
        "repeated texts": (1, 2),
        "repeated questions": (1, 5),
    }


def shown(rows):
    console = Console(width=80)
    with console.capture() as printed:
        console.print(statistics_table(question_statistics(rows), "a set"))
    return printed.get()


def test_the_table_shows_counts_and_shares():
    text = shown([parse_row(row) for row in ROWS])
    for words in ("2.50 a row", "60.0%", "50.0%", "repeated questions", "20.0%"):
        assert words in text
    assert "questions" in shown([])


def test_the_seed_set(shared):
    found = question_statistics(load_rows(str(shared / "wildchat_oracle_questions.jsonl")).rows)
    assert found["questions"] == (7997, 1000)
    assert found["with a reference answer"] == (0, 7997)
