import inspect
import json
import threading
from itertools import count
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import TrainerCallback
from trl.trainer.grpo_trainer import GRPOTrainer

from grpo_ao.errors import UserError
from grpo_ao.files import read_jsonl
from grpo_ao.judges.protocol import Grade, JudgeError
from grpo_ao.oracle.layers import decoder_layers, unwrap
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sampling import Rollouts
from grpo_ao.reward import reward_rule
from grpo_ao.training import trainer as trainer_module
from grpo_ao.training.correction import Mode
from grpo_ao.training.passes import avoid_cudnn_attention
from grpo_ao.training.rewarding import CalibratedReward
from grpo_ao.training.trainer import ROUNDS, OracleGRPOTrainer, rows_dataset
from tests.rigs import (
    LetterReward,
    adapter_weights,
    make_oracle,
    make_trainer,
    planted_table,
)
from tests.tiny import tiny_tokenizer, token_id


class Readback:
    """Reads what was added at the injected layer, and tells each row's probe by its tokens."""

    def __init__(self, oracle, table):
        self.table = table
        self.rows_seen: list[list[int]] = []
        self.kinds: set[str] = set()
        self._model = oracle.model
        self._ids = self._clean = torch.empty(0)
        unwrap(oracle.model).register_forward_pre_hook(self._remember_ids, with_kwargs=True)
        layer = decoder_layers(oracle.model)[oracle.spec.hook_onto_layer]
        layer.register_forward_hook(self._remember_clean, prepend=True)
        layer.register_forward_hook(self._check)

    def _remember_ids(self, _module, args, kwargs):
        self._ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]

    def _remember_clean(self, _module, _inputs, output):
        self._clean = output.detach().clone()

    def _check(self, _module, _inputs, output):
        if output.shape[1] == 1:
            assert torch.equal(output, self._clean)
            return
        added_BLD = output.detach() - self._clean
        seen = []
        for ids_L, added_LD, clean_LD in zip(self._ids, added_BLD, self._clean, strict=True):
            row, positions = self._row_of(ids_L.tolist())
            v_KD = self.table.vectors[row]
            expected_LD = torch.zeros_like(added_LD)
            norms_K1 = clean_LD[positions].norm(dim=-1, keepdim=True)
            expected_LD[positions] = norms_K1 * v_KD / v_KD.norm(dim=-1, keepdim=True)
            torch.testing.assert_close(added_LD, expected_LD, atol=1e-4, rtol=1e-4)
            seen.append(row)
        self.rows_seen.append(seen)
        self.kinds.add(self._kind())

    def _kind(self):
        if torch.is_grad_enabled():
            return "policy"
        return "reference" if self._model.active_adapter == "ref" else "rollout"

    def _row_of(self, ids):
        """Find the prompt, whole or without its last token, in a padded row."""
        for row, prompt in enumerate(self.table.prompts):
            wanted = prompt.input_ids[:-1]
            for start in range(len(ids) - len(wanted) + 1):
                if ids[start : start + len(wanted)] == wanted:
                    return row, [start + p for p in prompt.positions]
        raise AssertionError("a row of the batch holds no prompt of the table")


# Micro-batches, accumulation and several updates per generation make TRL shuffle and split.
SPLITS = [
    {},
    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "steps_per_generation": 4},
]


