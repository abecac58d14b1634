"""Fine-tuning: the loss of a batch by hand, and what is anchored stays."""

import random
from itertools import chain, islice

import pytest
import torch

from grpo_ao.processes import Processes
from grpo_ao.training import fine_tuning
from grpo_ao.training.anchor import space_partners
from grpo_ao.training.fine_tuning import (
    ANCHOR_WEIGHT,
    Start,
    Target,
    batches,
    fine_tune,
    loss_of,
    passes_of,
)
from tests.rigs import adapter_weights, make_oracle, planted_table
from tests.tiny import token_id

END = token_id("<|im_end|>")


def some_targets(rows: int) -> list[Target]:
    """One target a row, of several lengths; every second had no tag, every third is not held."""
    generator = random.Random(4)
    targets = []
    for row in range(rows):
        ids = [generator.randrange(250) for _ in range(3 + row % 4)] + [END]
        weights = [generator.random() for _ in ids]
        origin = ids if row % 2 == 0 else [7, *ids[-2:]]
        targets.append(Target(row, ids, weights, origin, 2 if row % 3 else 0))
    return targets


def log_probs_alone(oracle, table, row, completion):
    """One completion of one row, no padding, no packing."""
    prompt = table.prompts[row].input_ids
    oracle.hook.bind(table.injection([row], len(prompt)))
    logits = oracle.model(input_ids=torch.tensor([prompt + completion])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def by_hand(oracle, start, table, target):
    """The weighted cross-entropy of one target, and its divergence from another oracle."""
    now = log_probs_alone(oracle, table, target.row, target.token_ids)
    cross = sum(
        -weight * now[column, token].item()
        for column, (token, weight) in enumerate(zip(target.token_ids, target.weights, strict=True))
    )
    if not target.kept:
        return cross
    was = log_probs_alone(start, table, target.row, target.origin_ids)[-target.kept :]
    divergence = (was.exp() * (was - now[-target.kept :])).sum().item()
    return cross + ANCHOR_WEIGHT * divergence


def moved(oracle):
    """Give the adapter other weights."""
    torch.manual_seed(8)
    for parameter in oracle.model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


def test_the_loss_is_that_of_the_targets_one_by_one():
    oracle, start = make_oracle(), make_oracle()
    table, targets = planted_table(oracle, 5), some_targets(5)
    origin = Start(oracle)
    with torch.no_grad():
        moved(oracle)
        alone = [by_hand(oracle, start, table, target) for target in targets]
        assert loss_of(oracle, origin, table, targets[:1]).item() == pytest.approx(
            alone[0], rel=1e-4
        )
        whole = loss_of(oracle, origin, table, targets).item()
        assert whole == pytest.approx(sum(alone), rel=1e-4)
        # With another row's vectors it would be another loss.
        table.vectors = [-v_KD for v_KD in table.vectors]
        assert abs(loss_of(oracle, origin, table, targets).item() - whole) > 1e-2


def test_a_first_token_with_a_space_is_held_to_the_one_without():
    """Taught behind a tag: " ?"; said without one: "?"."""
    oracle, start = make_oracle(), make_oracle()
    table = planted_table(oracle, 1)
    bare, spaced = token_id("?"), token_id("Ġ?")
    target = Target(0, [5, spaced, 9, END], [0.0] * 4, [bare, 9, END], 3)
    origin = Start(oracle)
    with torch.no_grad():
        moved(oracle)
        found = loss_of(oracle, origin, table, [target]).item()
        was = log_probs_alone(start, table, 0, target.origin_ids)
        now = log_probs_alone(oracle, table, 0, target.token_ids)[1:]
    was[0, [bare, spaced]] = was[0, [spaced, bare]]  # no other token has a partner here
    assert found == pytest.approx(ANCHOR_WEIGHT * (was.exp() * (was - now)).sum().item(), rel=1e-4)
    assert int((space_partners(oracle.tokenizer, 260) != torch.arange(260)).sum()) == 2


def test_at_the_start_nothing_pulls_at_what_is_anchored():
    oracle = make_oracle()
    table = planted_table(oracle, 3)
    ids = [5, 6, 7, END]
    targets = [Target(row, ids, [0.0] * 4, ids, 3) for row in range(3)]
    with torch.enable_grad():
        loss = loss_of(oracle, Start(oracle), table, targets)
        loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-4)
    gradients = [p.grad for p in oracle.model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.abs().max() < 1e-3 for gradient in gradients)


def after_teaching(weight, monkeypatch):
    """Teach the first token of two; return how likely it became, and how far the others moved."""
    monkeypatch.setattr(fine_tuning, "ANCHOR_WEIGHT", weight)
    oracle, start = make_oracle(), make_oracle()
    table = planted_table(oracle, 4)
    targets = [Target(n, [9, 30 + n, END], [1.0, 0.0, 0.0], [9, 30 + n, END], 2) for n in range(4)]
    fine_tune(Processes(), oracle, Start(oracle), table, targets, 60, 4, 1e-2, 0, lambda n: None)
    with torch.no_grad():
        pairs = [
            [log_probs_alone(o, table, t.row, t.token_ids) for o in (oracle, start)]
            for t in targets
        ]
    gains = [(now[0, 9] - was[0, 9]).exp().item() for now, was in pairs]
    moved = sum((was.exp() * (was - now))[1:].sum().item() for now, was in pairs)
    return min(gains), moved


