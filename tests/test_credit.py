import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from grpo_ao.config import MINI_WEIGHTS
from grpo_ao.credit import (
    ScaleRewards,
    group_advantages,
    means_of_the_others,
    split_advantages,
    tag_lengths,
)
from grpo_ao.epistemic import parse_oracle_output

NAN = math.nan


def advantages(values, group_size, scale):
    return group_advantages(torch.tensor(values), group_size, scale).tolist()


def close(*values):
    return pytest.approx(values, rel=1e-4, abs=1e-6)


# Group advantages


def test_none_subtracts_the_groups_mean():
    values = [1.0, 0.0, 0.5, 0.5, 4.0, 0.0]
    assert advantages(values, 2, "none") == close(0.5, -0.5, 0, 0, 2, -2)
    assert advantages(values, 3, "none") == close(0.5, -0.5, 0, -1, 2.5, -1.5)


def test_group_divides_by_the_groups_sample_deviation():
    # Of (1, 0, 0, 1): sqrt(4 * .25 / 3). Of (3, 3, 3, 7): sqrt((3 * 1 + 9) / 3) = 2.
    one = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    expected = close(one, -one, -one, one, -1 / 2.0001, -1 / 2.0001, -1 / 2.0001, 3 / 2.0001)
    assert advantages([1.0, 0.0, 0.0, 1.0, 3.0, 3.0, 3.0, 7.0], 4, "group") == expected


def test_batch_divides_by_the_deviation_of_all():
    # The mean of all is 2, their sample deviation sqrt((4 + 0 + 0 + 4) / 3).
    deviation = math.sqrt(8 / 3) + 1e-4
    expected = close(-1 / deviation, 1 / deviation, -1 / deviation, 1 / deviation)
    assert advantages([0.0, 2.0, 2.0, 4.0], 2, "batch") == expected


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_a_group_that_scores_alike_has_no_advantage(scale):
    assert advantages([0.5, 0.5, 0.5, 1.0, 0.0, 0.5], 3, scale)[:3] == [0.0, 0.0, 0.0]


def test_a_missing_value_gets_0_and_enters_no_mean():
    assert advantages([1.0, NAN, 0.0, NAN, NAN, 3.0], 3, "none") == close(0.5, 0, -0.5, 0, 0, 0)


def test_a_missing_value_enters_no_deviation():
    # Of (1, 3) without the third: mean 2, deviation sqrt(2).
    one = 1 / (math.sqrt(2) + 1e-4)
    assert advantages([1.0, 3.0, NAN], 3, "group") == close(-one, one, 0)
    # Of all known values, (1, 3, 5, 7): mean 4, deviation sqrt(20 / 3).
    one = 1 / (math.sqrt(20 / 3) + 1e-4)
    found = advantages([1.0, 3.0, NAN, 5.0, 7.0, NAN], 3, "batch")
    assert found == close(-one, one, 0, -one, one, 0)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_nothing_known_is_no_advantage(scale):
    assert advantages([NAN, NAN, NAN, NAN], 2, scale) == [0, 0, 0, 0]


numbers = st.floats(-2, 1, width=32) | st.just(NAN)
batches = st.integers(2, 6).flatmap(
    lambda size: st.lists(st.lists(numbers, min_size=size, max_size=size), min_size=1, max_size=4)
)
scales = st.sampled_from(["group", "batch", "none"])


@given(batches, scales)
def test_the_mean_of_each_group_is_0_and_all_are_finite(groups, scale):
    values = torch.tensor(groups).flatten()
    found_N = group_advantages(values, len(groups[0]), scale)
    assert found_N.isfinite().all()
    # Float errors of the mean are divided by at least 1e-4.
    sums = found_N.view(len(groups), -1).sum(dim=1)
    assert sums.abs().max() < (1e-5 if scale == "none" else 0.1)
    assert (found_N[values.isnan()] == 0).all()


