import pytest
import torch
from transformers import GenerationConfig

from grpo_ao.errors import UserError
from grpo_ao.oracle.generation import generate_completions
from grpo_ao.oracle.injection import Injection, InjectionHook
from grpo_ao.oracle.layers import decoder_layers, unwrap
from grpo_ao.oracle.prompt import build_oracle_prompt
from grpo_ao.oracle.sampling import Sampling
from grpo_ao.oracle.spec import OracleSpec
from tests.rigs import make_oracle, planted_table
from tests.tiny import ARCHITECTURES, WIDTH, tiny_peft, tiny_tokenizer, token_id

END = token_id("<|im_end|>")


def rows(count):
    generator = torch.Generator().manual_seed(5)
    prompts, vectors = [], []
    for b in range(count):
        layers = (1, 2)[b % 2 :]
        slots = len(layers) * (1 + b % 3)
        question = "Is it ? " + "so " * (7 * b % 5)
        prompts.append(build_oracle_prompt(tiny_tokenizer(), layers, slots, question, OracleSpec()))
        vectors.append(torch.randn(slots, WIDTH, generator=generator))
    return prompts, vectors


def by_hand(model, prompt, vectors_KD, max_new_tokens, ends):
    """Greedy, one prompt at a time, no padding, no cache, injected by a hook of its own."""
    positions = torch.tensor(prompt.positions)

    def steer(_module, _inputs, hidden_BLD):
        hidden_BLD = hidden_BLD.clone()
        for position, v_D in zip(positions, vectors_KD, strict=True):
            h_D = hidden_BLD[0, position].clone()
            hidden_BLD[0, position] = h_D + h_D.norm() * v_D / v_D.norm()
        return hidden_BLD

    handle = decoder_layers(model)[1].register_forward_hook(steer)
    ids = list(prompt.input_ids)
    with torch.no_grad():
        for _ in range(max_new_tokens):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            best = int(logits[0, -1].argmax())
            ids.append(best)
            if best in ends:
                break
    handle.remove()
    return ids[len(prompt.input_ids) :]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_completions_equal_an_independent_unbatched_implementation(architecture):
    model = tiny_peft(architecture)
    prompts, vectors = rows(6)
    expected = [
        by_hand(model, prompt, row_KD, 12, [END])
        for prompt, row_KD in zip(prompts, vectors, strict=True)
    ]
    unwrap(model).generation_config = GenerationConfig(eos_token_id=END)
    hook = InjectionHook().attach(model, 1)
    found = generate_completions(
        model, tiny_tokenizer(), hook, prompts, vectors, Sampling(max_new_tokens=12), batch_size=4
    )
    assert [completion.token_ids for (completion,) in found] == expected
    assert len({tuple(completion) for completion in expected}) > 1


def complete(model, prompts, vectors, num_samples=1, temperature=0.0, max_new_tokens=64, **kwargs):
    hook = InjectionHook().attach(model, 1)
    sampling = Sampling(num_samples, temperature, max_new_tokens)
    try:
        own = (model, tiny_tokenizer(), hook, prompts, vectors, sampling)
        found = generate_completions(*own, **kwargs)
    finally:
        hook.detach()
    return [[completion.token_ids for completion in samples] for samples in found]


def test_vectors_matter_and_batches_do_not():
    model = tiny_peft()
    prompts, vectors = rows(5)
    together = complete(model, prompts, vectors, max_new_tokens=8)
    alone = [
        complete(model, [prompt], [row_KD], max_new_tokens=8)[0]
        for prompt, row_KD in zip(prompts, vectors, strict=True)
    ]
    assert together == alone
    others = [row_KD.flip(-1) for row_KD in vectors]
    assert complete(model, prompts, others, max_new_tokens=8) != together


def test_a_models_own_sampling_defaults_do_not_truncate_the_distribution():
    model = tiny_peft()
    unwrap(model).generation_config = GenerationConfig(
        do_sample=True, temperature=0.01, top_k=1, top_p=0.01, min_p=0.9, repetition_penalty=5.0
    )
    (prompt,), (row_KD,) = rows(1)
    torch.manual_seed(0)
    settings = {"temperature": 1.0, "max_new_tokens": 1, "batch_size": 1000}
    (samples,) = complete(model, [prompt], [row_KD], num_samples=3000, **settings)
    firsts = torch.tensor([sample[0] for sample in samples])
    expected_V = first_token_distribution(model, prompt, row_KD)
    found_V = torch.bincount(firsts, minlength=len(expected_V)) / len(firsts)
    # 3000 draws of this distribution are .1 away from it in total variation, its 20 likeliest
    # tokens alone are .5 away.
    assert 0.5 * (found_V - expected_V).abs().sum() < 0.15
    assert expected_V.topk(20).values.sum() < 0.7


def first_token_distribution(model, prompt, row_KD):
    hook = InjectionHook().attach(model, 1)
    with torch.no_grad(), hook.serving(Injection.of([prompt], [row_KD])):
        logits_V = model(input_ids=torch.tensor([prompt.input_ids])).logits[0, -1]
    hook.detach()
    return logits_V.softmax(-1)


def test_samples_differ_and_a_seed_repeats_them():
    model = tiny_peft()
    prompts, vectors = rows(3)
    settings = {"num_samples": 4, "temperature": 1.0, "max_new_tokens": 6, "batch_size": 5}
    torch.manual_seed(1)
    first = complete(model, prompts, vectors, **settings)
    torch.manual_seed(1)
    assert complete(model, prompts, vectors, **settings) == first
    assert [len(samples) for samples in first] == [4, 4, 4]
    assert all(len({tuple(ids) for ids in samples}) > 1 for samples in first)