def test_what_is_anchored_stays_while_the_number_is_learned(monkeypatch):
    free, moved_free = after_teaching(0.0, monkeypatch)
    anchored, moved = after_teaching(2.0, monkeypatch)
    assert min(free, anchored) > 5  # times as likely as before
    assert moved < moved_free / 3


def test_passes_hold_all_targets_and_no_more_than_they_may():
    table, targets = planted_table(make_oracle(), 9), some_targets(9)
    passes = list(passes_of(table, targets, most=120))
    assert len(passes) > 1
    assert sorted(t.row for t in chain(*passes)) == list(range(9))
    for chosen in passes:
        lengths = [len(table.prompts[t.row].input_ids) + len(t.token_ids) for t in chosen]
        assert len(chosen) == 1 or len(chosen) * max(lengths) <= 120
    assert list(passes_of(table, [], most=120)) == []


def test_targets_come_again_only_when_all_have_come():
    targets = some_targets(7)
    found = batches(targets, 3, random.Random(0))
    rows = [target.row for batch in islice(found, 7) for target in batch]
    assert [sorted(rows[n : n + 7]) for n in (0, 7, 14)] == [list(range(7))] * 3
    assert rows[:7] != rows[7:14]
    # A batch may hold more targets than there are.
    assert len(next(batches(targets, 17, random.Random(0)))) == 17


def tuned(dropout=0.0, seed=0, steps=30, batch_size=3):
    oracle = make_oracle(dropout=dropout)
    table = planted_table(oracle, 5)
    targets = some_targets(5)
    base = {n: p.clone() for n, p in oracle.model.named_parameters() if "lora_" not in n}
    before = adapter_weights(oracle)
    oracle.model.train()
    losses = fine_tune(
        Processes(), oracle, Start(oracle), table, targets, steps, batch_size, 3e-2, seed, print
    )
    after = {n: p for n, p in oracle.model.named_parameters() if "lora_" not in n}
    assert all(torch.equal(base[name], after[name]) for name in base)
    assert any(not torch.equal(before[n], w) for n, w in adapter_weights(oracle).items())
    assert set(oracle.model.peft_config) == {"default"}
    assert all(".default." in n for n, p in oracle.model.named_parameters() if p.requires_grad)
    assert oracle.hook.bound is None
    assert oracle.model.training
    return losses


def test_fine_tuning_learns_the_targets_and_changes_the_adapter_alone():
    losses = tuned()
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


def test_dropout_is_off_and_a_seed_repeats_the_losses():
    assert tuned(dropout=0.5, steps=4) == pytest.approx(tuned(steps=4))
    assert tuned(steps=4) == tuned(steps=4)
    assert tuned(steps=4) != tuned(steps=4, seed=1)


def test_the_update_does_not_depend_on_how_a_batch_is_divided_into_passes(monkeypatch):
    whole = tuned(steps=4)
    monkeypatch.setattr(fine_tuning, "tokens_of_a_pass", lambda *_: 1)
    assert tuned(steps=4) == pytest.approx(whole, rel=1e-3)


def test_passes_that_do_not_fit_into_memory_are_halved(monkeypatch):
    whole, passes = tuned(steps=4), []

    def short(oracle, start, table, targets):
        passes.append(len(targets))
        if len(targets) > 1 and len(passes) > 1:
            raise torch.OutOfMemoryError
        return loss_of(oracle, start, table, targets)

    monkeypatch.setattr(fine_tuning, "loss_of", short)
    with pytest.warns(UserWarning, match=r"GPU memory is short: \d+ tokens in a pass"):
        assert tuned(steps=4) == pytest.approx(whole, rel=1e-3)
    # The first step fits; then three at once do not, two do not, and one after the other they do.
    assert passes[0] == 3
    assert passes[1] == 3
    assert passes[-6:] == [1] * 6


def test_a_target_that_does_not_fit_into_memory_ends_the_warm_start(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(fine_tuning, "loss_of", fail)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="memory does not suffice"):
        tuned(steps=1)


def test_a_gradient_that_is_not_finite_stops_the_warm_start():
    oracle = make_oracle()
    table = planted_table(oracle, 3)
    with torch.no_grad():
        next(p for p in oracle.model.parameters() if p.requires_grad).fill_(float("nan"))
    targets = some_targets(3)
    with pytest.raises(ValueError, match="not finite at step 1: lower --warm_start_lr"):
        fine_tune(
            Processes(),
            oracle,
            Start(oracle),
            table,
            targets,
            3,
            2,
            1e-3,
            0,
            progress=lambda n: None,
        )
    assert set(oracle.model.peft_config) == {"default"}
