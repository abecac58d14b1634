import pytest

from grpo_ao.wording import question_kind, say_the_same, words, yes_or_no


@pytest.mark.parametrize(
    "question",
    [
        "Is it late?",
        "does the user code?",
        "  Can it be seen?",
        "HAS the user asked?",
        "Is the order normal?",
        "ANSWER ONLY WITH YES OR NO: What if it were late?",
        "Does the user want one or two? Answer only  with yes or no.",
    ],
)
def test_closed_questions(question):
    assert question_kind(question) == "closed"


@pytest.mark.parametrize(
    "question",
    [
        "What time is it?",
        "How is it?",
        "Is the tone formal or casual?",
        "Issues of the user?",
        "Dover lies where?",
        "",
    ],
)
def test_open_questions(question):
    assert question_kind(question) == "open"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The user is moving.", ["user", "is", "moving"]),
        ("A cat, an owl and THE dog!", ["cat", "owl", "and", "dog"]),
        ("It's the users' plan", ["it's", "users", "plan"]),
        ("It\u2019s late", ["it's", "late"]),
        ("'Yes'", ["yes"]),
        ("\u2018Yes\u2019", ["yes"]),
        ("**Yes**", ["yes"]),
        ("Él está en Zürich", ["él", "está", "en", "zürich"]),
        (" ?! ", []),
        ("The", ["the"]),
        ("A.", ["a"]),
        ("-5, \u22125 and 2-5, 3.5", ["-5", "-5", "and", "2", "5", "3", "5"]),
        ("C++, C# (or F#?)", ["c++", "c#", "or", "f#"]),
        ("#1 in x++y", ["1", "in", "x", "y"]),
    ],
)
def test_words_are_lower_case_without_punctuation_and_articles(answer, expected):
    assert words(answer) == expected


@pytest.mark.parametrize(
    "answer, meant",
    [
        ("Yes", "Yes"),
        (" yes.", "Yes"),
        ("NO!", "No"),
        ("Yes, it is", "Yes"),
        ("I would say no", "No"),
        ("I know", None),
        ("Not now", None),
        ("yesterday", None),
        ("Yes and no", None),
        ("", None),
    ],
)
def test_an_answer_is_matched_as_a_whole_word(answer, meant):
    assert yes_or_no(answer) == meant


@pytest.mark.parametrize(
    ("first", "second", "kind", "same"),
    [
        ("Yes", "yes, they are", "closed", True),
        ("Yes", "No", "closed", False),
        ("Perhaps", "perhaps.", "closed", True),
        ("Yes", "yes, they are", "open", False),
        ("A pipe that leaks", "The pipe that leaks!", "open", True),
        ("No refund", "No help", "open", False),
    ],
)
def test_answers_agree_in_yes_and_no_or_in_all_words(first, second, kind, same):
    assert say_the_same(first, second, kind) is same
