"""The pairs of tokens that differ by a leading space, in two kinds of tokenizers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from grpo_ao.training.anchor import kept_tokens, space_partners
from tests.tiny import tiny_tokenizer


def sentencepiece() -> PreTrainedTokenizerFast:
    words = ["<unk>", "</s>", "\u2581Yes", "Yes", "\u2581No", "ly", "\u2581", "\u2581\u2581", "No"]
    model = models.Unigram([(word, -float(n)) for n, word in enumerate(words)], unk_id=0)
    unigram = Tokenizer(model)
    unigram.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    unigram.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(
        tokenizer_object=unigram, eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


@pytest.mark.parametrize(
    ("tokenizer", "words"), [(tiny_tokenizer(), ["?"]), (sentencepiece(), ["Yes", "No"])]
)
def test_partners_differ_by_a_leading_space(tokenizer, words):
    partner_V = space_partners(tokenizer, len(tokenizer) + 5)
    for word in words:
        (bare,) = tokenizer.encode(word, add_special_tokens=False)
        (spaced,) = tokenizer.encode(f" {word}", add_special_tokens=False)
        assert (partner_V[bare], partner_V[spaced]) == (spaced, bare)
    size = len(tokenizer)
    assert partner_V[partner_V].tolist() == list(range(size + 5))
    paired = [i for i in range(size) if partner_V[i] > i]
    assert paired
    for i in paired:
        a, b = sorted(tokenizer.convert_ids_to_tokens([i, int(partner_V[i])]), key=len)
        assert b[1:] == a
    # Special tokens, tokens without partner, and ids beyond the tokenizer's are their own.
    assert partner_V[tokenizer.eos_token_id] == tokenizer.eos_token_id
    assert partner_V[size:].tolist() == list(range(size, size + 5))


def test_a_run_of_spaces_is_no_word_with_a_space():
    tokenizer = sentencepiece()
    partner_V = space_partners(tokenizer, len(tokenizer))
    for token in ("\u2581", "\u2581\u2581", "ly"):
        i = tokenizer.convert_tokens_to_ids(token)
        assert partner_V[i] == i


PARTNERS = torch.tensor([1, 0, 2, 3, 4])  # 0 and 1 are a word without and with its space


@pytest.mark.parametrize(
    ("token_ids", "origin_ids", "kept"),
    [
        ([3, 1, 4], [0, 4], 2),  # "Yes" and " Yes", and the end
        ([3, 1, 2, 4], [0, 2, 4], 3),
        ([3, 2, 4], [0, 4], 1),  # another word
        ([3, 1, 2, 4], [0, 3, 4], 1),  # the first token's partner, but not the second's
        ([3, 1, 4], [3, 1, 4], 3),  # with a tag as without one
        ([1, 4], [3, 0, 4], 1),  # a partner that is not the first
        ([4], [0, 4], 1),  # nothing stands in its place
    ],
)
def test_what_is_kept_by_hand(token_ids, origin_ids, kept):
    assert kept_tokens(token_ids, origin_ids, PARTNERS) == kept


ids = st.lists(st.integers(0, 4), min_size=1, max_size=6)


@given(ids, ids)
def test_what_is_kept_is_the_same_but_for_a_first_space(token_ids, origin_ids):
    kept = kept_tokens(token_ids, origin_ids, PARTNERS)
    assert kept <= min(len(token_ids), len(origin_ids))
    ends = list(zip(token_ids[len(token_ids) - kept :], origin_ids[-kept or None :], strict=False))
    assert all(a == b for a, b in ends[1:])
