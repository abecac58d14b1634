import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_ao.training.packing import pack
from tests.rigs import adapter_weights, make_oracle, make_trainer, planted_table


def test_a_small_batch_is_packed_as_computed_by_hand():
    # Completions 0 and 2 belong to the first prompt, 1 to the second.
    packed = pack([[1, 2, 3], [4, 5]], [[10, 11], [20], [30, 31, 32]], [0, 1, 0], pad_id=99)
    pad = 99
    assert packed.input_ids_NL.tolist() == [[1, 2, 3, 10, 3, 30, 31, pad], [4, 5, *[pad] * 6]]
    assert packed.positions_NL.tolist() == [[0, 1, 2, 3, 2, 3, 4, 0], [0, 1, *[0] * 6]]
    assert packed.segments_NL.tolist() == [[0, 0, 1, 1, 2, 2, 2, -1], [0, 1, *[-1] * 6]]
    no = -100
    assert packed.labels_NL.tolist() == [[no, no, 10, 11, 30, 31, 32, no], [no, 20, *[no] * 6]]
    assert packed.columns_BC.tolist() == [[2, 3, -1], [9, -1, -1], [4, 5, 6]]
    values = torch.arange(16.0).reshape(2, 8)
    assert packed.unpack(values, 4).tolist() == [[2, 3, 0, 0], [9, 0, 0, 0], [4, 5, 6, 0]]


def test_a_completion_sees_the_prompt_and_itself():
    packed = pack([[1, 2, 3]], [[10, 11], [30, 31, 32]], [0, 0], pad_id=99)
    visible = packed.visible()[0, 0].int().tolist()
    assert visible[:7] == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 1, 0],
    ]
    # A window of two positions: a token and the one before it.
    assert packed.visible(2)[0, 0, 6].int().tolist() == [0, 0, 0, 0, 0, 1, 1, 0]
    assert packed.visible(2)[0, 0, 4].int().tolist() == [0, 1, 0, 0, 1, 0, 0, 0]


tokens = st.lists(st.integers(1, 50), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(tokens, st.lists(tokens, min_size=1, max_size=4)), min_size=1, max_size=4)
)
def test_what_is_unpacked_is_each_completion_in_its_place(groups):
    prompts = [[60, *prompt] for prompt, _ in groups]
    completions = [c for _, members in groups for c in members]
    prompt_of = [g for g, (_, members) in enumerate(groups) for _ in members]
    packed = pack(prompts, completions, prompt_of, pad_id=0)
    width = max(map(len, completions)) + 1
    labels_BC = packed.unpack(packed.labels_NL.float(), width)
    assert labels_BC.tolist() == [c + [0] * (width - len(c)) for c in completions]
    # What a token is predicted from is the token before it, one position earlier.
    inputs_BC = packed.unpack(packed.input_ids_NL.float(), width)
    positions_BC = packed.unpack(packed.positions_NL.float(), width)
    for b, completion in enumerate(completions):
        prompt = prompts[prompt_of[b]]
        before = [prompt[-1], *completion[:-1]]
        assert inputs_BC[b, : len(completion)].tolist() == before
        first = len(prompt) - 1
        assert positions_BC[b, : len(completion)].tolist() == list(
            range(first, first + len(completion))
        )


# Of 8 completions in micro-batches of 2, after TRL's shuffle, few share a prompt.
MICRO = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
CASES = [("qwen3", None, MICRO), ("llama", None, {}), ("gemma2", 8, {}), ("gemma3", 8, {})]


@pytest.mark.parametrize(("architecture", "window", "trl"), CASES)
def test_a_step_on_packed_completions_is_the_step_on_one_by_one(
    tmp_path, architecture, window, trl
):
    weights = []
    for packs in (True, False):
        oracle = make_oracle(architecture)
        if window is not None:
            oracle.model.config.sliding_window = window
        table = planted_table(oracle, 6)
        start = adapter_weights(oracle)
        options = {"optim": "sgd", "max_grad_norm": 1e9} | trl
        folder = tmp_path / str(packs)
        settings = {"kl_penalty": 0.1, "max_steps": 1, "gradient_checkpointing": True, "lr": 1.0}
        trainer = make_trainer(folder, oracle, table, trl=options, **settings)
        assert trainer.packs
        trainer.packs = packs
        trainer.train()
        weights.append(adapter_weights(oracle))
    moved = max((weights[0][n] - start[n]).abs().max() for n in start)
    assert moved > 1e-3
    for name, packed in weights[0].items():
        torch.testing.assert_close(packed, weights[1][name], atol=2e-5, rtol=1e-3)


def test_a_model_that_takes_no_mask_is_trained_one_by_one_with_a_warning(tmp_path):
    oracle = make_oracle()
    oracle.model.config._attn_implementation = "flash_attention_2"
    table = planted_table(oracle, 6)
    with pytest.warns(UserWarning, match="flash attention takes no mask"):
        assert not make_trainer(tmp_path, oracle, table).packs
