"""The build's own reading and injection, over static buffers, are those of the oracle."""

import random

import pytest
import torch

from grpo_ao.mini.world import make_message
from grpo_ao.oracle.activations import extract_activations
from grpo_ao.oracle.injection import Injection, inject
from grpo_ao.oracle.layers import decoder_layers
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.probe import Positions
from tools.mini_world.build import WEIGHTS
from tools.mini_world.corpus import LONGEST_RUN, oracle_examples
from tools.mini_world.steering import (
    SteeredBatches,
    attach_steering,
    read_activations,
    steered_logits,
)

LAYERS = [2, 4, 6]


@pytest.fixture(scope="module")
def oracle():
    return Oracle.from_pretrained(WEIGHTS / "base", WEIGHTS / "oracle", device="cpu")


@pytest.fixture(scope="module")
def messages():
    return [make_message(4, index) for index in range(12)]


@pytest.fixture(scope="module")
def activations(oracle, tokenizer, messages):
    with oracle.model.disable_adapter():
        base = oracle.model.get_base_model()
        return read_activations(base, tokenizer, [m.text for m in messages], LAYERS)


def test_the_build_reads_what_the_oracle_reads(oracle, messages, activations):
    last_20 = Positions.parse(f"last:{LONGEST_RUN}")
    found = extract_activations(
        oracle.model, oracle.tokenizer, [m.text for m in messages], LAYERS, last_20
    )
    assert activations.shape == (12, 3, 20, 192)
    for text, by_layer in enumerate(found):
        for slot, layer in enumerate(LAYERS):
            expected_KD = by_layer[layer].bfloat16().float()
            torch.testing.assert_close(
                activations[text, slot].float(), expected_KD, atol=1e-2, rtol=2e-2
            )


@pytest.fixture(scope="module")
def batch(tokenizer, messages, activations):
    examples, _ = oracle_examples(tokenizer, messages, random.Random(0), 72, LAYERS, 3, "train")
    batches = SteeredBatches(examples, activations, batch_size=8, seed=0)
    rows = torch.tensor([0, 5, 11, 17, 30])
    vectors = [
        activations[examples.text_B[r], examples.layer_B[r], LONGEST_RUN - examples.run_B[r] :]
        for r in rows
    ]
    positions = [
        list(range(examples.start_B[r], examples.start_B[r] + examples.run_B[r])) for r in rows
    ]
    assert len({len(row) for row in positions}) > 1
    return batches.take(rows), Injection.from_rows(positions, vectors)


def test_the_steering_of_a_batch_is_its_own_activations_at_its_placeholders(batch):
    taken, injection = batch
    resid_BLD = torch.randn(*taken["ids"].shape, 192, generator=torch.Generator().manual_seed(0))
    expected_BLD = inject(resid_BLD, injection.vectors_BKD, injection.positions_BK)
    steered_BLD = resid_BLD + resid_BLD.norm(dim=-1, keepdim=True) * taken["steer"]
    torch.testing.assert_close(steered_BLD, expected_BLD, atol=1e-4, rtol=1e-4)


def test_the_model_is_steered_as_the_oracle_injects(oracle, batch):
    taken, injection = batch
    with torch.no_grad():
        with oracle.hook.serving(injection):
            expected_BLV = oracle.model(input_ids=taken["ids"], use_cache=False).logits
        unsteered_BLV = oracle.model(input_ids=taken["ids"], use_cache=False).logits
        layer = decoder_layers(oracle.model)[oracle.spec.hook_onto_layer]
        before = set(layer._forward_hooks)
        holder = attach_steering(oracle.model, oracle.spec.hook_onto_layer)
        found_BLV = steered_logits(oracle.model, holder, taken)
        for added in set(layer._forward_hooks) - before:
            del layer._forward_hooks[added]
    torch.testing.assert_close(found_BLV, expected_BLV, atol=1e-3, rtol=1e-3)
    assert (unsteered_BLV - expected_BLV).abs().max() > 1


def test_batches_are_drawn_by_their_seed(tokenizer, messages, activations):
    examples, _ = oracle_examples(tokenizer, messages, random.Random(0), 72, LAYERS, 3, "train")
    draws = [SteeredBatches(examples, activations, 8, seed)(0)["ids"] for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
