"""The warm start: what is taught, with what weight, and that nothing sampled is lost."""

import asyncio
import json
import random
from typing import Literal

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from grpo_ao.config import MINI_WEIGHTS
from grpo_ao.epistemic import parse_oracle_output, render_oracle_output
from grpo_ao.judges.protocol import GradeRequest, discard
from grpo_ao.processes import Processes
from grpo_ao.training.warm_start import (
    ANSWER_WEIGHT,
    FORMAT_WEIGHT,
    NUMBER_WEIGHT,
    Sample,
    make_targets,
    sample_answers,
    shrunk_accuracy,
)
from tests.judges.fakes import CountingJudge, score_of
from tests.rigs import make_oracle, planted_table

# Accuracies


def test_accuracy_is_shrunk_to_the_mean_of_its_group_by_hand():
    scores = [[1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.5, 1.0]]
    # Group a: 2 right of 6; (2 + 2/3) / 4 and (0 + 2/3) / 6. Group b: .75 stays .75.
    found = shrunk_accuracy(scores, ["a", "a", "b"])
    assert found == pytest.approx([2 / 3, 1 / 9, 0.75])
    assert shrunk_accuracy(scores, ["a", "a", "b"], strength=0.0) == pytest.approx([1.0, 0.0, 0.75])


def test_a_question_without_grades_has_its_groups_mean():
    assert shrunk_accuracy([[], [1.0, 0.0]], ["a", "a"]) == pytest.approx([0.5, 0.5])
    assert shrunk_accuracy([[]], ["a"]) == [0.0]


def test_samples_weigh_alike_in_the_groups_mean():
    # 1 of 1 and 0 of 3: the mean is 1/4, not the mean of the questions' 1/2.
    assert shrunk_accuracy([[1.0], [0.0] * 3], ["a", "a"]) == pytest.approx([0.5, 0.1])


# Targets


@pytest.fixture(scope="module")
def oracle():
    return make_oracle()


@pytest.fixture(scope="module")
def mini():
    return PreTrainedTokenizerFast.from_pretrained(MINI_WEIGHTS / "base")


def targets_of(
    tokenizer,
    oracle,
    samples,
    mode: Literal["measured", "random"] = "measured",
    seed=0,
    tagged=True,
):
    table = planted_table(oracle, len(samples))
    named = [
        Sample(probe.id, answers, scores, [tagged] * len(answers))
        for probe, (answers, scores) in zip(table.probes, samples, strict=True)
    ]
    rows = range(len(samples))
    return make_targets(tokenizer, table, rows, named, mode, random.Random(seed))


def spelled(tokenizer, target):
    return [
        (tokenizer.decode([i]), weight)
        for i, weight in zip(target.token_ids, target.weights, strict=True)
    ]


def test_a_target_is_an_own_answer_behind_its_measured_accuracy(oracle, mini):
    # All of one family: the mean is 3 of 4, so (1 + 1.5) / 4 and (2 + 1.5) / 4, in per cent.
    right, wrong, twice = targets_of(
        mini, oracle, [(["Yes", "No"], [1.0, 0.0]), (["Yes", "Yes"], [1.0, 1.0])]
    )
    assert mini.decode(right.token_ids) == "[epistemic status: 62] Yes<|im_end|>"
    assert mini.decode(wrong.token_ids) == "[epistemic status: 62] No<|im_end|>"
    assert mini.decode(twice.token_ids) == "[epistemic status: 88] Yes<|im_end|>"
    assert [(t.row, t.count) for t in (right, wrong, twice)] == [(0, 1), (0, 1), (1, 2)]


def test_behind_the_number_a_tagged_answer_is_kept_as_it_stands(oracle, mini):
    (target,) = targets_of(mini, oracle, [(["a cat"], [1.0])])
    assert target.origin_ids == target.token_ids
    assert mini.decode(target.token_ids[-target.kept :]) == "] a cat<|im_end|>"


