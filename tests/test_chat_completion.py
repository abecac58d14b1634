import json
import math

import pytest

from grpo_ao.chat_completion import (
    ReplyError,
    Usage,
    content_of,
    fault_of,
    usage_of,
)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"choices": [',
        b"[]",
        b'"x"',
        b"[" * 100_000,
        b'data: {"choices": []}\n\ndata: [DONE]\n',
        b'{"choices": [], "usage": {"cost": ' + b"9" * 5_000 + b"}}",
        '{"é": 1}'.encode("latin-1"),
    ],
)
def test_a_body_that_is_no_completion_is_a_failure_of_the_endpoint(body):
    status, message = fault_of(body) or (200, "")
    assert status == 502
    assert message.startswith("the endpoint sent")


@pytest.mark.parametrize(
    ("completion", "status"),
    [
        ({"error": {"code": 429, "message": "busy"}}, 429),
        ({"error": {"code": "busy", "message": "busy"}}, 400),
        ({"error": {"code": 7, "message": "busy"}}, 400),
        ({"error": {"code": "429", "message": "busy"}}, 429),
        ({"error": {"code": "9" * 5000, "message": "busy"}}, 400),
        ({"error": {"code": "\u0664\u0662\u0669", "message": "busy"}}, 400),
        ({"error": "busy"}, 400),
        ({"choices": [{"error": {"code": 502, "message": "busy"}}]}, 502),
    ],
)
def test_an_error_in_a_body_of_status_200_is_seen(completion, status):
    assert fault_of(json.dumps(completion).encode()) == (status, "busy")


def test_a_completion_has_no_fault():
    assert fault_of(b'{"choices": [{"message": {"content": "x"}}]}') is None


@pytest.mark.parametrize(
    "completion",
    [
        {},
        {"choices": []},
        {"choices": None},
        {"choices": "x"},
        {"choices": [7]},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]},
        {"choices": [{"message": {"content": "  "}, "finish_reason": "stop"}]},
    ],
)
def test_a_completion_without_content_is_refused(completion):
    with pytest.raises(ReplyError, match="no c"):
        content_of(completion)


WHOLE = {"message": {"content": "A"}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"finish_reason": "length"}, r"not whole \(finish reason: length\)"),
        ({"finish_reason": "content_filter"}, "not whole"),
        ({"message": {"content": "A", "refusal": "I will not."}}, "the model refused: 'I will not"),
        ({"message": {"content": [{"text": "A"}]}}, "a list of parts"),
        ({"message": {"content": None}, "finish_reason": "x" * 999}, "no content"),
    ],
)
def test_a_reply_that_is_not_a_whole_text_is_refused_with_the_reason(change, reason):
    assert content_of({"choices": [WHOLE]}) == "A"
    with pytest.raises(ReplyError, match=reason) as told:
        content_of({"choices": [WHOLE | change]})
    assert len(str(told.value)) < 200


@pytest.mark.parametrize("value", [2**63, -1, 10**400, 1.5, True, "7", None, [], math.nan])
def test_usage_that_cannot_be_is_not_known(value):
    usage = {"prompt_tokens": value, "completion_tokens": 1, "cost": 0.5}
    assert usage_of({"usage": usage}) == (None, 1, 0.5)


@pytest.mark.parametrize("value", [10**400, -1, math.inf, math.nan, True, "7", None])
def test_a_cost_that_cannot_be_is_not_known(value):
    assert usage_of({"usage": {"cost": value}}).cost_usd is None


def test_usage_is_what_the_endpoint_says_and_unknown_where_it_does_not():
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "cost": 0.25}
    assert usage_of({"usage": usage}) == (10, 2, 0.25)
    assert usage_of({"usage": {"prompt_tokens": "10", "cost": True}}) == (None, None, None)
    assert usage_of({}) == usage_of({"usage": 3}) == (None, None, None)


def test_usage_adds_up_and_takes_prices_where_no_cost_is_given():
    assert Usage(1, 2, 0.5).plus(Usage(3, 4, 0.25)) == (4, 6, 0.75)
    assert Usage().plus(Usage(3, 4, None)) == (3, 4, None)
    assert Usage(1_000_000, 500_000, None).at_prices(0.3, 2.0) == (1_000_000, 500_000, 1.3)
    assert Usage(10, 10, 0.5).at_prices(1.0, 1.0).cost_usd == 0.5
    assert Usage(10, 10, None).at_prices(1.0, None).cost_usd is None
    assert Usage(None, 10, None).at_prices(1.0, 1.0).cost_usd is None
