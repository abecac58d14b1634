import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from grpo_ao.oracle.activations import extract_activations
from grpo_ao.oracle.injection import Injection, InjectionHook, inject
from grpo_ao.oracle.layers import decoder_layers
from grpo_ao.oracle.prompt import OraclePrompt, build_oracle_prompt, pad_prompts
from grpo_ao.oracle.spec import OracleSpec
from grpo_ao.probe import Positions
from tests.tiny import (
    ARCHITECTURES,
    WIDTH,
    add_adapter,
    tiny_model,
    tiny_peft,
    tiny_tokenizer,
    token_id,
)

HOOK_LAYER = 1
PAD_ID = token_id("<|endoftext|>")


# The pure function


def test_inject_adds_the_direction_at_the_norm_of_h():
    resid_BLD = torch.tensor([[[3.0, 4.0], [6.0, 8.0]]])
    vectors_BKD = torch.tensor([[[0.0, 7.0]]])
    out_BLD = inject(resid_BLD, vectors_BKD, torch.tensor([[1]]))
    assert out_BLD.tolist() == [[[3.0, 4.0], [6.0, 18.0]]]
    half_BLD = inject(resid_BLD, vectors_BKD, torch.tensor([[1]]), coefficient=0.5)
    assert half_BLD.tolist() == [[[3.0, 4.0], [6.0, 13.0]]]


def test_the_result_is_not_renormalised():
    h_BLD = torch.tensor([[[3.0, 4.0]]])
    assert inject(h_BLD, h_BLD, torch.tensor([[0]])).norm().item() == 10.0


def test_unused_slots_are_not_read():
    resid_BLD = torch.ones(1, 3, 2)
    vectors_BKD = torch.tensor([[[0.0, 1.0], [float("nan"), 0.0]]])
    out_BLD = inject(resid_BLD, vectors_BKD, torch.tensor([[2, -1]]))
    assert torch.equal(out_BLD[:, :2], resid_BLD[:, :2])
    torch.testing.assert_close(out_BLD[0, 2], torch.tensor([1.0, 1.0 + 2**0.5]))


@given(st.integers(0, 2**31), st.floats(0.01, 100.0), st.floats(0.1, 3.0))
def test_what_is_added_has_the_norm_of_h_whatever_the_vectors(seed, scale, coefficient):
    generator = torch.Generator().manual_seed(seed)
    resid_BLD = torch.randn(2, 5, 8, generator=generator)
    vectors_BKD = scale * torch.randn(2, 3, 8, generator=generator)
    positions_BK = torch.tensor([[0, 2, 4], [1, 3, -1]])
    out_BLD = inject(resid_BLD, vectors_BKD, positions_BK, coefficient)
    added_BL = (out_BLD - resid_BLD).norm(dim=-1)
    used_BL = torch.tensor([[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]]).bool()
    torch.testing.assert_close(added_BL[used_BL], coefficient * resid_BLD.norm(dim=-1)[used_BL])
    assert torch.equal(out_BLD[~used_BL], resid_BLD[~used_BL])


def test_the_input_is_not_modified():
    resid_BLD = torch.randn(2, 4, 8)
    before_BLD = resid_BLD.clone()
    out_BLD = inject(resid_BLD, torch.randn(2, 2, 8), torch.tensor([[0, 1], [2, 3]]))
    assert torch.equal(resid_BLD, before_BLD)
    assert out_BLD.data_ptr() != resid_BLD.data_ptr()


def test_bfloat16_stays_and_the_norm_is_taken_in_float32():
    generator = torch.Generator().manual_seed(0)
    resid_BLD = (50 * torch.randn(1, 2, 4096, generator=generator)).bfloat16()
    vectors_BKD = torch.randn(1, 1, 4096, generator=generator)
    out_BLD = inject(resid_BLD, vectors_BKD, torch.tensor([[1]]))
    h_D, v_D = resid_BLD[0, 1].float(), vectors_BKD[0, 0]
    delta_D = (h_D.norm() * v_D / v_D.norm()).bfloat16()
    assert out_BLD.dtype == torch.bfloat16
    assert torch.equal(out_BLD[0, 1], resid_BLD[0, 1] + delta_D)


