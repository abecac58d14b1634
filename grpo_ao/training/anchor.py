"""What of a target is held to the starting oracle, and where the two write it differently.

An oracle that was never taught the tag opens its answer with "Yes"; behind the tag the same answer
opens with " Yes", another token. Held by token ids alone, nothing of such an answer would stay as
it was. So the starting oracle's distribution of the first token is carried over: of each pair of
tokens that differ by a leading space, one takes the other's place.
"""

from collections.abc import Sequence
from functools import cache
from itertools import takewhile

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

# How vocabularies write a leading space: byte-level ones, and those of sentencepiece.
_SPACES = ("\u0120", "\u2581")


@cache
def space_partners(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Int64[Tensor, " vocab"]:
    """Return for each token id that of the same token with a leading space, or without the one.

    A token without such a partner is its own, as are special tokens and the ids by which the
    model's ``vocabulary`` is larger than the tokenizer's. Applied twice it changes nothing.
    """
    special = tokenizer.added_tokens_decoder
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    id_of = {token: i for i, token in enumerate(tokens) if token is not None and i not in special}
    space = max(_SPACES, key=lambda mark: sum(token.startswith(mark) for token in id_of))
    partner_V = torch.arange(vocabulary)
    for token, i in id_of.items():
        spaced = id_of.get(space + token)
        if spaced is not None and not token.startswith(space):
            partner_V[i], partner_V[spaced] = spaced, i
    return partner_V


def kept_tokens(
    token_ids: Sequence[int], origin_ids: Sequence[int], partner_V: Int64[Tensor, " vocab"]
) -> int:
    """Return how many tokens at the end of two sequences are the same answer.

    The first token of ``origin_ids`` may be the partner of the one that stands in its place.
    """
    pairs = zip(reversed(token_ids), reversed(origin_ids), strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    first = len(origin_ids) - 1
    if same == first < len(token_ids) and partner_V[origin_ids[0]] == token_ids[-1 - same]:
        return same + 1
    return same
