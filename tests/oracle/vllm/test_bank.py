import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_ao.oracle.injection import inject
from grpo_ao.oracle.vllm.bank import (
    BankSettings,
    VectorBank,
    chunks_that_fit,
    settings_from,
    virtual_ids,
)
from tests.oracle.vllm.fakes import FakeDecoder

VOCABULARY, WIDTH, LAYERS, ROWS = 50, 16, 4, 8
SETTINGS = BankSettings(layer=1, coefficient=1.0, placeholder_id=7, first_id=VOCABULARY, rows=ROWS)


def rig(settings=SETTINGS):
    """Two equal decoders, one with a bank."""
    torch.manual_seed(0)
    with_bank, plain = (
        FakeDecoder(VOCABULARY, WIDTH, LAYERS),
        FakeDecoder(VOCABULARY, WIDTH, LAYERS),
    )
    plain.load_state_dict(with_bank.state_dict())
    bank = VectorBank(settings, WIDTH, max_tokens=32, device="cpu")
    bank.attach(with_bank.embed_tokens, with_bank.layers)
    return with_bank, plain, bank


def steered(decoder, ids, vectors, positions, layer=1, coefficient=1.0):
    """What the stream after ``layer`` must be, by the injection of the trainer's own model."""
    stream = decoder(torch.tensor(ids), stop=layer + 1)
    return inject(stream[None], vectors[None], torch.tensor([positions]), coefficient)[0]


@pytest.mark.parametrize(("layer", "coefficient"), [(1, 1.0), (0, 1.0), (2, -0.5)])
def test_a_virtual_id_injects_its_row_as_the_trainers_model_does(layer, coefficient):
    settings = dataclasses.replace(SETTINGS, layer=layer, coefficient=coefficient)
    with_bank, plain, bank = rig(settings)
    vectors = torch.randn(2, WIDTH) * 30
    bank.fill(vectors)
    ids, positions = [3, 7, 9, 7, 4], [1, 3]
    virtual = virtual_ids(ids, positions, 0, settings)
    assert virtual == [3, VOCABULARY, 9, VOCABULARY + 1, 4]
    stream = with_bank(torch.tensor(virtual), stop=layer + 1)
    expected = steered(plain, ids, vectors, positions, layer, coefficient)
    torch.testing.assert_close(stream, expected)
    assert not torch.allclose(stream[[1, 3]], plain(torch.tensor(ids), stop=layer + 1)[[1, 3]])


def test_other_tokens_are_left_bit_for_bit_and_a_placeholder_of_a_question_is_one_of_them():
    with_bank, plain, bank = rig()
    bank.fill(torch.randn(1, WIDTH))
    ids = [7, 3, 7, 5]
    virtual = virtual_ids(ids, [2], 0, SETTINGS)
    changed = with_bank(torch.tensor(virtual)) != plain(torch.tensor(ids))
    assert changed.any(dim=1).tolist() == [False, False, True, False]


def test_a_batch_without_virtual_ids_after_one_with_them_is_untouched():
    with_bank, plain, bank = rig()
    bank.fill(torch.randn(ROWS, WIDTH))
    with_bank(torch.arange(VOCABULARY, VOCABULARY + 6))
    ids = torch.tensor([7, 7, 7])
    assert torch.equal(with_bank(ids), plain(ids))


def test_chunks_of_a_prompt_give_what_the_whole_prompt_gives():
    # The fake decoder treats tokens one by one, as chunked prefill does with the bank.
    with_bank, _, bank = rig()
    bank.fill(torch.randn(3, WIDTH))
    virtual = torch.tensor(virtual_ids([7, 1, 7, 2, 7], [0, 2, 4], 0, SETTINGS))
    whole = with_bank(virtual)
    parts = torch.cat([with_bank(virtual[:2]), with_bank(virtual[2:])])
    torch.testing.assert_close(parts, whole)


def test_equal_prompts_with_different_vectors_differ_in_ids_and_in_outcome():
    with_bank, _, bank = rig()
    bank.fill(torch.randn(2, WIDTH))
    first, second = (virtual_ids([1, 7], [1], row, SETTINGS) for row in (0, 1))
    assert first != second
    assert not torch.allclose(with_bank(torch.tensor(first)), with_bank(torch.tensor(second)))


def test_refilled_rows_hold_the_new_vectors():
    with_bank, plain, bank = rig()
    bank.fill(torch.randn(ROWS, WIDTH))
    vectors = torch.randn(1, WIDTH)
    bank.fill(vectors)
    stream = with_bank(torch.tensor([1, VOCABULARY]), stop=2)
    torch.testing.assert_close(stream, steered(plain, [1, 7], vectors, [1]))


def test_the_bank_works_in_the_dtype_of_the_stream():
    with_bank, plain, bank = rig()
    with_bank.bfloat16()
    plain.bfloat16()
    vectors = torch.randn(1, WIDTH, dtype=torch.bfloat16)
    bank.fill(vectors)
    stream = with_bank(torch.tensor([1, VOCABULARY]), stop=2)
    assert stream.dtype == torch.bfloat16
    assert torch.equal(stream, steered(plain, [1, 7], vectors, [1]))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(ROWS + 1, WIDTH), "rows of width"),
        (torch.ones(2, WIDTH + 1), "rows of width"),
        (torch.zeros(1, WIDTH), "no direction"),
        (torch.full((1, WIDTH), torch.inf), "no direction"),
    ],
)
def test_vectors_that_cannot_be_held_are_refused(vectors, message):
    _, _, bank = rig()
    with pytest.raises(ValueError, match=message):
        bank.fill(vectors)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="cannot inject at layer 4: the model has 4"):
        rig(dataclasses.replace(SETTINGS, layer=4))


def test_a_position_that_holds_no_placeholder_is_refused():
    with pytest.raises(ValueError, match="token 1 of a prompt is 3, not the placeholder 7"):
        virtual_ids([7, 3], [0, 1], 0, SETTINGS)


def test_settings_survive_the_engines_configuration():
    assert settings_from(SETTINGS.to_config()) == SETTINGS
    with pytest.raises(ValueError, match="additional_config"):
        settings_from({})


@given(st.lists(st.integers(0, 8)), st.integers(8, 20))
def test_chunks_keep_the_order_and_none_has_too_many_vectors(counts, rows):
    chunks = chunks_that_fit(counts, rows)
    assert [i for chunk in chunks for i in chunk] == list(range(len(counts)))
    sums = [sum(counts[i] for i in chunk) for chunk in chunks]
    assert all(total <= rows for total in sums)
    # No two neighbours would have fitted together with the first prompt of the second.
    assert all(sums[n] + counts[chunks[n + 1][0]] > rows for n in range(len(chunks) - 1))


def test_a_prompt_with_more_vectors_than_rows_is_refused():
    with pytest.raises(ValueError, match="a prompt has 9 vectors; the bank of the engine holds 8"):
        chunks_that_fit([1, 9], 8)