def test_of_an_answer_without_a_tag_is_kept_what_is_tokenised_alike(oracle, mini):
    (target,) = targets_of(mini, oracle, [(["a cat sat"], [1.0])], tagged=False)
    assert mini.decode(target.origin_ids) == "a cat sat<|im_end|>"
    # Behind the tag the first word has a space before it, so that it is another token.
    assert mini.decode(target.token_ids[-target.kept :]) == " cat sat<|im_end|>"
    assert target.origin_ids[-target.kept :] == target.token_ids[-target.kept :]
    assert "] a" in mini.decode(target.token_ids[: -target.kept])


def test_no_part_of_the_tag_is_kept_of_an_answer_that_resembles_one(oracle, mini):
    # "62] Yes" as an answer without a tag ends like the target that says 62.
    samples = [(["50] Yes"], [0.5])]
    (target,) = targets_of(mini, oracle, samples, tagged=False)
    kept = mini.decode(target.token_ids[-target.kept :])
    assert mini.decode(target.token_ids) == "[epistemic status: 50] 50] Yes<|im_end|>"
    assert "epistemic" not in kept
    assert not kept.startswith("50] 50]")


def test_weights_tell_form_number_and_answer_apart(oracle, mini):
    right, half, wrong = targets_of(mini, oracle, [(["a cat", "a dog", "a fox"], [1.0, 0.5, 0.0])])
    for target, grade in ((right, 1.0), (half, 0.5), (wrong, 0.0)):
        pieces = spelled(mini, target)
        number = [weight for piece, weight in pieces if piece == "50"]
        assert number == [NUMBER_WEIGHT]
        closing = [piece for piece, _ in pieces].index("]")
        form = [weight for piece, weight in pieces[: closing + 1] if piece != "50"]
        assert set(form) == {FORMAT_WEIGHT}
        # The answer and its end weigh as much as its grade.
        assert {weight for _, weight in pieces[closing + 1 :]} == {ANSWER_WEIGHT * grade}
        assert pieces[-1][0] == "<|im_end|>"


def test_a_number_of_several_tokens_is_a_number_in_all_of_them(oracle):
    (target,) = targets_of(oracle.tokenizer, oracle, [(["7 cats"], [1.0])], "random")
    pieces = spelled(oracle.tokenizer, target)
    written = parse_oracle_output("".join(piece for piece, _ in pieces[:-1]))
    assert written.parsed
    numbers = [piece for piece, weight in pieces if weight == 0.0]
    assert "".join(numbers) == str(written.confidence)
    assert written.answer == "7 cats"


def test_random_numbers_teach_no_belief(oracle, mini):
    samples = [(["Yes"], [1.0]), (["No"], [1.0])] * 40
    targets = targets_of(mini, oracle, samples, "random")
    written = [parse_oracle_output(mini.decode(t.token_ids[:-1])).confidence for t in targets]
    assert len(set(written)) > 30
    for target, number in zip(targets, written, strict=True):
        assert dict(spelled(mini, target))[str(number)] == 0.0
    again = targets_of(mini, oracle, samples, "random")
    assert again == targets
    assert targets_of(mini, oracle, samples, "random", seed=1) != targets


def test_answers_that_no_tag_can_stand_before_are_left_out(oracle, mini):
    kept = targets_of(mini, oracle, [(["", "[epistemic status: 4] x", "Yes"], [1.0, 1.0, 1.0])])
    assert len(kept) == 1
    with pytest.raises(ValueError, match="no answer that a tag can be put in front of"):
        targets_of(mini, oracle, [(["", "  "], [1.0, 1.0])])


# Samples


def sample(oracle, table, judge, path, rows, seen=None):
    torch.manual_seed(0)
    report = (lambda n: None) if seen is None else seen.append
    return sample_answers(Processes(), oracle, table, judge, rows, 2, 1.0, 4, path, report)


