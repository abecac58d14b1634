import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from grpo_ao.epistemic import (
    ParsedOutput,
    parse_oracle_output,
    render_oracle_output,
    render_tag,
)

OPENING = "[epistemic status"


answers = st.text(min_size=1).filter(lambda text: text.strip() and "[" not in text)


def test_an_output_is_the_tag_a_space_and_the_answer():
    assert render_oracle_output(85, "The user is moving.") == (
        "[epistemic status: 85] The user is moving."
    )
    assert render_tag(0) == "[epistemic status: 0]"
    assert render_tag(100) == "[epistemic status: 100]"


@pytest.mark.parametrize("confidence", [-1, 101])
def test_a_confidence_outside_of_0_to_100_is_not_rendered(confidence):
    with pytest.raises(ValueError, match=f"between 0 and 100, got {confidence}"):
        render_tag(confidence)


@given(st.integers(0, 100), answers)
def test_what_is_rendered_is_parsed_back(confidence, answer):
    output = parse_oracle_output(render_oracle_output(confidence, answer))
    assert output == ParsedOutput(confidence / 100, answer.strip())


@given(st.integers(0, 100), answers)
def test_what_is_parsed_is_rendered_back(confidence, answer):
    output = parse_oracle_output(f" \n[Epistemic Status:{confidence:03}]\t{answer} ")
    assert output.confidence is not None
    number = round(100 * output.confidence)
    assert parse_oracle_output(render_oracle_output(number, output.answer)) == output


@given(st.text())
@example("[epistemic status: ]")
@example("[epistemic status: 85")
@example("\ud800[epistemic status: 5] \udfff")
def test_parsing_never_raises(response):
    output = parse_oracle_output(response)
    assert output == (None, response.strip()) or 0 <= (output.confidence or 0) <= 1


pieces = [OPENING, "[", "]", ": ", "epistemic status", "85", "101", "-", ".", " ", "\n", "Yes", "٣"]


@given(st.lists(st.sampled_from(pieces), max_size=8).map("".join))
def test_whatever_parses_is_well_formed(response):
    output = parse_oracle_output(response)
    if output.confidence is not None:
        assert response.strip().lower().startswith("[")
        assert output.answer == output.answer.strip() != ""
        assert OPENING not in output.answer
        assert response.count(OPENING) <= 1
        assert str(round(100 * output.confidence)) in response


@pytest.mark.parametrize(
    ("response", "confidence", "answer"),
    [
        ("[epistemic status: 85] Yes.", 85, "Yes."),
        ("[epistemic status: 0] Yes.", 0, "Yes."),
        ("[epistemic status: 100] Yes.", 100, "Yes."),
        ("[epistemic status: 007] Yes.", 7, "Yes."),
        ("[EPISTEMIC STATUS: 85] Yes.", 85, "Yes."),
        ("[Epistemic  status :85 ]Yes.", 85, "Yes."),
        ("[ epistemic\tstatus\n: 85 ]\n\n Yes. \n", 85, "Yes."),
        (" \n\t[epistemic status: 85] Yes.", 85, "Yes."),
        ("[epistemic status: 85] See [1] and [2].", 85, "See [1] and [2]."),
        ("[epistemic status: 85] My epistemic status is 10.", 85, "My epistemic status is 10."),
        ("[epistemic status: 85] 40", 85, "40"),
        ("[epistemic status: 85] Line one.\nLine two.", 85, "Line one.\nLine two."),
    ],
)
def test_well_formed_outputs(response, confidence, answer):
    assert parse_oracle_output(response) == ParsedOutput(confidence / 100, answer)


@pytest.mark.parametrize(
    "response",
    [
        "",
        "Yes.",
        "[epistemic status: 85]",
        "[epistemic status: 85]  \n ",
        "Yes. [epistemic status: 85]",
        "Well, [epistemic status: 85] Yes.",
        "[epistemic status: 101] Yes.",
        "[epistemic status: 1000] Yes.",
        "[epistemic status: -3] Yes.",
        "[epistemic status: +3] Yes.",
        "[epistemic status: 7.5] Yes.",
        "[epistemic status: 85%] Yes.",
        "[epistemic status: 85/100] Yes.",
        "[epistemic status: 8 5] Yes.",
        "[epistemic status: 1e1] Yes.",
        "[epistemic status: high] Yes.",
        "[epistemic status: ] Yes.",
        "[epistemic status 85] Yes.",
        "[epistemicstatus: 85] Yes.",
        "[epistemic status: 85 Yes.",
        "epistemic status: 85] Yes.",
        "(epistemic status: 85) Yes.",
        "[[epistemic status: 85]] Yes.",
        "[epistemic status: ٨٥] Yes.",
        "[epistemic status: \uff18\uff15] Yes.",
        "[epistemic status: ⁵] Yes.",
        "[epistemic status: 85] Yes. [epistemic status: 20]",
        "[epistemic status: 85][epistemic status: 85] Yes.",
        "[epistemic status: 85] Yes. [Epistemic  Status: so",
        "[ep\u0131stemic status: 85] Yes.",
        "[epistemic \u017ftatus: 85] Yes.",
    ],
)
def test_malformed_outputs_state_no_confidence_and_are_kept_whole(response):
    assert parse_oracle_output(response) == ParsedOutput(None, response.strip())
