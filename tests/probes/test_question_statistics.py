from rich.console import Console

from grpo_ao.probes.question_statistics import (
    QuestionStatistics,
    question_statistics,
    statistics_table,
)
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
    assert question_statistics([parse_row(row) for row in ROWS]) == QuestionStatistics(
        rows=2,
        questions=5,
        closed=3,
        yes=1,
        no=1,
        referenced=3,
        repeated_texts=1,
        repeated_questions=1,
    )
    assert question_statistics([]).questions == 0


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
    assert (found.rows, found.questions, found.referenced) == (1000, 7997, 0)