@given(batches, st.sampled_from(["group", "none"]))
def test_groups_do_not_see_each_other(groups, scale):
    size = len(groups[0])
    together = group_advantages(torch.tensor(groups).flatten(), size, scale)
    alone = [group_advantages(torch.tensor(group), size, scale) for group in groups]
    torch.testing.assert_close(together, torch.cat(alone))


# The outcome of the group's others


def others(values, group_size):
    found_N = means_of_the_others(torch.tensor(values), group_size)
    return [None if math.isnan(value) else value for value in found_N.tolist()]


def test_a_value_is_left_out_of_its_own_groups_mean():
    assert others([1.0, 0.0, 0.5, 0.25, 0.25, 1.0], 3) == close(0.25, 0.75, 0.5, 0.625, 0.625, 0.25)


def test_what_is_missing_has_no_others_and_is_none():
    assert others([1.0, NAN, 0.0, NAN, 0.5, NAN], 3) == [0.0, None, 1.0, None, None, None]


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=5))
def test_the_others_of_all_have_the_mean_of_all(groups):
    values_N = torch.tensor(groups).flatten()
    torch.testing.assert_close(means_of_the_others(values_N, 4).mean(), values_N.mean())


def test_the_others_say_the_same_with_less_variance():
    generator = torch.Generator().manual_seed(0)
    graded_N = (torch.rand(80_000, generator=generator) < 0.7).float()
    others_N = means_of_the_others(graded_N, 8)
    assert others_N.mean().item() == pytest.approx(0.7, abs=0.01)
    assert others_N.var().item() == pytest.approx(graded_N.var().item() / 7, rel=0.05)


# The tag's tokens


@pytest.fixture(scope="module")
def mini():
    return AutoTokenizer.from_pretrained(MINI_WEIGHTS / "base")


def encoded(tokenizer, texts):
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]


def test_the_tag_ends_with_the_token_that_closes_it(mini):
    texts = [
        "[epistemic status: 85] Yes it is.",
        "[epistemic status: 5] Yes [1] it is.",
        " [epistemic status: 100] No.",
    ]
    completions = encoded(mini, texts)
    shown = [
        mini.decode(ids[:count])
        for ids, count in zip(completions, tag_lengths(mini, completions), strict=True)
    ]
    assert shown == [
        "[epistemic status: 85]",
        "[epistemic status: 5]",
        " [epistemic status: 100]",
    ]


@pytest.mark.parametrize("confidence", range(101))
def test_the_tag_of_every_confidence_is_told_from_the_answer(mini, confidence):
    tag = f"[epistemic status: {confidence}]"
    (ids,) = encoded(mini, [f"{tag} Yes."])
    (count,) = tag_lengths(mini, [ids])
    assert mini.decode(ids[:count]) == tag
    assert mini.decode(ids[count:]) == " Yes."


def test_a_completion_that_closes_no_bracket_has_no_tag(mini):
    completions = encoded(mini, ["Yes it is.", "[epistemic status: 85", ""])
    assert tag_lengths(mini, completions) == [0, 0, 0]


def test_padding_and_end_after_the_tag_do_not_matter(mini):
    (ids,) = encoded(mini, ["[epistemic status: 85] Yes."])
    (count,) = tag_lengths(mini, [ids])
    padded = [*ids, mini.eos_token_id, mini.pad_token_id, mini.pad_token_id]
    assert tag_lengths(mini, [padded]) == [count]


def test_a_token_that_closes_the_tag_and_holds_more_is_the_tags():
    tokenizer = word_tokenizer("[", "5", "].", "Yes")
    assert tag_lengths(tokenizer, [[0, 1, 2, 3], [0, 1, 3]]) == [3, 0]


def test_an_id_without_a_token_is_skipped():
    # A model's vocabulary may be padded beyond the tokenizer's.
    tokenizer = word_tokenizer("[", "5", "]", "Yes")
    assert tag_lengths(tokenizer, [[0, 99, 1, 2, 3], [99]]) == [4, 0]