def test_large_values_do_not_overflow_in_half_precision():
    resid_BLD = torch.full((1, 2, 64), 6.0e3, dtype=torch.float16)
    vectors_BKD = torch.full((1, 1, 64), 6.0e3, dtype=torch.float16)
    out_BLD = inject(resid_BLD, vectors_BKD, torch.tensor([[1]]))
    torch.testing.assert_close(out_BLD[0, 1], torch.full((64,), 1.2e4, dtype=torch.float16))


def test_gradients_flow_to_h_through_its_norm_too():
    resid_BLD = torch.tensor([[[3.0, 4.0]]], requires_grad=True)
    inject(resid_BLD, torch.tensor([[[0.0, 2.0]]]), torch.tensor([[0]])).sum().backward()
    # d/dh (h1 + h2 + ||h||) = 1 + h / ||h||
    assert resid_BLD.grad is not None
    torch.testing.assert_close(resid_BLD.grad, torch.tensor([[[1.6, 1.8]]]))


@pytest.mark.parametrize(
    ("vectors_shape", "positions", "message"),
    [
        ((2, 1, 4), [[0]], "shape"),
        ((1, 2, 4), [[0]], "shape"),
        ((2, 1, 4), [[0], [1]], "shape"),
        ((1, 1, 4), [[3]], "outside of the 3 tokens"),
        ((1, 1, 4), [[-2]], "outside"),
        ((1, 2, 4), [[1, 1]], "twice"),
    ],
)
def test_shapes_and_positions_that_do_not_fit_are_refused(vectors_shape, positions, message):
    # Below the check of annotations, which is there in tests only.
    unchecked = getattr(inject, "__wrapped__", inject)
    with pytest.raises(ValueError, match=message):
        unchecked(torch.ones(1, 3, 4), torch.ones(vectors_shape), torch.tensor(positions))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_vector_without_direction_is_refused(value):
    with pytest.raises(ValueError, match="no direction"):
        inject(torch.ones(1, 3, 4), torch.full((1, 1, 4), value), torch.tensor([[1]]))


# Rows


def prompts_of(lengths, positions):
    return [
        OraclePrompt("A prompt", [0] * n, row) for n, row in zip(lengths, positions, strict=True)
    ]


def test_rows_of_different_counts_are_stacked_and_shifted():
    vectors = [torch.full((1, 2), 1.0), torch.full((2, 2), 2.0)]
    prompts = prompts_of([3, 5], [[1], [0, 2]])
    injection = Injection.of(prompts, vectors, padded_length=5)
    assert injection.positions_BK.tolist() == [[3, -1], [0, 2]]
    assert injection.vectors_BKD.tolist() == [[[1, 1], [0, 0]], [[2, 2], [2, 2]]]
    assert Injection.of(prompts, vectors).positions_BK.tolist() == [[1, -1], [0, 2]]


def test_rows_whose_counts_differ_are_refused_by_name():
    prompts = prompts_of([4, 4], [[1], [1, 2, 3]])
    with pytest.raises(ValueError, match="'A prompt' has 3 placeholders for 2 vectors"):
        Injection.of(prompts, [torch.ones(1, 4), torch.ones(2, 4)])
    with pytest.raises(ValueError, match="2 prompts, but activations for 1"):
        Injection.of(prompts, [torch.ones(1, 4)])


# The hook, by planting: a different known vector in every row, read back at the layer's output


def planted(num_rows):
    """Prompts of different lengths and counts, and vectors that tell row and slot."""
    generator = torch.Generator().manual_seed(7)
    prompts, vectors = [], []
    for b in range(num_rows):
        layers = (1, 2)[b % 2 :]
        count = len(layers) * (1 + b % 3)
        question = "Is it ? " + "so " * (5 * (num_rows - b) % 7) + "?"
        prompts.append(build_oracle_prompt(tiny_tokenizer(), layers, count, question, OracleSpec()))
        vectors.append(torch.randn(count, WIDTH, generator=generator))
    return prompts, vectors


class Recorder:
    """Outputs of layer 1, before and after the injection."""

    def __init__(self, model):
        layer = decoder_layers(model)[HOOK_LAYER]
        self.before, self.after = [], []
        layer.register_forward_hook(lambda _m, _i, out: self.before.append(out.detach().clone()))
        self.hook = InjectionHook().attach(model, HOOK_LAYER)
        layer.register_forward_hook(lambda _m, _i, out: self.after.append(out.detach().clone()))