@pytest.mark.parametrize("trl", SPLITS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_row_of_every_pass_gets_its_own_vectors(tmp_path, trl, checkpointing):
    oracle = make_oracle()
    table = planted_table(oracle, 9)
    readback = Readback(oracle, table)
    trainer = make_trainer(
        tmp_path,
        oracle,
        table,
        trl=trl,
        kl_penalty=0.1,
        max_steps=4,
        gradient_checkpointing=checkpointing,
    )
    trainer.train()
    # A rollout and, for each micro-batch, reference and policy at least.
    assert len(readback.rows_seen) >= 6
    assert len({row for rows in readback.rows_seen for row in rows}) >= 7
    assert readback.kinds == {"rollout", "reference", "policy"}


def test_a_placeholder_in_a_completion_is_not_steered(tmp_path):
    oracle = make_oracle()
    table = planted_table(oracle, 4)
    trainer = make_trainer(tmp_path, oracle, table)
    placeholder = token_id("Ġ?")
    width = max(len(prompt.input_ids) for prompt in table.prompts)
    rows, completion = [2, 0, 3, 1], [65, placeholder, placeholder, 66]
    trainer._rows = rows
    ids_BL = torch.tensor(
        [
            [token_id("<|endoftext|>")] * (width - len(prompt.input_ids))
            + [*prompt.input_ids, *completion]
            for prompt in (table.prompts[row] for row in rows)
        ]
    )
    mask_BL = (ids_BL != token_id("<|endoftext|>")).long()
    readback = Readback(oracle, table)
    # Whole and in chunks, as for the reference and for the policy.
    found = [
        trainer._get_per_token_logps_and_entropies(oracle.model, ids_BL, mask_BL, 4, size)[0]
        for size in (None, 4, 2, 1)
    ]
    assert readback.rows_seen == [rows, rows, [2, 0], [3, 1], [2], [0], [3], [1]]
    for logps_BC in found[1:]:
        torch.testing.assert_close(logps_BC, found[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3"])
def test_other_architectures_get_their_own_vectors_too(tmp_path, architecture):
    oracle = make_oracle(architecture)
    table = planted_table(oracle, 6)
    readback = Readback(oracle, table)
    make_trainer(tmp_path, oracle, table, max_steps=1).train()
    assert len(readback.rows_seen) >= 2


def test_gradient_checkpointing_changes_no_weight(tmp_path):
    weights = []
    for checkpointing in (False, True):
        oracle = make_oracle()
        start = adapter_weights(oracle)
        table = planted_table(oracle, 6)
        settings = {"kl_penalty": 0.05, "gradient_checkpointing": checkpointing}
        make_trainer(tmp_path / str(checkpointing), oracle, table, **settings).train()
        weights.append(adapter_weights(oracle))
        assert any(not torch.equal(start[name], weights[-1][name]) for name in start)
    for name, plain in weights[0].items():
        torch.testing.assert_close(weights[1][name], plain, atol=1e-6, rtol=1e-5)


def test_micro_batches_change_no_weight(tmp_path):
    weights = []
    for size, accumulation in ((8, 1), (2, 4)):
        oracle = make_oracle()
        trl = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        table = planted_table(oracle, 6)
        # SGD, since Adam makes a step of the smallest difference.
        trl |= {"optim": "sgd"}
        make_trainer(tmp_path / str(size), oracle, table, trl=trl, max_steps=1).train()
        weights.append(adapter_weights(oracle))
    for name, whole in weights[0].items():
        torch.testing.assert_close(weights[1][name], whole, atol=1e-5, rtol=1e-4)


def test_passes_are_fast_ones_until_the_step_ends(tmp_path, monkeypatch):
    updates, layers = [], []
    for fast in (False, True):
        oracle = make_oracle()
        layer = next(m for m in oracle.model.modules() if isinstance(m, BaseTunerLayer))
        if not fast:
            monkeypatch.setattr(trainer_module.FastPasses, "begin", lambda _: None)
        first = decoder_layers(oracle.model)[0]
        first.register_forward_hook(lambda *_, a=layer: layers.append("forward" in vars(a)))
        settings = {"trl": {"optim": "sgd"}, "lr": 1.0, "max_steps": 1}
        settings |= {"kl_penalty": 0.1, "gradient_checkpointing": True}
        table, before = planted_table(oracle, 6), adapter_weights(oracle)
        make_trainer(tmp_path / str(fast), oracle, table, **settings).train()
        after = adapter_weights(oracle)
        updates.append({name: after[name] - weight for name, weight in before.items()})
        # Rollouts are not made so; the passes of the reference and of the loss are.
        assert layers[-3:] == [False, fast, fast]
        assert "forward" not in vars(layer)
        layers.clear()
        monkeypatch.undo()
    assert max(update.abs().max() for update in updates[0].values()) > 1e-4
    for name, update in updates[0].items():
        torch.testing.assert_close(updates[1][name], update, atol=1e-6, rtol=1e-3)


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "alert" not in row]


def test_kl_is_to_the_oracle_as_grpo_found_it_and_not_to_the_base(tmp_path):
    oracle = make_oracle()
    table = planted_table(oracle, 6)
    make_trainer(tmp_path, oracle, table, kl_penalty=0.1, max_steps=4).train()
    kl = [row["kl"] for row in metrics(tmp_path)]
    # The adapter is not zero: to the base model the first KL would not be either.
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[-1] > 1e-4


def test_kl_has_a_gradient(tmp_path):
    moved = []
    for beta in (0.0, 10.0):
        oracle = make_oracle()
        table = planted_table(oracle, 6)
        make_trainer(tmp_path / str(beta), oracle, table, kl_penalty=beta, max_steps=3).train()
        moved.append(adapter_weights(oracle))
    assert any(not torch.allclose(moved[0][n], moved[1][n], atol=1e-4) for n in moved[0])


@pytest.mark.parametrize(("tag", "moves"), [(5, False), (2, True)])
def test_kl_holds_the_answer_and_leaves_the_tag_free(tmp_path, monkeypatch, tag, moves):
    # All five tokens are the tag's, or three the answer's; nothing is graded, so KL alone trains.
    monkeypatch.setattr(trainer_module, "tag_lengths", lambda tokenizer, ids: [tag] * len(ids))
    oracle = make_oracle()
    table = planted_table(oracle, 6)
    reward = LetterReward(unscored=tuple(range(8)))
    trainer = make_trainer(tmp_path, oracle, table, reward, kl_penalty=1.0, max_steps=1)
    for name, parameter in oracle.model.named_parameters():
        if ".ref." in name:
            parameter.data.mul_(2.0)
    before = adapter_weights(oracle)
    trainer.train()
    after = adapter_weights(oracle)
    assert any(not torch.equal(before[name], after[name]) for name in before) == moves


def test_dropout_of_the_adapter_is_off(tmp_path):
    oracle = make_oracle(dropout=0.5)
    table = planted_table(oracle, 6)
    make_trainer(tmp_path, oracle, table, kl_penalty=0.1, max_steps=1).train()
    # With dropout on, reference and policy would differ at the first step.
    assert metrics(tmp_path)[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_the_tokens_that_are_trained_are_those_that_were_sampled(tmp_path, monkeypatch):
    sampled, trained = [], []
    rollouts = Oracle.rollouts
    loss = OracleGRPOTrainer._compute_loss

    def recording_rollouts(*args, **kwargs):
        result = rollouts(*args, **kwargs)
        sampled.extend(ids for group in result.token_ids for ids in group)
        return result

    def recording_loss(self, model, inputs):
        for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True):
            trained.append(ids[mask.bool()].tolist())
        return loss(self, model, inputs)

    monkeypatch.setattr(Oracle, "rollouts", recording_rollouts)
    monkeypatch.setattr(OracleGRPOTrainer, "_compute_loss", recording_loss)
    oracle = make_oracle()
    make_trainer(tmp_path, oracle, planted_table(oracle, 6), max_steps=2).train()
    assert sorted(trained) == sorted(sampled)
    # Random bytes do not survive being decoded and tokenised again: the test can tell.
    again = [tiny_tokenizer().encode(t, add_special_tokens=False) for t in map(decode, sampled)]
    assert again != sampled


def decode(ids):
    return tiny_tokenizer().decode(ids, skip_special_tokens=True)


def advantages_of(trainer):
    """Run one generation and return TRL's output with the trainer's answers."""
    found = []
    original = trainer._generate_and_score_completions

    def recording(inputs):
        output = original(inputs)
        found.append((output["advantages"].clone(), output["completion_ids"].clone()))
        return output

    trainer._generate_and_score_completions = recording
    trainer.train()
    return found[0]


def test_an_ungraded_completion_is_left_out_of_its_groups_baseline(tmp_path):
    oracle = make_oracle()
    table = planted_table(oracle, 6)
    reward = LetterReward(unscored=(1,))
    trainer = make_trainer(
        tmp_path,
        oracle,
        table,
        reward,
        credit="joint",
        scale_rewards="none",
        num_generations=4,
        questions_per_step=2,
        max_steps=1,
    )
    advantages_B, _ = advantages_of(trainer)
    rewards = [answer.reward or 0.0 for answer in reward.last]
    graded = [rewards[i] for i in (0, 2, 3)]
    mean = sum(graded) / 3
    expected = [rewards[0] - mean, 0.0, rewards[2] - mean, rewards[3] - mean]
    assert advantages_B[:4].tolist() == pytest.approx(expected, abs=1e-5)


def test_split_credit_gives_each_token_its_own_advantage(tmp_path):
    oracle = make_oracle()
    table = planted_table(oracle, 6)
    reward = LetterReward()
    trainer = make_trainer(
        tmp_path,
        oracle,
        table,
        reward,
        credit="split",
        num_generations=4,
        questions_per_step=2,
        max_steps=1,
    )
    advantages_BC, ids_BC = advantages_of(trainer)
    assert advantages_BC.shape == ids_BC.shape
    scores = [answer.informativeness or 0.0 for answer in reward.last[:4]]
    # The completions hold no closing bracket, so all tokens are the answer's.
    assert not any("]" in answer.completion for answer in reward.last[:4])
    expected = [score - sum(scores) / 4 for score in scores]
    assert advantages_BC[:4, 0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("tag_outcome", ["own", "group"])
def test_a_tag_is_credited_against_its_own_informativeness_or_the_others(
    tag_outcome, tmp_path, monkeypatch
):
    # No completion of a random model closes a bracket: let the first two tokens be the tag.
    monkeypatch.setattr(trainer_module, "tag_lengths", lambda tokenizer, ids: [2] * len(ids))
    oracle = make_oracle()
    table = planted_table(oracle, 6)
    reward = LetterReward()
    trainer = make_trainer(
        tmp_path,
        oracle,
        table,
        reward,
        tag_outcome=tag_outcome,
        num_generations=4,
        questions_per_step=2,
        max_steps=1,
    )
    advantages_BC, _ = advantages_of(trainer)
    group = reward.last[:4]
    graded = [answer.informativeness or 0.0 for answer in group]
    outcomes = graded
    if tag_outcome == "group":
        outcomes = [(sum(graded) - own) / 3 for own in graded]
    terms = [
        reward.rule.calibration(answer.confidence or 0.0, outcome)
        for answer, outcome in zip(group, outcomes, strict=True)
    ]
    mean = sum(terms) / 4
    assert advantages_BC[:4, 1].tolist() == pytest.approx([t - mean for t in terms], abs=1e-5)
    mean = sum(graded) / 4
    assert advantages_BC[:4, 2].tolist() == pytest.approx([g - mean for g in graded], abs=1e-5)


class BegunJudge:
    """Says when it has begun to grade."""

    def __init__(self) -> None:
        self.begun = threading.Event()

    async def grade(self, requests):
        self.begun.set()
        return [Grade(1.0) for _ in requests]


@pytest.mark.parametrize("ahead", [True, False])
def test_the_judge_works_while_the_references_log_probabilities_are_computed(
    tmp_path, monkeypatch, ahead
):
    oracle = make_oracle()
    table = planted_table(oracle, 6)
    judge = BegunJudge()
    reward = CalibratedReward(judge, reward_rule(0.5), ahead)
    had_begun = []
    original = OracleGRPOTrainer._get_per_token_logps_and_entropies

    def reference(self, *args, **kwargs):
        if not torch.is_grad_enabled():
            # With nothing to wait for, waiting would only show that it is not there.
            had_begun.append(judge.begun.wait(30) if ahead else judge.begun.is_set())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(OracleGRPOTrainer, "_get_per_token_logps_and_entropies", reference)
    make_trainer(tmp_path, oracle, table, reward, kl_penalty=0.1, max_steps=1).train()
    assert had_begun == [ahead]
    assert metrics(tmp_path)[0]["seconds_judge"] > 0


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_seconds_of_a_step_are_those_of_all_its_micro_batches(
    tmp_path, monkeypatch, accumulation
):
    ticks = count()
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr("grpo_ao.training.trainer.time", clock)
    oracle = make_oracle()
    trl = {"per_device_train_batch_size": 8 // accumulation}
    trl |= {"gradient_accumulation_steps": accumulation}
    make_trainer(tmp_path, oracle, planted_table(oracle, 6), trl=trl, max_steps=2).train()
    for row in metrics(tmp_path):
        # Each look at the clock is a tick. Two looks bracket a micro-batch, one tick apart; the
        # first of them holds the two that bracket the phases.
        phases = row["seconds_generate"] + row["seconds_score"]
        assert row["seconds_step"] == phases + 1 + accumulation


SCHEDULES = [
    # Section trl:, and what each row of metrics counts: {step: completions}.
    ({}, {1: 8, 2: 8, 3: 8, 4: 8}),
    ({"gradient_accumulation_steps": 2}, {1: 16, 2: 16, 3: 16, 4: 16}),
    ({"gradient_accumulation_steps": 2, "steps_per_generation": 1}, {1: 16, 2: 16, 3: 16, 4: 16}),
    ({"steps_per_generation": 2}, {1: 16, 3: 16}),
    ({"num_iterations": 2}, {1: 8, 3: 8}),
    ({"num_iterations": 3}, {1: 8, 4: 8}),
    ({"steps_per_generation": 2, "num_iterations": 2}, {1: 16}),
    ({"gradient_accumulation_steps": 2, "num_iterations": 2}, {1: 16, 3: 16}),
]


@pytest.mark.parametrize(("trl", "expected"), SCHEDULES)
def test_every_completion_is_counted_once_whatever_the_schedule(tmp_path, trl, expected):
    oracle = make_oracle()
    table = planted_table(oracle, 8)
    reward = LetterReward()
    make_trainer(tmp_path, oracle, table, reward, trl, max_steps=4, plot_every=2).train()
    counted = {row["step"]: len(row["confidence"]) for row in read_jsonl(tmp_path / "window.jsonl")}
    assert counted == expected
    assert sum(expected.values()) == len(reward.completions)
    assert [row["step"] for row in metrics(tmp_path)] == list(expected)
    shown = read_jsonl(tmp_path / "rollouts.jsonl")
    due = {min(s for s in expected if s >= due) for due in (2, 4) if due <= max(expected)}
    assert {row["step"] for row in shown} == due
    for row in metrics(tmp_path):
        cut = [
            token_id("<|im_end|>") not in r["token_ids"] for r in shown if r["step"] == row["step"]
        ]
        assert not cut or row["truncated"] == sum(cut) / len(cut)


ENDS = {token_id("<|im_end|>"), token_id("<|endoftext|>")}


class Endless:
    """Completes as the oracle does, but for the ends."""

    def __init__(self, oracle):
        self.oracle = oracle

    def rollouts(self, prompts, vectors, sampling):
        found = self.oracle.rollouts(prompts, vectors, sampling).token_ids
        return Rollouts(
            [[[65 if i in ENDS else i for i in ids] for ids in own] for own in found], None
        )


@pytest.mark.parametrize("loss", ["dapo", "grpo", "bnpo", "dr_grpo"])
def test_completions_that_are_all_cut_off_and_masked_train_nothing(tmp_path, loss):
    oracle = make_oracle()
    before = adapter_weights(oracle)
    trl = {"mask_truncated_completions": True, "loss_type": loss}
    table = planted_table(oracle, 8)
    make_trainer(tmp_path, oracle, table, trl=trl, engine=Endless(oracle), max_steps=1).train()
    (row,) = metrics(tmp_path)
    assert (row["truncated"], row["advantage_std"]) == (1.0, 0.0)
    assert all(torch.equal(w, before[name]) for name, w in adapter_weights(oracle).items())


class Outage(LetterReward):
    """Gives no grades in the rounds from ``first`` on, ``rounds`` of them."""

    def __init__(self, table, first, rounds):
        super().__init__(table)
        self.bad = range(first, first + rounds)
        self.round = count(1)

    async def __call__(self, *args, **kwargs):
        self._unscored = (0, 1, 2) if next(self.round) in self.bad else ()
        return await super().__call__(*args, **kwargs)


def test_a_round_without_enough_grades_is_neither_trained_on_nor_counted(tmp_path, monkeypatch):
    oracle = make_oracle()
    table = planted_table(oracle, 8)
    # Three of eight are ungraded; then the judge is back.
    reward = Outage(table, first=2, rounds=ROUNDS - 1)
    layer = next(m for m in oracle.model.modules() if isinstance(m, BaseTunerLayer))
    begin, fast = reward.begin, []

    def begin_and_look(*args):
        fast.append("forward" in vars(layer))
        begin(*args)

    monkeypatch.setattr(reward, "begin", begin_and_look)
    settings = {"max_unscored": 0.3, "max_steps": 3, "kl_penalty": 0.1}
    make_trainer(tmp_path, oracle, table, reward, **settings).train()
    # What samples anew comes behind passes of the reference, and is not made as they are.
    assert fast == [False] * (3 + ROUNDS - 1)
    assert len(reward.completions) == 8 * (3 + ROUNDS - 1)
    assert [(row["step"], row["unscored"]) for row in metrics(tmp_path)] == [(1, 0), (2, 0), (3, 0)]
    alerts = [row for row in read_jsonl(tmp_path / "metrics.jsonl") if "alert" in row]
    said = [row for row in alerts if row["alert"] == "unscored"]
    assert [row["step"] for row in said] == [2] * (ROUNDS - 1)
    assert "left 3 of 8 completions ungraded" in said[0]["message"]


def test_after_ten_rounds_without_enough_grades_the_run_ends_as_the_last_step_left_it(tmp_path):
    ends = []
    for outage in (True, False):
        oracle = make_oracle()
        table = planted_table(oracle, 8)
        reward = Outage(table, first=2, rounds=ROUNDS) if outage else None
        settings = {"max_unscored": 0.3, "max_steps": 3 if outage else 1}
        # The learning rate does not tell how many steps are to come.
        settings["trl"] = {"lr_scheduler_type": "constant"}
        trainer = make_trainer(tmp_path / str(outage), oracle, table, reward, **settings)
        if outage:
            with pytest.raises(JudgeError, match=r"3 of 8 .* 10 times in a row.* after step 1\."):
                trainer.train()
        else:
            trainer.train()
        ends.append(adapter_weights(oracle))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert (tmp_path / "True" / "checkpoints" / "checkpoint-1").is_dir()


class Spoiler(TrainerCallback):
    """Spoils the second step in one of its parts."""

    def __init__(self, part):
        self.part = part

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.part == "gradient" and state.global_step == 1:
            trained(kwargs["model"]).grad[0, 0] = float("inf")

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.part == "adapter" and state.global_step == 1:
            trained(kwargs["model"]).data[0, 0] = float("nan")


def trained(model):
    return next(p for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("part", ["loss", "gradient", "adapter"])
def test_a_run_that_is_no_longer_finite_ends_before_it_is_saved(tmp_path, monkeypatch, part):
    def infinite(self, model, inputs):
        # The gradient of a constant is none.
        return loss(self, model, inputs) + (torch.inf if self.state.global_step == 1 else 0)

    oracle = make_oracle()
    loss = OracleGRPOTrainer._compute_loss
    if part == "loss":
        monkeypatch.setattr(OracleGRPOTrainer, "_compute_loss", infinite)
    trainer = make_trainer(tmp_path, oracle, planted_table(oracle, 8), max_steps=4, save_steps=1)
    # Before the callback that looks.
    trainer.callback_handler.callbacks.insert(0, Spoiler(part))
    with pytest.raises(UserError, match=rf"the {part} is not finite at GRPO step 2"):
        trainer.train()
    saved = [path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")]
    assert saved == ["checkpoint-1"]


class OtherSampler:
    """Says that it sampled each token with log-probability ``claimed``, as vLLM would say."""

    claimed = -3.2

    def __init__(self, oracle):
        self.oracle = oracle

    def rollouts(self, prompts, vectors, sampling):
        sampled = self.oracle.rollouts(prompts, vectors, sampling)
        token_ids = sampled.token_ids
        claims = [[[self.claimed - n for n, _ in enumerate(s)] for s in row] for row in token_ids]
        return Rollouts(token_ids, claims)


def corrected_run(folder, monkeypatch, on_policy, **trl):
    """One step from another sampler: weights, gap, number of passes, and the loss's inputs."""
    seen, passes = [], []
    original = OracleGRPOTrainer._compute_loss

    def spy(self, model, inputs):
        loss = original(self, model, inputs)
        seen.append(inputs)
        return loss

    oracle = make_oracle()
    table, engine = planted_table(oracle, 8), OtherSampler(oracle)
    # Plain gradient descent: Adam's first step would blow up differences in rounding.
    trl |= {"optim": "sgd"}
    trainer = make_trainer(folder, oracle, table, trl=trl, engine=engine, max_steps=1, lr=1.0)
    trainer.on_policy = trainer.on_policy and on_policy
    monkeypatch.setattr(OracleGRPOTrainer, "_compute_loss", spy)
    unwrap(oracle.model).register_forward_hook(lambda *_: passes.append(1))
    trainer.train()
    monkeypatch.undo()
    row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    return adapter_weights(oracle), row["sampling_gap"], len(passes), seen


@pytest.mark.parametrize("mode", get_args(Mode))
def test_the_policy_is_corrected_for_another_sampler_as_trl_does_with_a_pass_less(
    tmp_path, monkeypatch, mode
):
    trl = {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 2.0}
    (tmp_path / "ours").mkdir()
    (tmp_path / "trl").mkdir()
    ours = corrected_run(tmp_path / "ours", monkeypatch, True, **trl)
    trls = corrected_run(tmp_path / "trl", monkeypatch, False, **trl)
    start = adapter_weights(make_oracle())
    for name, weight in ours[0].items():
        update, expected = weight - start[name], trls[0][name] - start[name]
        torch.testing.assert_close(update, expected, rtol=1e-3, atol=1e-6)
    assert any((weight - start[name]).abs().max() > 1e-3 for name, weight in ours[0].items())
    assert ours[1] == pytest.approx(trls[1], rel=1e-4)
    assert ours[2] == trls[2] - 1
    (our_inputs,), (trl_inputs,) = ours[3], trls[3]
    torch.testing.assert_close(
        *(inputs["importance_sampling_ratio"] for inputs in (our_inputs, trl_inputs))
    )
    mask = our_inputs["completion_mask"].bool()
    claimed = OtherSampler.claimed - torch.arange(mask.shape[1]).expand_as(mask)
    assert torch.equal(our_inputs["sampling_per_token_logps"][mask], claimed[mask].float())
    assert "old_per_token_logps" not in our_inputs


def test_several_updates_of_one_batch_are_corrected_as_by_trl(tmp_path, monkeypatch):
    trl = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
    }
    _, gap, _, seen = corrected_run(tmp_path, monkeypatch, True, **trl)
    assert gap > 0
    assert all("old_per_token_logps" in inputs for inputs in seen)


def test_tokens_that_the_policy_would_not_have_sampled_train_nothing(tmp_path):
    oracle = make_oracle()
    before = adapter_weights(oracle)
    engine = OtherSampler(oracle)
    engine.claimed = 200.0
    make_trainer(tmp_path, oracle, planted_table(oracle, 8), engine=engine, max_steps=1).train()
    assert all(torch.equal(w, before[name]) for name, w in adapter_weights(oracle).items())


def test_a_policy_that_samples_itself_is_not_corrected(tmp_path):
    oracle = make_oracle()
    trainer = make_trainer(tmp_path, oracle, planted_table(oracle, 8), max_steps=1)
    trainer.train()
    assert not trainer.use_vllm
    assert "sampling_gap" not in (tmp_path / "metrics.jsonl").read_text()


def test_the_seams_of_trl_are_where_this_trainer_expects_them():
    def parameters(name):
        return list(inspect.signature(getattr(GRPOTrainer, name)).parameters)

    assert parameters("_tokenize_prompts")[:2] == ["self", "prompts"]
    assert parameters("_generate_single_turn")[:2] == ["self", "prompt_ids"]
    logps = parameters("_get_per_token_logps_and_entropies")
    assert logps[:6] == [
        "self",
        "model",
        "input_ids",
        "attention_mask",
        "logits_to_keep",
        "batch_size",
    ]
    assert parameters("_generate_and_score_completions") == ["self", "inputs"]
    assert parameters("_compute_loss") == ["self", "model", "inputs"]
    assert parameters("training_step")[:3] == ["self", "model", "inputs"]
    assert parameters("log")[:2] == ["self", "logs"]


def test_the_dataset_names_each_row():
    oracle = make_oracle()
    table = planted_table(oracle, 4)
    columns = rows_dataset(table).to_dict()
    assert isinstance(columns, dict)
    assert columns["row"] == [0, 1, 2, 3]
    assert columns["prompt"][2] == table.prompts[2].text


def test_a_run_takes_no_cudnn_attention():
    torch.backends.cuda.enable_cudnn_sdp(True)
    avoid_cudnn_attention()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_the_adapter_of_a_quantized_model_is_not_rounded(tmp_path):
    oracle = make_oracle()
    vars(oracle.model.get_base_model())["is_loaded_in_4bit"] = True
    before = adapter_weights(oracle)
    make_trainer(tmp_path, oracle, planted_table(oracle, 6))
    after = adapter_weights(oracle)
    for name, weights in before.items():
        assert weights.dtype == after[name].dtype == torch.float32
        assert torch.equal(weights, after[name])
