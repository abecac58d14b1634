import pytest
import torch
from transformers import DynamicCache

from grpo_ao.oracle import generation
from grpo_ao.oracle.decoding import (
    Decoder,
    bucket,
    decode_attention,
    free_captures,
    grouped_attention,
    sample,
)
from grpo_ao.oracle.generation import generate_completions
from grpo_ao.oracle.injection import InjectionHook
from grpo_ao.oracle.layers import decoder_layers, decoder_of, unwrap
from grpo_ao.oracle.sampling import Sampling
from tests.oracle.test_generation import rows
from tests.tiny import ARCHITECTURES, tiny_model, tiny_multimodal, tiny_peft, tiny_tokenizer

PROMPTS = [[5, 9, 3, 8, 7, 6, 5, 4, 3, 2], [11, 12, 13, 14, 15, 16]]
NEW = 9


def padded(prompts):
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def start(model, samples=1, temperature=0.0, ends=(), new=NEW):
    ids_BL, mask_BL = padded(PROMPTS)
    cache = DynamicCache()
    positions_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        model(
            input_ids=ids_BL[:, :-1],
            attention_mask=mask_BL[:, :-1],
            position_ids=positions_BL[:, :-1],
            past_key_values=cache,
            use_cache=True,
        )
    return Decoder(model, cache, mask_BL, ids_BL[:, -1], Sampling(samples, temperature, new), ends)


def models():
    for architecture in ARCHITECTURES:
        yield architecture, tiny_model(architecture)
    for architecture in ("gemma2", "gemma3"):
        model = tiny_model(architecture)
        model.config.sliding_window = 4
        yield f"{architecture} with a window shorter than the prompts", model
    yield "gemma3 with a vision tower", tiny_multimodal()


@pytest.mark.parametrize("model", [pytest.param(m, id=name) for name, m in models()])
def test_each_step_computes_what_a_whole_forward_pass_does(model):
    decoder = start(model, samples=2, temperature=1e-6)
    texts = [list(prompt) for prompt in PROMPTS for _ in range(2)]
    with torch.no_grad():
        for n in range(NEW):
            with decode_attention(model):
                decoder.step()
            for row, text in enumerate(texts):
                whole = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
                torch.testing.assert_close(decoder.logits_BV[row], whole, atol=1e-4, rtol=1e-4)
                text.append(int(decoder.tokens_BN[row, n]))
                assert text[-1] == int(whole.argmax())


def test_the_model_is_as_before_afterwards():
    model = tiny_model("gemma2")
    before = decoder_of(model).config._attn_implementation
    decoder = start(model)
    with torch.no_grad(), decode_attention(model):
        decoder.run()
    assert decoder_of(model).config._attn_implementation == before
    assert not any("forward" in vars(layer) for layer in decoder_layers(model))


def test_decoding_stops_when_all_sequences_have_ended():
    model = tiny_model()
    with torch.no_grad():
        greedy = start(model, new=30)
        with decode_attention(model):
            tokens_BN = greedy.run()
        ends = [int(tokens_BN[0, 3]), int(tokens_BN[1, 5])]
        decoder = start(model, ends=ends, new=30)
        with decode_attention(model):
            stopped = decoder.run()
    assert tokens_BN.shape == (2, 30)
    assert torch.equal(stopped, tokens_BN[:, :6])


def test_query_heads_of_a_group_share_its_keys_with_and_without_softcap():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 6, 1, 8), torch.randn(3, 2, 5, 8), torch.randn(3, 2, 5, 8)
    mask = torch.zeros(3, 1, 1, 5)
    mask[1, :, :, :2] = torch.finfo(torch.float32).min
    for softcap in (None, 2.0):
        found, _ = grouped_attention(torch.nn.Module(), query, key, value, mask, 0.3, softcap)
        keys, values = key.repeat_interleave(3, dim=1), value.repeat_interleave(3, dim=1)
        scores = query @ keys.transpose(2, 3) * 0.3
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        expected = ((scores + mask).softmax(dim=-1) @ values).transpose(1, 2)
        torch.testing.assert_close(found, expected)


def test_samples_are_of_the_whole_tempered_distribution():
    torch.manual_seed(0)
    logits_V = torch.tensor([2.0, 1.0, 0.0, -1.0, -4.0])
    for temperature in (0.5, 2.0):
        drawn = sample(logits_V.expand(200_000, -1), temperature)
        frequencies = drawn.bincount(minlength=5) / len(drawn)
        torch.testing.assert_close(
            frequencies, (logits_V / temperature).softmax(dim=0), atol=5e-3, rtol=0
        )
    assert sample(logits_V[None], 0.0).item() == 0


def complete(model):
    prompts, vectors = rows(5)
    hook = InjectionHook().attach(model, 1)
    sampling = Sampling(max_new_tokens=10)
    try:
        found = generate_completions(model, tiny_tokenizer(), hook, prompts, vectors, sampling)
    finally:
        hook.detach()
    return [[completion.token_ids for completion in samples] for samples in found]


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_what_cannot_be_merged_is_generated_with_a_warning_and_alike(architecture, monkeypatch):
    model = tiny_peft(architecture)
    expected = complete(model)
    monkeypatch.setattr(generation, "reason_unmergeable", lambda _: "it is in pieces")
    with pytest.warns(UserWarning, match="it is in pieces"):
        assert complete(model) == expected


def test_what_cannot_be_decoded_says_so():
    model = tiny_peft()
    layer = decoder_layers(model)[2]
    layer.forward = layer.forward
    with pytest.warns(UserWarning, match="its layers are wrapped"):
        complete(model)
    del layer.forward
    unwrap(model).config.layer_types = ["full_attention", "chunked_attention"] * 2
    with pytest.warns(UserWarning, match="chunked_attention"), pytest.raises(KeyError):
        complete(model)


def test_sizes_are_rounded_up_to_few():
    assert [bucket(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 100)] == [1, 2, 3, 4, 6, 8, 12, 16, 128]
    assert [bucket(n, 64) for n in (1, 64, 65, 129, 193, 300)] == [64, 64, 128, 192, 256, 384]
    # Whatever is asked for up to 4096 rows: 24 sizes, none with more than a third in excess.
    sizes = {bucket(n) for n in range(1, 4097)}
    assert len(sizes) == 24
    assert all(n <= bucket(n) <= 1.5 * n for n in range(1, 4097))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures need a GPU")
def test_many_shapes_reserve_as_much_gpu_memory_as_two():
    model = tiny_model()
    torch.nn.Module.to(model, "cuda")
    hook = InjectionHook().attach(model, 1)

    def sample_batch(count, samples, new):
        prompts, vectors = rows(count)
        sampling = Sampling(samples, 1.0, new)
        found = generate_completions(
            model, tiny_tokenizer(), hook, prompts, vectors, sampling, batch_size=count * samples
        )
        assert [len(group) for group in found] == [samples] * count
        return torch.cuda.memory_reserved()

    sample_batch(64, 8, 200)
    reserved = sample_batch(63, 8, 190)
    for number in range(100):
        found = sample_batch(1 + 7 * number % 63, 1 + number % 8, 10 + number)
        assert found < 1.1 * reserved
    hook.detach()
    free_captures()
    assert torch.cuda.memory_reserved() < reserved