def run_batch(recorder, model, prompts, vectors):
    """Forward one left-padded batch; return the injection's direction found at every token."""
    input_ids_BL, mask_BL = pad_prompts(prompts, PAD_ID)
    recorder.hook.bind(Injection.of(prompts, vectors, input_ids_BL.shape[1]))
    with torch.no_grad():
        model(input_ids=input_ids_BL, attention_mask=mask_BL)
    before_BLD, after_BLD = recorder.before[-1], recorder.after[-1]
    return (after_BLD - before_BLD) / before_BLD.norm(dim=-1, keepdim=True)


def assert_planted(found_BLD, prompts, vectors):
    longest = found_BLD.shape[1]
    for found_LD, prompt, vectors_KD in zip(found_BLD, prompts, vectors, strict=True):
        pad = longest - len(prompt.input_ids)
        expected_LD = torch.zeros(longest, WIDTH)
        for position, v_D in zip(prompt.positions, vectors_KD, strict=True):
            expected_LD[pad + position] = v_D / v_D.norm()
        torch.testing.assert_close(found_LD, expected_LD, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_gets_its_own_vectors_under_left_padding(architecture):
    model = tiny_peft(architecture)
    prompts, vectors = planted(5)
    assert len({len(p.input_ids) for p in prompts}) > 2
    assert_planted(run_batch(Recorder(model), model, prompts, vectors), prompts, vectors)


# Each example reads six rows.
@settings(max_examples=25)
@given(st.permutations(range(6)), st.integers(1, 6))
def test_every_row_gets_its_own_vectors_when_shuffled_and_split(order, size):
    model, recorder = planting_model()
    prompts, vectors = planted(6)
    for first in range(0, 6, size):
        batch = order[first : first + size]
        rows = [prompts[i] for i in batch], [vectors[i] for i in batch]
        assert_planted(run_batch(recorder, model, *rows), *rows)


@functools.cache
def planting_model():
    model = tiny_peft()
    return model, Recorder(model)


def test_a_placeholder_token_in_the_question_is_not_steered():
    model = tiny_peft()
    prompts, vectors = planted(3)
    found_BLD = run_batch(Recorder(model), model, prompts, vectors)
    placeholder = token_id("Ġ?")
    steered = found_BLD.norm(dim=-1) > 0.5
    input_ids_BL, _ = pad_prompts(prompts, PAD_ID)
    assert input_ids_BL.eq(placeholder).sum() > steered.sum()
    assert steered.sum() == sum(len(p.positions) for p in prompts)


def test_unbound_hook_leaves_the_model_alone():
    model = tiny_model()
    input_ids_BL = torch.arange(12).view(2, 6)
    plain = model(input_ids=input_ids_BL).logits
    hook = InjectionHook().attach(model, HOOK_LAYER)
    assert torch.equal(model(input_ids=input_ids_BL).logits, plain)
    with hook.serving(injection_of([[1], [2]])):
        assert not torch.allclose(model(input_ids=input_ids_BL).logits, plain)
    assert torch.equal(model(input_ids=input_ids_BL).logits, plain)


def injection_of(rows):
    generator = torch.Generator().manual_seed(3)
    vectors = [torch.randn(len(row), WIDTH, generator=generator) for row in rows]
    return Injection.of(prompts_of([6] * len(rows), rows), vectors)


def test_a_cached_decoding_step_passes_through():
    model = tiny_model()
    recorder = Recorder(model)
    recorder.hook.bind(injection_of([[1], [2]]))
    model(input_ids=torch.arange(2).view(2, 1))
    assert torch.equal(recorder.before[0], recorder.after[0])


def test_a_batch_of_another_size_is_refused():
    model = tiny_model()
    InjectionHook().attach(model, HOOK_LAYER).bind(injection_of([[1], [2]]))
    for shape in ((3, 4), (1, 4), (4, 1)):
        with pytest.raises(ValueError, match=f"batch has {shape[0]} rows.*bound has 2"):
            model(input_ids=torch.ones(shape, dtype=torch.int64))


def test_a_pass_that_ends_before_the_placeholders_is_refused():
    model = tiny_model()
    InjectionHook().attach(model, HOOK_LAYER).bind(injection_of([[1], [5]]))
    with pytest.raises(ValueError, match=r"5 tokens does not reach .* position 5"):
        model(input_ids=torch.ones(2, 5, dtype=torch.int64))


def test_placeholders_at_the_first_token_are_refused():
    hook = InjectionHook().attach(tiny_model(), HOOK_LAYER)
    with pytest.raises(ValueError, match="decoding step"):
        hook.bind(injection_of([[0], [0]]))


def test_a_hook_is_attached_once_and_can_be_detached():
    model = tiny_model()
    hook = InjectionHook().attach(model, HOOK_LAYER)
    with pytest.raises(ValueError, match="the model has an injection hook already"):
        InjectionHook().attach(model, 2)
    with pytest.raises(ValueError, match="attached already"):
        hook.attach(tiny_model(), HOOK_LAYER)
    hook.bind(injection_of([[1]]))
    hook.detach()
    assert hook.bound is None
    model(input_ids=torch.ones(3, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="attach the injection hook"):
        hook.bind(injection_of([[1]]))
    hook.attach(model, 2)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="layers 0 to 3"):
        InjectionHook().attach(tiny_model(), 4)


def test_the_subject_is_read_unsteered_while_rows_are_bound():
    model, tokenizer = tiny_peft(), tiny_tokenizer()
    read = functools.partial(
        extract_activations, model, tokenizer, ["one", "two"], [2], Positions.parse("all")
    )
    plain = read()
    hook = InjectionHook().attach(model, HOOK_LAYER)
    hook.bind(injection_of([[3], [4]]))
    steered = read()
    assert torch.equal(plain[0][2], steered[0][2])
    assert hook.bound is not None


# Gradient checkpointing


def gradients(prepare, checkpointing):
    model = tiny_peft(dropout=0.0)
    hook = InjectionHook().attach(model, HOOK_LAYER)
    model.enable_input_require_grads()
    model.train()
    prepare(model, checkpointing)
    hook.bind(injection_of([[2, 3], [4]]))
    logits = model(input_ids=torch.arange(16).view(2, 8), use_cache=False).logits
    logits.log_softmax(-1)[:, -1, 5].sum().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert grads and all(g is not None for g in grads.values())
    return grads


def transformers_checkpointing(use_reentrant):
    def prepare(model, checkpointing):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})

    return prepare


