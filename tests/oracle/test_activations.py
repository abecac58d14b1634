import copy
from typing import Any

import pytest
import torch
from torch import nn

from grpo_ao.errors import UserError
from grpo_ao.oracle import activations
from grpo_ao.oracle.activations import (
    adapter_off,
    characters_read,
    content_start,
    evaluating,
    extract_activations,
    read_residuals,
    select_positions,
    subject_token_ids,
)
from grpo_ao.oracle.layers import decoder_layers
from grpo_ao.probe import Positions
from tests.tiny import (
    ARCHITECTURES,
    WIDTH,
    add_adapter,
    tiny_model,
    tiny_multimodal,
    tiny_peft,
    tiny_tokenizer,
)

TEXTS = ["A rather longer text about the weather in May.", "Short.", "é ? ?", "Of middle length."]
ALL = Positions.parse("all")


def by_hidden_states(model, text, layer):
    """The layer's output from transformers' own hidden_states, text by text, unpadded."""
    input_ids = torch.tensor([subject_token_ids(tiny_tokenizer(), text)])
    with torch.no_grad():
        # hidden_states[0] is the embedding, so that layer i's output has index i + 1.
        states = model(input_ids=input_ids, output_hidden_states=True).hidden_states
    return states[layer + 1][0, content_start(tiny_tokenizer()) :]


@pytest.mark.parametrize(
    ("spec", "read"),
    [
        ("token@-3", "o"),
        ("window:3@-3", "é o"),  # the second of two tokens of one letter
        ("last:7", "oé o"),
        ("last:2", ""),  # what the template writes behind a text
        ("all", "I am Zoé o"),
        ("window:99@-4", "I am Zoé "),
    ],
)
def test_the_characters_that_positions_stand_for(spec, read):
    text = "I am Zoé o"
    found = characters_read(tiny_tokenizer(), text, Positions.parse(spec))
    assert found is not None and text[slice(*found)] == read


def test_of_a_text_that_the_template_changes_the_characters_are_not_known():
    tokenizer = copy.deepcopy(tiny_tokenizer())
    template = str(tokenizer.chat_template)
    tokenizer.chat_template = template.replace(".content", ".content | replace('Bob', 'Robert')")
    assert characters_read(tokenizer, "I am Bob", Positions.parse("last:4")) is None


def test_the_subject_reads_one_user_turn_without_generation_prompt():
    ids = subject_token_ids(tiny_tokenizer(), "Hi")
    assert tiny_tokenizer().decode(ids) == "<|im_start|>user\nHi<|im_end|>\n"
    assert tiny_tokenizer().decode(ids[-3]) == "i"


def with_system_prompt():
    """A tokenizer whose template opens with a default system prompt, as SmolLM2's does."""
    tokenizer = copy.deepcopy(tiny_tokenizer())
    prompt = "<|im_start|>system\nYou are helpful. It is late.<|im_end|>\n"
    tokenizer.chat_template = prompt + str(tokenizer.chat_template)
    return tokenizer


@pytest.mark.parametrize("spec", ["last:20", "window:50@-1", "all"])
def test_a_system_prompt_in_front_of_the_text_is_never_read(spec):
    tokenizer = with_system_prompt()
    ids = subject_token_ids(tokenizer, "Hi.")
    chosen = select_positions(tokenizer, ids, Positions.parse(spec), "Hi.")
    assert tokenizer.decode([ids[i] for i in chosen]) == "Hi.<|im_end|>\n"


def test_the_text_begins_behind_what_opens_its_turn():
    ids = subject_token_ids(tiny_tokenizer(), "Hi.")
    start = content_start(tiny_tokenizer())
    assert tiny_tokenizer().decode(ids[:start]) == "<|im_start|>user\n"


def test_strictly_a_text_must_have_all_that_is_read():
    ids = subject_token_ids(tiny_tokenizer(), "Hi.")
    five, six = Positions.parse("last:5"), Positions.parse("last:6")
    assert len(select_positions(tiny_tokenizer(), ids, five, "Hi.", strict=True)) == 5
    with pytest.raises(ValueError, match=r"'Hi\.': it has 5 of the 6 positions"):
        select_positions(tiny_tokenizer(), ids, six, "Hi.", strict=True)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_reads_what_each_text_alone_gives(architecture):
    base = tiny_model(architecture)
    expected = [{layer: by_hidden_states(base, text, layer) for layer in (0, 2)} for text in TEXTS]
    model = add_adapter(base)
    found = extract_activations(model, tiny_tokenizer(), TEXTS, [0, 2], ALL, batch_size=3)
    for text_found, text_expected in zip(found, expected, strict=True):
        assert text_found.keys() == {0, 2}
        for layer, found_KD in text_found.items():
            torch.testing.assert_close(found_KD, text_expected[layer], atol=1e-4, rtol=1e-4)


