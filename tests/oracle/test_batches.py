from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_ao.oracle.batches import batched, mask_of, padded


def test_rows_are_padded_to_the_longest_or_to_a_length():
    rows = [[1, 2], [3], []]
    assert padded(rows, 9).tolist() == [[1, 2], [3, 9], [9, 9]]
    assert padded(rows, 9, left=True).tolist() == [[1, 2], [9, 3], [9, 9]]
    assert padded(rows, 9, length=3).tolist() == [[1, 2, 9], [3, 9, 9], [9, 9, 9]]
    assert padded([[], []], 9).shape == (2, 0)
    assert padded([[], []], 9).dtype == torch.int64


def test_a_mask_marks_the_rows_own_tokens():
    assert mask_of([[7, 0], [5]]).tolist() == [[1, 1], [1, 0]]
    assert mask_of([[7, 0], [5]], left=True).tolist() == [[1, 1], [0, 1]]


@given(st.lists(st.integers(1, 30)), st.integers(1, 60))
def test_batches_hold_each_row_once_and_as_many_as_fit(lengths, most):
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])

    def fits(batch):
        return len(batch) * lengths[batch[0]] <= most

    batches = batched(order, fits)
    assert [row for batch in batches for row in batch] == order
    assert all(fits(batch) or len(batch) == 1 for batch in batches)
    assert not any(fits([*a, b[0]]) for a, b in pairwise(batches))
