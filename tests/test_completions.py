import json

import pytest

from grpo_ao.completions import (
    EndpointError,
    ReplyError,
    Usage,
    content_of,
    decode_completion,
    usage_of,
)


@pytest.mark.parametrize("body", ["", "<html>", '{"choices": [', "[]", '"x"', "[" * 100_000])
def test_a_body_that_is_no_completion_is_a_failure_of_the_endpoint(body):
    with pytest.raises(EndpointError) as caught:
        decode_completion(body)
    assert caught.value.status == 502


@pytest.mark.parametrize(
    ("completion", "status"),
    [
        ({"error": {"code": 429, "message": "busy"}}, 429),
        ({"error": {"code": "busy", "message": "busy"}}, None),
        ({"error": "busy"}, None),
        ({"choices": [{"error": {"code": 502, "message": "busy"}}]}, 502),
    ],
)
def test_an_error_in_a_body_of_status_200_is_seen(completion, status):
    with pytest.raises(EndpointError, match="busy") as caught:
        decode_completion(json.dumps(completion))
    assert caught.value.status == status


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
        {"choices": [{"message": {"content": None}, "finish_reason": "length"}]},
        {"choices": [{"message": {"content": "  "}, "finish_reason": "length"}]},
        {"choices": [{"message": {"content": [{"text": "x"}]}}]},
    ],
)
def test_a_completion_without_content_is_refused(completion):
    with pytest.raises(ReplyError, match="no c"):
        content_of(completion)


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
