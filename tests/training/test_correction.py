import math

import pytest
import torch

from grpo_ao.training.correction import importance_ratio

# Two completions of two tokens: ratios 2 and 1/2 of the first, 1 and unknown of the second.
GAP_BC = torch.tensor([[math.log(2), -math.log(2)], [0.0, math.nan]])


@pytest.mark.parametrize(
    ("mode", "lowest", "highest", "expected"),
    [
        ("token_truncate", None, None, [[2.0, 0.5], [1.0, 1.0]]),
        ("token_truncate", 0.75, 1.5, [[1.5, 0.75], [1.0, 1.0]]),
        ("token_mask", None, 1.5, [[0.0, 0.5], [1.0, 1.0]]),
        ("token_mask", 0.75, None, [[2.0, 0.0], [1.0, 1.0]]),
        ("sequence_truncate", None, 0.9, [[0.9], [0.9]]),
        ("sequence_mask", None, 3.0, [[1.0], [1.0]]),
        ("sequence_mask", 1.1, None, [[0.0], [0.0]]),
    ],
)
def test_ratios_by_hand(mode, lowest, highest, expected):
    ratio = importance_ratio(GAP_BC, mode, lowest, highest)
    torch.testing.assert_close(ratio, torch.tensor(expected))