def test_answers_are_sampled_graded_and_kept_in_order(oracle, tmp_path):
    table, judge, path = planted_table(oracle, 5), CountingJudge(), tmp_path / "samples.jsonl"
    seen: list[int] = []
    found = sample(oracle, table, judge, path, [3, 1, 4], seen)
    assert [s.probe_id for s in found] == [table.probes[row].id for row in (3, 1, 4)]
    assert [len(s.answers) for s in found] == [2, 2, 2]
    for s in found:
        assert s.scores == [score_of(answer) for answer in s.answers]
    assert sum(seen) == 3
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [Sample(**row) for row in written] == found


def test_the_judge_is_shown_answers_without_tag_and_confidence(oracle, tmp_path, monkeypatch):
    table, judge = planted_table(oracle, 2), CountingJudge()
    said = [render_oracle_output(71, "a cat"), "no tag"]
    monkeypatch.setattr("grpo_ao.training.warm_start.complete_table", lambda *_, **__: [said, said])
    found = sample(oracle, table, judge, tmp_path / "s.jsonl", [0, 1])
    assert [r.answer for r in judge.asked] == ["a cat", "no tag"] * 2
    assert [sample.tagged for sample in found] == [[True, False]] * 2
    assert all(isinstance(r, GradeRequest) for r in judge.asked)
    assert "71" not in "".join(r.answer + r.question + r.text for r in judge.asked)


def test_an_ungraded_answer_is_left_out_and_the_others_stay(oracle, tmp_path, monkeypatch):
    table, judge = planted_table(oracle, 1), CountingJudge(unscored=frozenset({"a cat"}))
    said = [[render_oracle_output(71, "a cat"), render_oracle_output(3, "a dog")]]
    monkeypatch.setattr("grpo_ao.training.warm_start.complete_table", lambda *_, **__: said)
    (found,) = sample(oracle, table, judge, tmp_path / "s.jsonl", [0])
    assert (found.answers, found.scores) == (["a dog"], [score_of("a dog")])
    assert found.tagged == [True]


def test_samples_of_another_version_are_refused(oracle, tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"probe_id": "a", "answers": [], "scores": []}\n')
    with pytest.raises(ValueError, match=r"samples\.jsonl holds samples of another version"):
        sample(oracle, planted_table(oracle, 2), CountingJudge(), path, [0])


@pytest.mark.parametrize("half", ["", '{"probe_id": "ab', '{"probe_id": "x", "answers": ["a"]'])
def test_what_a_killed_run_has_sampled_is_not_sampled_again(oracle, tmp_path, half):
    table, path = planted_table(oracle, 6), tmp_path / "samples.jsonl"
    first = sample(oracle, table, CountingJudge(), path, [0, 1, 2])
    with path.open("a") as file:
        file.write(half)
    judge, seen = CountingJudge(), []
    found = sample(oracle, table, judge, path, [0, 4, 1, 2, 5], seen)
    assert len(judge.asked) == 4  # two rows, two samples each
    assert {r.question for r in judge.asked} == {table.probes[row].question for row in (4, 5)}
    assert seen == [3, 2]
    assert [found[i] for i in (0, 2, 3)] == first
    lines = path.read_text().splitlines()
    assert len(lines) == 5
    assert all(json.loads(line) for line in lines)


def test_nothing_is_asked_where_all_is_there(oracle, tmp_path):
    table, path = planted_table(oracle, 3), tmp_path / "samples.jsonl"
    first = sample(oracle, table, CountingJudge(), path, [0, 1, 2])
    judge = CountingJudge()
    assert sample(oracle, table, judge, path, [0, 1, 2]) == first
    assert not judge.asked


def test_the_judge_is_awaited_once_for_a_chunk(oracle, tmp_path):
    class Batches(CountingJudge):
        sizes: list[int] = []  # noqa: RUF012

        async def grade(self, requests, keep=discard):
            self.sizes.append(len(requests))
            await asyncio.sleep(0)
            return await super().grade(requests, keep)

    judge = Batches()
    sample(oracle, planted_table(oracle, 6), judge, tmp_path / "s.jsonl", range(6))
    assert judge.sizes == [12]
