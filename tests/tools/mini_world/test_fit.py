import math

import pytest
import torch
from torch import nn

from tools.mini_world.fit import Schedule, fit, weighted_cross_entropy


def test_the_learning_rate_rises_and_falls_to_zero():
    schedule = Schedule(steps=110, batch_size=1, learning_rate=2.0, warmup_steps=10)
    assert schedule.rate(0) == pytest.approx(0.2)
    assert schedule.rate(9) == pytest.approx(2.0)
    assert schedule.rate(10) == pytest.approx(2.0)
    assert schedule.rate(60) == pytest.approx(1.0)
    assert schedule.rate(110) == pytest.approx(0.0)


def test_each_token_counts_by_its_own_weight():
    logits_BLV = torch.zeros(1, 4, 5)
    logits_BLV[0, 1, 2] = 3.0
    ids_BL = torch.tensor([[0, 1, 2, 3]])
    # Token 1 is foreseen at chance, token 2 with logit 3, token 3 not counted.
    weight_BL = torch.tensor([[9.0, 1.0, 3.0, 0.0]])
    chance = math.log(5)
    foreseen = -math.log(math.exp(3) / (math.exp(3) + 4))
    loss = weighted_cross_entropy(logits_BLV, ids_BL, weight_BL)
    assert loss.item() == pytest.approx((chance + 3 * foreseen) / 4)


def test_fitting_finds_the_minimum_and_logs_steps():
    layer, log = nn.Linear(2, 1, bias=False), []
    wanted = torch.tensor([[1.0, -2.0]])
    generator = torch.Generator().manual_seed(0)

    def batches(_step):
        x = torch.randn(16, 2, generator=generator)
        return {"x": x, "y": x @ wanted.T}

    fit(
        lambda batch: (layer(batch["x"]) - batch["y"]).square().mean(),
        layer.parameters(),
        batches,
        Schedule(400, 16, 0.05, 5),
        log.append,
        weight_decay=0.0,
    )
    torch.testing.assert_close(layer.weight.detach(), wanted, atol=1e-2, rtol=1e-2)
    assert log[0]["step"] == 0
    assert log[-1]["step"] == 399
    assert log[-1]["loss"] < 1e-3 < log[0]["loss"]


def test_what_needs_no_gradient_is_left_alone():
    layer = nn.Linear(2, 1)
    layer.bias.requires_grad_(False)
    before = layer.bias.clone()
    batch = {"x": torch.ones(4, 2)}
    fit(
        lambda b: layer(b["x"]).square().mean(),
        layer.parameters(),
        lambda _: batch,
        Schedule(5, 4, 0.1, 1),
        lambda row: None,
    )
    assert torch.equal(layer.bias, before)