def test_the_multimodal_model_is_read_in_its_text_part():
    base = tiny_multimodal()
    expected_KD = by_hidden_states(base, TEXTS[0], 2)
    (found,) = extract_activations(add_adapter(base), tiny_tokenizer(), TEXTS[:1], [2], ALL)
    torch.testing.assert_close(found[2], expected_KD, atol=1e-4, rtol=1e-4)


def test_positions_choose_the_rows():
    model = tiny_model()
    (everything,) = extract_activations(model, tiny_tokenizer(), TEXTS[:1], [1], ALL)
    (token,) = extract_activations(
        model, tiny_tokenizer(), TEXTS[:1], [1], Positions.parse("token@-3")
    )
    torch.testing.assert_close(token[1], everything[1][-3:-2])
    assert token[1].shape == (1, WIDTH)


def test_the_adapter_is_off_and_on_again_afterwards():
    model = tiny_peft()
    input_ids = torch.tensor([subject_token_ids(tiny_tokenizer(), "Hi")])
    with torch.no_grad():
        steered = model(input_ids=input_ids).logits
        base = model.get_base_model()
        with adapter_off(model):
            plain = base(input_ids=input_ids).logits
        assert not torch.allclose(plain, steered, atol=0.1)
        assert torch.equal(model(input_ids=input_ids).logits, steered)
        torch.testing.assert_close(tiny_model()(input_ids=input_ids).logits, plain)


@pytest.mark.parametrize("trainable", [True, False])
def test_reading_leaves_training_mode_and_gradients_as_they_were(trainable):
    model = tiny_peft(dropout=0.5).train(trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable and "lora_" in name)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    extract_activations(model, tiny_tokenizer(), ["Hi"], [1], ALL)
    after = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert after == before
    assert model.training is trainable
    assert torch.is_grad_enabled()


def test_no_dropout_and_no_gradient_while_reading():
    model = nn.Dropout(0.5).train()
    with evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
    assert model.training


class LayerRanError(Exception):
    pass


def test_layers_deeper_than_needed_do_not_run():
    model = tiny_peft()

    def explode(*_):
        raise LayerRanError

    decoder_layers(model)[2].register_forward_pre_hook(explode)
    found = extract_activations(model, tiny_tokenizer(), TEXTS, [0, 1], ALL)
    assert found[0].keys() == {0, 1}
    with pytest.raises(LayerRanError):
        extract_activations(model, tiny_tokenizer(), TEXTS, [2], ALL)


def test_all_layers_come_from_one_forward_pass():
    model, calls = tiny_peft(), []
    decoder_layers(model)[0].register_forward_hook(lambda *_: calls.append(1))
    extract_activations(model, tiny_tokenizer(), TEXTS, [0, 1, 3], ALL, batch_size=4)
    assert len(calls) == 1


def test_no_hook_stays_on_the_model():
    model = tiny_peft()
    extract_activations(model, tiny_tokenizer(), TEXTS, [0, 2], ALL)
    assert all(not layer._forward_hooks for layer in decoder_layers(model))


def test_the_dtype_is_the_models():
    model = tiny_model().bfloat16()
    (found,) = extract_activations(model, tiny_tokenizer(), ["Hi"], [1], ALL)
    assert found[1].dtype == torch.bfloat16


def test_a_text_that_is_too_short_is_named_before_any_forward_pass():
    model, calls = tiny_model(), []
    decoder_layers(model)[0].register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=r"cannot read 'Short\.'.*8 tokens.*'token@-9'"):
        extract_activations(model, tiny_tokenizer(), TEXTS[:2], [1], Positions.parse("token@-9"))
    assert not calls


def test_a_layer_or_batch_size_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="no layer 4: the model has layers 0 to 3"):
        extract_activations(tiny_model(), tiny_tokenizer(), ["Hi"], [1, 4], ALL)
    with pytest.raises(ValueError, match="batch size"):
        extract_activations(tiny_model(), tiny_tokenizer(), ["Hi"], [1], ALL, batch_size=0)


def test_texts_of_like_length_share_a_pass_within_both_limits(monkeypatch):
    monkeypatch.setattr(activations, "BATCH_TOKENS", 20)
    lengths = [3, 10, 4, 25, 9, 2, 4, 1]
    # Longest first: 25 alone, two rows of 10, then 5 rows of at most 4; of those only 3 a pass.
    assert activations.read_batches(lengths, 256, 20, eager=False) == [[3], [1, 4], [2, 6, 0, 5, 7]]
    assert activations.read_batches(lengths, 3, 20, eager=False) == [[3], [1, 4], [2, 6, 0], [5, 7]]
    assert activations.read_batches([], 3, 20, eager=False) == []