def test_low_temperature_is_greedy():
    model = tiny_peft()
    prompts, vectors = rows(3)
    greedy = complete(model, prompts, vectors, max_new_tokens=4)
    cold = complete(model, prompts, vectors, temperature=1e-4, max_new_tokens=4)
    assert cold == greedy


def test_a_models_second_end_token_ends_a_completion_and_is_kept():
    model = tiny_peft()
    prompts, vectors = rows(1)
    ((plain,),) = complete(model, prompts, vectors, max_new_tokens=8)
    assert len(plain) == 8  # cut by the length limit: no end token is invented
    unwrap(model).generation_config = GenerationConfig(eos_token_id=[plain[2]])
    ((cut,),) = complete(model, prompts, vectors, max_new_tokens=8)
    assert cut == plain[: plain.index(plain[2]) + 1]


def test_batches_become_smaller_where_memory_is_short():
    model = tiny_peft()
    prompts, vectors = rows(5)
    expected = complete(model, prompts, vectors, max_new_tokens=4)

    def only_two_fit(_module, _args, kwargs):
        if len(kwargs["input_ids"]) > 2:
            raise torch.OutOfMemoryError

    handle = unwrap(model).register_forward_pre_hook(only_two_fit, with_kwargs=True)
    with pytest.warns(UserWarning, match="5 prompts at once do not fit, going on with 2"):
        assert complete(model, prompts, vectors, max_new_tokens=4) == expected
    handle.remove()
    unwrap(model).register_forward_pre_hook(nothing_fits)
    with pytest.warns(UserWarning), pytest.raises(UserError, match="completions of one prompt"):
        complete(model, prompts, vectors, max_new_tokens=4)


def test_an_oracle_keeps_in_mind_how_many_sequences_fit():
    oracle = make_oracle()
    table, failed = planted_table(oracle, 8), []

    def only_six_fit(_module, _args, kwargs):
        if len(kwargs["input_ids"]) > 6:
            failed.append(len(kwargs["input_ids"]))
            raise torch.OutOfMemoryError

    unwrap(oracle.model).register_forward_pre_hook(only_six_fit, with_kwargs=True)
    with pytest.warns(UserWarning, match="going on with 2"):
        oracle.rollouts(table.prompts, table.vectors, Sampling(3, 1.0, 4))
    assert len(failed) == 2  # 8 prompts of 3 samples, and then 4
    oracle.rollouts(table.prompts, table.vectors, Sampling(3, 1.0, 4))
    oracle.complete(table.prompts, table.vectors, Sampling(1, 0.0, 4))
    assert len(failed) == 2


def nothing_fits(*_):
    raise torch.OutOfMemoryError


def test_the_hook_serves_nobody_afterwards_and_training_mode_returns():
    model = tiny_peft(dropout=0.5).train()
    prompts, vectors = rows(3)
    hook = InjectionHook().attach(model, 1)
    own = (model, tiny_tokenizer(), hook, prompts, vectors, Sampling(max_new_tokens=6))
    first, second = (generate_completions(*own)[0][0].token_ids for _ in range(2))
    assert first == second  # no dropout
    assert hook.bound is None
    assert model.training


def test_counts_that_differ_raise_with_the_prompt_and_both_counts():
    model = tiny_peft()
    prompts, vectors = rows(3)
    vectors[1] = vectors[1][:1]
    with pytest.raises(ValueError, match=r"the prompt '<\|im_start.* has 2 placeholders for 1 vec"):
        complete(model, prompts, vectors)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.5}, "temperature"),
        ({"num_samples": 4}, "greedy samples"),
        ({"batch_size": 0}, "at least 1"),
        ({"max_new_tokens": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    prompts, vectors = rows(2)
    with pytest.raises(ValueError, match=message):
        complete(tiny_peft(), prompts, vectors, **settings)
    with pytest.raises(ValueError, match="activations for 1"):
        complete(tiny_peft(), prompts, vectors[:1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_that_share_one_reading_of_the_prompt_are_what_each_would_be_alone(architecture):
    model = tiny_peft(architecture)
    prompts, vectors = rows(6)
    greedy = complete(model, prompts, vectors, max_new_tokens=8)
    # At a temperature near zero every sample is the greedy completion.
    settings = {"temperature": 1e-6, "max_new_tokens": 8, "batch_size": 9}
    shared = complete(model, prompts, vectors, num_samples=3, **settings)
    assert shared == [3 * samples for samples in greedy]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probabilities_are_those_that_a_reading_of_the_completion_gives(architecture):
    model, watched = tiny_peft(architecture), [7, 3]
    prompts, vectors = rows(5)
    hook = InjectionHook().attach(model, 1)
    own = (model, tiny_tokenizer(), hook, prompts, vectors, Sampling(2, 0.7, 6))
    found = generate_completions(*own, batch_size=6, watched=watched)
    for prompt, row_KD, samples in zip(prompts, vectors, found, strict=True):
        for token_ids, logp_CT in samples:
            with torch.no_grad(), hook.serving(Injection.of([prompt], [row_KD])):
                read = model(input_ids=torch.tensor([[*prompt.input_ids, *token_ids]])).logits[0]
            read_CV = read[len(prompt.input_ids) - 1 : -1].log_softmax(-1)
            columns_CT = torch.tensor([[token, *watched] for token in token_ids])
            expected_CT = read_CV.gather(1, columns_CT)
            torch.testing.assert_close(logp_CT, expected_CT, atol=1e-4, rtol=1e-4)
            assert not torch.allclose(logp_CT[:, 1:], expected_CT[:, [2, 1]], atol=1e-2)