class CheckpointedLayer(nn.Module):
    """A layer whose hooks run inside the checkpoint, and so again in the backward pass."""

    def __init__(self, layer, use_reentrant):
        super().__init__()
        self.layer = layer
        self.use_reentrant = use_reentrant
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(self, hidden, **kwargs):
        call = functools.partial(self.layer, **kwargs)
        return checkpoint(call, hidden, use_reentrant=self.use_reentrant)


def checkpointing_around_the_hooks(use_reentrant):
    def prepare(model, checkpointing):
        if checkpointing:
            layers = decoder_layers(model)
            for i, layer in enumerate(layers):
                layers[i] = CheckpointedLayer(layer, use_reentrant)

    return prepare


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", [transformers_checkpointing, checkpointing_around_the_hooks])
def test_gradients_are_equal_with_and_without_checkpointing(kind, use_reentrant):
    plain = gradients(kind(use_reentrant), checkpointing=False)
    recomputed = gradients(kind(use_reentrant), checkpointing=True)
    recomputed = {name.replace(".layer.", "."): grad for name, grad in recomputed.items()}
    assert plain.keys() == recomputed.keys()
    for name, grad in plain.items():
        torch.testing.assert_close(recomputed[name], grad, msg=name)


def test_the_hook_runs_again_inside_a_checkpoint():
    model = add_adapter(tiny_model())
    recorder = Recorder(model)
    model.enable_input_require_grads()
    checkpointing_around_the_hooks(use_reentrant=True)(model, checkpointing=True)
    recorder.hook.bind(injection_of([[2, 3], [4]]))
    logits = model(input_ids=torch.arange(16).view(2, 8), use_cache=False).logits
    assert len(recorder.after) == 1
    logits.sum().backward()
    assert len(recorder.after) == 2
    assert torch.equal(recorder.after[0], recorder.after[1])
    assert not torch.equal(recorder.before[1], recorder.after[1])