def test_rows_that_attention_is_not_fused_for_are_fewer_the_longer_they_are(monkeypatch):
    monkeypatch.setattr(activations, "BATCH_TOKENS", 100)
    monkeypatch.setattr(activations, "BATCH_SCORES", 400)
    lengths = [20, 10, 10, 10, 10, 10, 4, 4]
    fused = [[0, 1, 2, 3, 4], [5, 6, 7]]
    assert activations.read_batches(lengths, 256, 100, eager=False) == fused
    # One row of 20 or four of 10 have 400 scores a head.
    eager = [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert activations.read_batches(lengths, 256, 100, eager=True) == eager


def test_a_text_beyond_the_models_positions_is_named_before_any_forward_pass():
    with pytest.raises(UserError, match=r"'Oh Oh.*has 12,0\d\d tokens, more than .* 4,096"):
        extract_activations(tiny_model(), tiny_tokenizer(), ["Oh " * 4000], [1], ALL)


def test_a_batch_that_is_large_enough_takes_no_much_shorter_rows(monkeypatch):
    monkeypatch.setattr(activations, "BATCH_TOKENS", 100)
    lengths = [10, 10, 9, 10, 8, 8, 3, 3]
    # From 30 tokens on, 9 of 10 may join and 8 may not; two rows of 8 are too few to end.
    assert activations.read_batches(lengths, 256, 30, eager=False) == [[0, 1, 3, 2], [4, 5, 6, 7]]
    assert activations.read_batches(lengths, 256, 100, eager=False) == [[0, 1, 3, 2, 4, 5, 6, 7]]


def test_each_batch_is_finished_when_the_next_has_begun():
    log: list[str] = []

    def begin(name: str) -> activations.Begun:
        log.append(f"begin {name}")
        return lambda: log.append(f"finish {name}") or [[torch.zeros(1)]]

    assert len(list(activations.one_behind(map(begin, "abc")))) == 3
    assert log == ["begin a", "begin b", "finish a", "begin c", "finish b", "finish c"]
    assert list(activations.one_behind([])) == []


def test_a_texts_tensors_are_its_own():
    # Not a part of the whole batch's, which would stay in memory with them.
    found = extract_activations(tiny_model(), tiny_tokenizer(), TEXTS, [0, 2], ALL)
    for tensors in found:
        for tensor in tensors.values():
            assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_no_padding_is_read_and_a_text_need_not_be_read_at_all():
    model = tiny_model()
    rows = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    reads = [[((2,), range(1, 3)), ((0, 1), range(3))], [], [((2,), range(5))]]
    together = read_residuals(model, rows, reads, 8)
    alone = [
        read_residuals(model, [row], [read], 1)[0] for row, read in zip(rows, reads, strict=True)
    ]
    assert [len(tensors) for tensors in together] == [2, 0, 1]
    for found, expected in zip(together, alone, strict=True):
        for tensor, single in zip(found, expected, strict=True):
            torch.testing.assert_close(tensor, single)
    first, second = read_residuals(model, rows[:1], [[((0,), range(3)), ((1,), range(3))]], 1)[0]
    torch.testing.assert_close(together[0][1], torch.cat([first, second]))


def test_the_last_layer_is_read_before_the_final_norm():
    # transformers' last hidden state has the norm applied; the residual stream has not.
    model = tiny_model()
    (found,) = extract_activations(model, tiny_tokenizer(), TEXTS[:1], [3], ALL)
    decoder: Any = model.get_decoder()
    normed_KD = decoder.norm(found[3])
    expected_KD = by_hidden_states(model, TEXTS[0], 3)
    torch.testing.assert_close(normed_KD, expected_KD, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found[3], expected_KD, atol=1e-2)


def test_dropout_of_a_model_in_training_mode_does_not_reach_the_activations():
    model = tiny_peft(dropout=0.5)
    (expected,) = extract_activations(model, tiny_tokenizer(), TEXTS[:1], [2], ALL)
    for layer in decoder_layers(model):
        attention: Any = layer.self_attn
        attention.attention_dropout = 0.5
    model.train()
    (found,) = extract_activations(model, tiny_tokenizer(), TEXTS[:1], [2], ALL)
    assert torch.equal(found[2], expected[2])
    input_ids = torch.tensor([subject_token_ids(tiny_tokenizer(), TEXTS[0])])
    with torch.no_grad():
        first, second = (model(input_ids=input_ids).logits for _ in range(2))
    assert not torch.equal(first, second)  # in training mode it would drop


@pytest.mark.parametrize("positions", ["last:4", "window:6@-2", "window:90@-3", "token@-3"])
def test_windows_end_at_their_offset_in_a_padded_batch(positions):
    model, where = tiny_peft(), Positions.parse(positions)
    found = extract_activations(model, tiny_tokenizer(), TEXTS, [2], where, batch_size=4)
    whole = extract_activations(model, tiny_tokenizer(), TEXTS, [2], ALL, batch_size=1)
    for window, full in zip(found, whole, strict=True):
        stop = len(full[2]) + where.end_offset + 1
        start = max(stop - (where.count or 0), 0)
        torch.testing.assert_close(window[2], full[2][start:stop], atol=1e-4, rtol=1e-4)
        assert len(window[2]) == min(where.count or 0, stop)