def word_tokenizer(*tokens):
    vocabulary = {token: i for i, token in enumerate(tokens)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=tokens[-1]))
    return PreTrainedTokenizerFast(tokenizer_object=words)


# Split credit

# Two groups of two completions of four tokens; the first two tokens are the tag's, the third
# completion has none.
TAG = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()


def split(informativeness, calibration, reward, parsed, scale: ScaleRewards = "none", tag=TAG):
    return split_advantages(
        tag,
        torch.tensor(informativeness),
        torch.tensor(calibration),
        torch.tensor(reward),
        torch.tensor(parsed),
        group_size=2,
        scale=scale,
    ).tolist()


def test_the_tag_gets_calibrations_advantage_and_the_answer_informativenesss():
    tag = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    found = split([1.0, 0.0], [-0.5, -0.1], [0.5, -0.1], [True, True], tag=tag)
    assert found == [close(-0.2, -0.2, 0.5, 0.5), close(0.2, -0.5, -0.5, -0.5)]


def test_an_unparsed_completion_gets_the_rewards_advantage_in_all_tokens():
    found = split(
        informativeness=[1.0, 0.5, NAN, 0.8],
        calibration=[-0.4, -0.2, NAN, -0.1],
        reward=[0.6, 0.3, -1.5, 0.7],
        parsed=[True, True, False, True],
    )
    assert found == [
        close(-0.1, -0.1, 0.25, 0.25),
        close(0.1, 0.1, -0.25, -0.25),
        close(-1.1, -1.1, -1.1, -1.1),
        close(0, 0, 0, 0),  # alone in its group's means
    ]


def test_an_unparsed_completions_terms_enter_no_mean_even_where_they_are_numbers():
    terms = {"reward": [0.6, 0.3, -1.5, 0.7], "parsed": [True, True, False, True]}
    known = split([1.0, 0.5, 0.0, 0.8], [-0.4, -0.2, -9.0, -0.1], **terms)
    assert known == split([1.0, 0.5, NAN, 0.8], [-0.4, -0.2, NAN, -0.1], **terms)


def test_an_unparsed_completion_that_closes_a_bracket_has_no_tag():
    tag = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    found = split([1.0, NAN], [-0.4, NAN], [0.6, -1.4], [True, False], tag=tag)
    assert found == [close(0, 0, 0, 0), close(-1, -1, -1, -1)]


def test_an_ungraded_completion_gets_no_advantage_and_enters_no_mean():
    found = split(
        informativeness=[1.0, NAN, 0.2, 0.8],
        calibration=[-0.4, NAN, -0.3, -0.1],
        reward=[0.6, NAN, -0.1, 0.7],
        parsed=[True, True, True, True],
    )
    assert found[:2] == [[0, 0, 0, 0], [0, 0, 0, 0]]
    assert found[2:] == [close(-0.3, -0.3, -0.3, -0.3), close(0.1, 0.1, 0.3, 0.3)]


def test_each_term_is_scaled_by_its_own_deviation():
    tag = torch.tensor([[1, 0], [1, 0]]).bool()
    found = split([1.0, 0.0], [-0.2, -0.1], [0.8, -0.1], [True, True], "group", tag)
    tag_share = 0.05 / (0.1 / math.sqrt(2) + 1e-4)
    answer_share = 0.5 / (1 / math.sqrt(2) + 1e-4)
    assert found == [close(-tag_share, answer_share), close(tag_share, -answer_share)]


TEXTS = ["[epistemic status: 85] Yes it is.", "[epistemic status: 100] No.", "Yes it is.", ""]


def test_tag_and_parser_agree_on_what_the_answer_is(mini):
    completions = encoded(mini, TEXTS)
    for text, ids, count in zip(TEXTS, completions, tag_lengths(mini, completions), strict=True):
        assert mini.decode(ids[count:]).strip() == parse_oracle_output(text).answer
