import asyncio

import pytest

from grpo_ao.epistemic import parse_oracle_output, render_oracle_output
from grpo_ao.measuring.heldout import (
    arrays,
    complete_table,
    heldout_row,
    measure,
    scored_of_row,
    summarise,
)
from grpo_ao.report.summary import draw_reliability, summary_table
from grpo_ao.reward import score_completions
from tests.judges.fakes import CountingJudge, score_of
from tests.rigs import make_oracle, planted_table, probe


def scored(*completions: str, unscored: tuple[str, ...] = ()):
    probes = [probe(number) for number in range(len(completions))]
    judge = CountingJudge(unscored=frozenset(unscored))
    return asyncio.run(score_completions(judge, probes, completions, 0.0))


SAID = [render_oracle_output(90, "a cat"), "no tag here", render_oracle_output(30, "a dog")]


def test_arrays_leave_out_what_was_not_graded_and_keep_what_was_not_parsed():
    confidence, score, parsed = arrays(scored(*SAID, unscored=("a dog",)))
    assert parsed.tolist() == [True, False]
    assert confidence.tolist() == [0.9, 0.5]
    assert score.tolist() == [score_of("a cat"), 0.0]
    confidence, _, parsed = arrays(scored(*SAID))
    assert confidence[parsed].tolist() == [0.9, 0.3]


def test_a_summary_counts_an_unparsed_answer_as_uninformative():
    found = summarise(scored(*SAID))
    assert found["n"] == 3
    assert found["parse_rate"] == pytest.approx(2 / 3)
    expected = (score_of("a cat") + score_of("a dog")) / 3
    assert found["informativeness"] == pytest.approx(expected)
    assert found["confidence_mean"] == pytest.approx(0.6)
    assert found["confidence_std"] == pytest.approx(0.3)


def test_a_row_is_read_back_as_it_was_scored():
    for answer in scored(*SAID, unscored=("a dog",)):
        row = heldout_row(answer)
        again = scored_of_row(row, answer.probe)
        assert again.output == answer.output
        assert again.terms.informativeness == answer.terms.informativeness
        assert (again.grade is None) is (answer.grade is None)
        assert heldout_row(again) == row


def test_a_row_of_another_probe_is_refused():
    first, second, _ = scored(*SAID)
    with pytest.raises(ValueError, match=f"of probe {first.probe.id}, not of {second.probe.id}"):
        scored_of_row(heldout_row(first), second.probe)


def test_a_row_has_all_that_a_reader_of_results_needs():
    (answer,) = scored(SAID[0])
    row = heldout_row(answer)
    assert row["probe_id"] == answer.probe.id
    assert (row["text"], row["question"]) == (answer.probe.text, answer.probe.question)
    assert (row["confidence"], row["answer"], row["parsed"]) == (90, "a cat", True)
    assert (row["layer"], row["positions"]) == (answer.probe.layer, str(answer.probe.positions))


# With a model


@pytest.fixture(scope="module")
def oracle():
    return make_oracle()


def test_every_probe_is_asked_once_in_order_and_about_its_own_activations(oracle):
    table, judge, seen = planted_table(oracle, 7), CountingJudge(), []
    found = measure(oracle, table, judge, 0.0, 6, seen.append)
    assert [s.probe.id for s in found] == [p.id for p in table.probes]
    assert seen[-1] == 7
    for row, answer in enumerate(found):
        ((alone,),) = complete_table(oracle, table, [row], 0.0, 6)
        assert answer.completion == alone
        assert answer.output == parse_oracle_output(alone)
    # A random model writes no tag, and what has none is not judged.
    assert not judge.asked


def test_rows_are_completed_in_the_order_asked_for(oracle):
    table = planted_table(oracle, 6)
    whole = complete_table(oracle, table, range(6), 0.0, 5)
    some = complete_table(oracle, table, [4, 1], 0.0, 5, batch_size=1)
    assert some == [whole[4], whole[1]]
    many = complete_table(oracle, table, [2, 0], 1.0, 5, num_samples=3)
    assert [len(samples) for samples in many] == [3, 3]


# What a run shows of it


MEASURED = {"before": ("no tag", "none either"), "after": tuple(SAID)}


def measured():
    return {
        when: {mode: scored(*said) for mode in ("sampled", "greedy")}
        for when, said in MEASURED.items()
    }


def test_the_table_has_a_line_a_metric_and_a_column_a_measurement():
    summary = {
        when: {mode: summarise(found) for mode, found in modes.items()}
        for when, modes in measured().items()
    }
    table = summary_table(summary)
    heads = [str(column.header) for column in table.columns]
    assert heads == [
        "metric",
        "before, sampled",
        "after, sampled",
        "before, greedy",
        "after, greedy",
    ]
    columns = [list(column.cells) for column in table.columns]
    lines = {cells[0]: cells[1:] for cells in zip(*columns, strict=True)}
    assert list(lines) == list(summary["after"]["greedy"])
    assert lines["n"] == ("2", "3", "2", "3")
    assert lines["parse_rate"] == ("0.000", "0.667", "0.000", "0.667")
    assert lines["confidence_mean"][0] == "nan"


def test_a_run_whose_first_oracle_knew_no_tag_has_its_picture(tmp_path):
    draw_reliability(tmp_path / "reliability.png", measured())
    assert (tmp_path / "reliability.png").stat().st_size > 5000
