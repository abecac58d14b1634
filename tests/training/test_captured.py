"""Passes in tensors of rounded sizes, and on a GPU the replayed ones: the outputs of the usual."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpo_ao.oracle.injection import Injection
from grpo_ao.oracle.layers import decoder_of
from grpo_ao.oracle.masks import mask_argument
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.prompt import pad_prompts
from grpo_ao.training.captured import MOST_GRAPHS, Pass, rounded_up
from grpo_ao.training.packing import pack
from grpo_ao.training.passes import FastPasses, autocast
from tests.families import WINDOW, save_family
from tests.rigs import make_oracle, planted_table


@given(st.integers(1, 10**6))
def test_a_size_grows_by_less_than_an_eighth(size):
    assert 0 <= 8 * (rounded_up(size) - size) < max(8, 2 * size)
    assert rounded_up(rounded_up(size)) == rounded_up(size)


def test_there_are_few_sizes():
    assert [rounded_up(n) for n in (1, 9, 16, 17, 122, 129, 432)] == [1, 9, 16, 18, 128, 144, 448]
    # Sixteen, and eight in each of the eight powers of two up to 4096.
    assert len({rounded_up(n) for n in range(1, 4097)}) == 16 + 8 * 8


# A family whose layers see all, one of whose see a window, one with the softcap as well


@pytest.fixture(scope="module", params=["qwen3", "olmo3", "gemma2"])
def oracle(request, tmp_path_factory):
    folders = save_family(request.param, tmp_path_factory.mktemp(request.param))
    return Oracle.from_pretrained(*folders, device="cpu")


def padded_rows(oracle):
    """Prompts of different lengths, as the warm start reads them."""
    table = planted_table(oracle, 17)
    ids_BL, mask_BL = pad_prompts(table.prompts, 0)
    injection = Injection.of(table.prompts, table.vectors, ids_BL.shape[1])
    return {"input_ids": ids_BL, "attention_mask": mask_BL}, injection, mask_BL.bool()


def packed_rows(oracle):
    """Prompts with two completions each, as a step of GRPO reads them."""
    table = planted_table(oracle, 17)
    ids = [prompt.input_ids for prompt in table.prompts]
    rows = pack(
        ids, [[9, 20 + n, 7][: 1 + n % 3] for n in range(34)], [n // 2 for n in range(34)], 0
    )
    arguments = {
        "input_ids": rows.input_ids_NL,
        "attention_mask": mask_argument(oracle.model, rows.visible),
        "position_ids": rows.positions_NL,
    }
    return arguments, table.injection(list(range(17))), rows.segments_NL >= 0


def hidden(oracle, arguments, injection):
    with oracle.hook.serving(injection), torch.no_grad():
        return decoder_of(oracle.model)(**arguments).last_hidden_state


@pytest.mark.parametrize("rows", [padded_rows, packed_rows])
def test_padding_to_a_rounded_size_changes_no_token(oracle, rows):
    arguments, injection, real_BL = rows(oracle)
    assert real_BL.shape[1] > WINDOW
    expected = hidden(oracle, arguments, injection)
    read = Pass.of(oracle.model, arguments, injection)
    batch, length = arguments["input_ids"].shape
    assert (read.rows, read.length) == (batch, length)
    assert read.input_ids_BL.shape == (rounded_up(batch), rounded_up(length)) != (batch, length)
    found = hidden(oracle, read.arguments(), read.injection)[:batch, :length]
    torch.testing.assert_close(found[real_BL], expected[real_BL], atol=1e-5, rtol=1e-4)
    # Without the injection, or with what one sees changed, the same tokens come out otherwise.
    without = Injection(torch.full_like(read.injection.positions_BK, -1), read.injection[1])
    masks = {kind: torch.zeros_like(mask) for kind, mask in read.masks.items()}
    blind = read.arguments() | {"attention_mask": masks.get("", masks)}
    for wrong in (
        hidden(oracle, read.arguments(), without),
        hidden(oracle, blind, read.injection),
    ):
        assert (wrong[:batch, :length][real_BL] - expected[real_BL]).abs().max() > 1e-2


def test_a_copy_has_the_same_at_other_addresses():
    oracle = make_oracle()
    arguments, injection, _ = packed_rows(oracle)
    read = Pass.of(oracle.model, arguments, injection)
    for own, tensor in zip(read.copy().tensors(), read.tensors(), strict=True):
        assert torch.equal(own, tensor)
        assert own.data_ptr() != tensor.data_ptr()


# On a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="captures need a GPU")


def on_gpu(arguments, injection):
    moved = {
        name: value.cuda()
        if isinstance(value, torch.Tensor)
        else {k: v.cuda() for k, v in value.items()}
        for name, value in arguments.items()
    }
    return moved, injection.to("cuda")


@pytest.fixture(params=["qwen3", "olmo3", "gemma2"])
def gpu_oracle(request, tmp_path):
    folders = save_family(request.param, tmp_path)
    oracle = Oracle.from_pretrained(*folders, device="cuda", dtype=torch.bfloat16)
    for name, parameter in oracle.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return oracle


def decoded(oracle, arguments):
    with autocast(torch.device("cuda")):
        return decoder_of(oracle.model)(**arguments, use_cache=False).last_hidden_state


def learned(oracle, arguments, injection, real_BL):
    """The last hidden states of all tokens, and the gradients of a loss of them."""
    oracle.model.zero_grad()
    oracle.hook.bind(injection)
    hidden_ND = decoded(oracle, arguments)[real_BL]
    return hidden_ND.detach(), gradients(oracle, hidden_ND)


def gradients(oracle, hidden_ND):
    generator = torch.Generator("cuda").manual_seed(0)
    weights_ND = torch.randn(hidden_ND.shape, generator=generator, device="cuda")
    (hidden_ND.float() * weights_ND).sum().backward()
    found = [p.grad for p in oracle.model.parameters() if p.requires_grad]
    return torch.cat([gradient.flatten() for gradient in found])


def replays(monkeypatch):
    """Count the graphs that are replayed, which must not live on by it."""
    counted, replay = [], torch.cuda.CUDAGraph.replay

    def counting(graph):
        counted.append(id(graph))
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counting)
    return counted


@needs_gpu
@pytest.mark.parametrize("rows", [padded_rows, packed_rows])
def test_replayed_passes_are_the_usual_ones_while_weights_and_inputs_change(
    gpu_oracle, rows, monkeypatch
):
    oracle, counted = gpu_oracle, replays(monkeypatch)
    arguments, injection, real_BL = rows(oracle)
    arguments, injection = on_gpu(arguments, injection)
    usual, captured = FastPasses(oracle), FastPasses(oracle, captured=True)
    before = None
    for _ in range(4):
        injection = Injection(injection[0], torch.randn_like(injection[1]))
        for name, parameter in oracle.model.named_parameters():
            if "lora_" in name:
                parameter.data += 0.05 * torch.randn_like(parameter)
        with usual:
            expected_ND, of_usual = learned(oracle, arguments, injection, real_BL)
        captured.begin()
        found_ND, of_captured = learned(oracle, arguments, injection, real_BL)
        with torch.no_grad():
            decoded(oracle, arguments)
            read_ND = decoded(oracle, arguments)[real_BL]
        captured.end()
        pairs = (found_ND, expected_ND), (read_ND, expected_ND), (of_captured, of_usual)
        assert all((mine - other).norm() < 0.03 * other.norm() for mine, other in pairs)
        if before is not None:  # A graph that kept its first inputs or weights would fail.
            assert (before - expected_ND).norm() > 0.1 * before.norm()
        before = expected_ND
    # Twice a forward and a backward pass but for the first, and what nothing is learned from.
    assert len(counted) == 3 * 2 + (1 + 3 * 2)
    captured.free()


@needs_gpu
def test_a_pass_between_another_and_its_backward_pass_is_not_replayed(gpu_oracle, monkeypatch):
    oracle, counted = gpu_oracle, replays(monkeypatch)
    arguments, injection, real_BL = packed_rows(oracle)
    arguments, injection = on_gpu(arguments, injection)
    with FastPasses(oracle, captured=True):
        learned(oracle, arguments, injection, real_BL)
        assert not counted
        _, expected = learned(oracle, arguments, injection, real_BL)
        assert len(counted) == 2
        oracle.model.zero_grad()
        first_BLD = decoded(oracle, arguments)
        assert len(counted) == 3
        decoded(oracle, arguments)
        assert len(counted) == 3
        found = gradients(oracle, first_BLD[real_BL])
        assert len(counted) == 4
        assert (found - expected).norm() < 1e-2 * expected.norm()
        # One whose loss nobody asked for holds nothing up.
        decoded(oracle, arguments)
        learned(oracle, arguments, injection, real_BL)
        assert len(counted) == 7
    oracle.hook.clear()


@needs_gpu
def test_many_shapes_share_what_lies_between_inputs_and_outputs(gpu_oracle, monkeypatch):
    oracle, counted = gpu_oracle, replays(monkeypatch)
    arguments, injection, real_BL = packed_rows(oracle)
    arguments, injection = on_gpu(arguments, injection)
    rows = 64 * len(injection[0])

    def repeated(count):
        def times(tensor):
            return tensor.repeat(rows, *[1] * (tensor.dim() - 1))[:count]

        masks = arguments["attention_mask"]
        masks = {k: times(m) for k, m in masks.items()} if isinstance(masks, dict) else times(masks)
        given = {name: times(arguments[name]) for name in ("input_ids", "position_ids")}
        return given | {"attention_mask": masks}, Injection(*map(times, injection)), times(real_BL)

    with FastPasses(oracle, captured=True):
        for _ in range(2):
            learned(oracle, *repeated(rows))
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved()
        sizes = {rounded_up(1 + n) for n in range(0, rows, rows // (2 * MOST_GRAPHS))}
        sizes.discard(rounded_up(rows))
        assert len(sizes) > MOST_GRAPHS
        for count in sorted(sizes):
            for _ in range(2):
                learned(oracle, *repeated(count))
        # The last of them are not captured.
        assert len(counted) == 2 * MOST_GRAPHS
        torch.cuda.empty_cache()
        # Each has inputs and outputs of its own, and what lies between in common.
        own = sum(tensor.nbytes for tensor in Pass.of(oracle.model, *repeated(rows)[:2]).tensors())
        assert torch.cuda.memory_reserved() < 2 * reserved + MOST_GRAPHS * own
    oracle.hook.clear()
    oracle.model.zero_grad()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < reserved / 2
