"""GRPO on an activation oracle: TRL's ``GRPOTrainer``, with activations in every forward pass.

What differs from TRL's trainer, and the seams where it does (each has a test):

- ``_tokenize_prompts`` returns the table's own token ids, whose placeholder positions are known.
- ``_generate_single_turn`` hands the batch's prompts and activations to the rollout engine, each
  prompt once for all of its completions, and lets the judge begin: TRL asks for rewards only
  after the log-probabilities of the reference.
- ``_get_per_token_logps_and_entropies`` packs the completions of a prompt behind it, in one row
  (``packing``), and binds each chunk's activations; the last chunk stays bound, so that a
  checkpointed backward pass recomputes with the same rows. Log-probabilities come from TRL's fused
  head, which never holds the logits of the whole vocabulary.
- ``_generate_and_score_completions`` puts each completion's row number and its tag's tokens into
  its output, where TRL shuffles and splits them with the rest, and replaces the advantages for
  split credit.
- ``_compute_loss`` reads the rows back, and holds answers alone to the reference: the tag is what
  GRPO is to teach. Where the engine returned log-probabilities, ``use_vllm``
  tells TRL to correct for them (importance sampling); while the policy is still the one that was
  sampled for, the weights come from the loss's own forward pass, not from one more.
- ``_save_checkpoint`` says in one sentence that the disk is full; ``create_model_card`` writes no
  card.
- ``log`` hands the answers that were made since it was called last, those of all processes, to the
  monitor. A *round* is one call of ``_generate_and_score_completions``: a step may make several,
  and several steps may train on one (``gradient_accumulation_steps``, ``steps_per_generation``,
  ``num_iterations``). Each is counted once, at the step that made it.
"""

import time
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, groupby
from math import isnan, nan
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from grpo_ao.answer import Answer
from grpo_ao.credit import (
    Credit,
    ScaleRewards,
    TagOutcome,
    means_of_the_others,
    split_advantages,
    tag_lengths,
)
from grpo_ao.files import write_faults
from grpo_ao.judges.limits import ADVICE, main_reason
from grpo_ao.judges.protocol import JudgeError
from grpo_ao.measuring.ask import read_answers
from grpo_ao.oracle.ends import end_token_ids, pad_token_id
from grpo_ao.oracle.masks import mask_argument, reason_unmaskable
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.sampling import RolloutEngine, Sampling
from grpo_ao.oracle.sharding import is_sharded, together
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.training.checkpoints import make_trainable
from grpo_ao.training.correction import Mode, importance_ratio
from grpo_ao.training.finite import FiniteCheck, check_finite
from grpo_ao.training.monitor import Monitor
from grpo_ao.training.packing import pack
from grpo_ao.training.passes import FastPasses
from grpo_ao.training.rewarding import CalibratedReward

# Rounds in a row of which the judge may leave too much ungraded, before it ends the run.
ROUNDS = 10
_SAMPLING_GAP = "sampling/sampling_logp_difference/mean"


def rows_dataset(table: ProbeTable) -> Dataset:
    """Return what TRL iterates over: each probe's prompt and its row in the table."""
    prompts = [prompt.text for prompt in table.prompts]
    return Dataset.from_dict({"prompt": prompts, "row": list(range(len(table)))})


class OracleGRPOTrainer(GRPOTrainer):
    """TRL's trainer over a table of probes; ``credit`` is ``joint`` or ``split``.

    With split credit, ``tag_outcome`` says against whose informativeness a tag's tokens are
    credited: the completion's own, or the mean of its group's others.
    ``monitor`` is the main process's; it is None in the others. A round of which the judge leaves
    more than the share ``max_unscored`` ungraded trains nothing: its prompts are completed anew.
    Ten such rounds in a row raise JudgeError, with a checkpoint of the step before.
    """

    def __init__(
        self,
        oracle: Oracle,
        table: ProbeTable,
        reward: CalibratedReward,
        engine: RolloutEngine,
        args: GRPOConfig,
        credit: Credit,
        scale: ScaleRewards,
        tag_outcome: TagOutcome,
        monitor: Monitor | None,
        max_unscored: float,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.oracle, self.table = oracle, table
        self.reward, self.engine = reward, engine
        self.credit: Credit = credit
        self.scale: ScaleRewards = scale
        self.tag_outcome: TagOutcome = tag_outcome
        self.monitor = monitor
        self.max_unscored = max_unscored
        self._rows: list[int] = []
        self._forget_rounds()
        self._prepare_correction(args)
        self.group_size = args.num_generations or 1
        self.max_new_tokens = args.max_completion_length or 1
        adapter = [(p, p.data) for p in oracle.model.parameters() if p.requires_grad]
        super().__init__(
            model=oracle.model,
            # An async callable, as TRL's documentation has it; its type speaks of plain ones.
            reward_funcs=cast("Any", [reward]),
            args=args,
            train_dataset=rows_dataset(table),
            processing_class=oracle.tokenizer,
            callbacks=[FiniteCheck(), *callbacks],
        )
        # TRL rounds the adapter of a quantized model to bfloat16, in which small steps are lost.
        for parameter, data in adapter:
            parameter.data = data
        # When TRL adds the adapter `ref`, PEFT makes all of `default` trainable again.
        make_trainable(oracle)
        self._fast = FastPasses(oracle)
        self._prepare_sharded()
        self._prepare_packing()
        self.remove_callback(PrinterCallback)  # the monitor and the progress bar show the run

    def _prepare_correction(self, args: GRPOConfig) -> None:
        self._trained: dict[str, Any] | None = None  # the micro-batch of the loss at hand
        self._uncorrected: dict[str, Any] | None = None
        # Whether a step's updates are all made before the policy has moved from what was sampled.
        updates = (args.steps_per_generation or 1) * args.num_iterations
        self.on_policy = args.gradient_accumulation_steps % updates == 0

    def _prepare_sharded(self) -> None:
        # accelerate refuses DDP beside sharded weights: `training_step` does its work.
        if is_sharded(self.oracle.model):
            prepare = self.accelerator.prepare_model
            self.accelerator.prepare_model = partial(prepare, evaluation_mode=True)

    def _prepare_packing(self) -> None:
        """Find out whether a prompt's completions can share a row; warn where they cannot."""
        oracle = self.oracle
        self.ends = end_token_ids(oracle.model, oracle.tokenizer)
        self.pad_id = pad_token_id(oracle.tokenizer, self.ends)
        unpackable = "it mixes experts" if self.aux_loss_enabled else None
        unpackable = unpackable or reason_unmaskable(oracle.model)
        self.packs = unpackable is None
        if unpackable:
            warnings.warn(
                f"each completion is trained with its own prompt: {unpackable}.", stacklevel=3
            )

    def _forget_rounds(self) -> None:
        """Begin to count anew: what was made since the last step that was logged."""
        self._answers: list[Answer] = []
        self._seconds: dict[str, float] = defaultdict(float)
        # Number, sum and sum of squares of the advantages, over tokens.
        self._advantages_3 = torch.zeros(3, dtype=torch.double)

    def _tokenize_prompts(self, prompts: list):
        return [list(self.table.prompts[row].input_ids) for row in self._rows], None, {}

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        started = time.perf_counter()
        self._fast.end()  # A round that is asked anew comes behind passes.
        # TRL repeats a prompt for each of its completions; it needs to be read only once.
        samples = _repeats(self._rows)
        rows = self._rows[::samples]
        with together(self.oracle.model):
            rollouts = self.engine.rollouts(
                [self.table.prompts[row] for row in rows],
                [self.table.vectors[row] for row in rows],
                Sampling(samples, self.temperature, self.max_new_tokens),
            )
        self._seconds["generate"] += time.perf_counter() - started
        token_ids = list(chain(*rollouts.token_ids))
        # The judge works while the log-probabilities of policy and reference are computed.
        probes = [self.table.probes[row] for row in self._rows]
        self.reward.begin(self.async_loop, read_answers(self.oracle, probes, token_ids))
        self.use_vllm = rollouts.logprobs is not None and not self.on_policy
        return token_ids, list(chain(*rollouts.logprobs)) if rollouts.logprobs else None

    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, **kwargs
    ):
        self._pass_fast()
        parts = []
        for first in range(0, len(input_ids), batch_size or len(input_ids)):
            chunk = slice(first, first + (batch_size or len(input_ids)))
            rows, ids_BL, mask_BL = self._rows[chunk], input_ids[chunk], attention_mask[chunk]
            if self.packs:
                part = self._packed_logps(model, rows, ids_BL, mask_BL, logits_to_keep)
            else:
                injection = self.table.injection(rows, input_ids.shape[1] - logits_to_keep)
                self.oracle.hook.bind(injection)
                part = super()._get_per_token_logps_and_entropies(
                    model, ids_BL, mask_BL, logits_to_keep, **kwargs
                )
            parts.append(part)
        logps_BC, *others = (_joined(values) for values in zip(*parts, strict=True))
        if self._trained is not None and logps_BC is not None:
            self._hold_answers(self._trained, logps_BC.detach())
        if self._uncorrected is not None and logps_BC is not None:
            self._correct(self._uncorrected, logps_BC.detach())
        return logps_BC, *others

    def _hold_answers(self, inputs: dict[str, Any], logps_BC: Tensor) -> None:
        """Take the tags out of the divergence from the reference: they are held to nothing.

        There the reference is what the policy is, so that neither value nor gradient is left.
        """
        if (ref_BC := inputs.get("ref_per_token_logps")) is not None:
            inputs["ref_per_token_logps"] = torch.where(inputs["tag_mask"], logps_BC, ref_BC)

    def _tag_mask(self, ids_BC: Tensor) -> Tensor:
        """Return which tokens of completions belong to their tags."""
        tag_B = tag_lengths(self.oracle.tokenizer, ids_BC.tolist())
        columns_C = torch.arange(ids_BC.shape[1], device=ids_BC.device)
        return columns_C[None] < torch.tensor(tag_B, device=ids_BC.device)[:, None]

    def _correct(self, inputs: dict[str, Any], logps_BC: Tensor) -> None:
        """Put the importance weights of these completions where TRL's loss reads them."""
        gap_BC = (logps_BC - inputs["sampling_per_token_logps"]) * inputs["completion_mask"]
        inputs["importance_sampling_ratio"] = importance_ratio(
            gap_BC,
            cast("Mode", self.vllm_importance_sampling_mode),
            self.vllm_importance_sampling_clip_min,
            self.vllm_importance_sampling_clip_max,
        )
        known_BC = inputs["completion_mask"].bool() & ~gap_BC.isnan()
        gap = self._gathered(gap_BC[known_BC].abs().mean()[None]).nanmean()
        self._metrics["train"][_SAMPLING_GAP].append(gap.item())

    def _pass_fast(self) -> None:
        """From here to the end of the step, or to the next rollouts, let passes be fast ones."""
        # A checkpoint of the older kind goes back through all that lies before it, in every layer.
        checkpointing = cast("dict | None", self.args.gradient_checkpointing_kwargs) or {}
        if not checkpointing.get("use_reentrant"):
            self._fast.begin()

    def _packed_logps(
        self, model, rows: Sequence[int], ids_BL: Tensor, mask_BL: Tensor, width: int
    ) -> tuple[Tensor, Tensor, None]:
        """Return log-probabilities and entropies of shape (B, width), each prompt read once."""
        prompts = list(dict.fromkeys(rows))
        lengths = mask_BL[:, -width:].sum(dim=1).tolist()
        completions = [
            ids[:length] for ids, length in zip(ids_BL[:, -width:].tolist(), lengths, strict=True)
        ]
        packed = pack(
            [self.table.prompts[row].input_ids for row in prompts],
            completions,
            [prompts.index(row) for row in rows],
            self.pad_id,
        ).to(ids_BL.device)
        self.oracle.hook.bind(self.table.injection(prompts))
        with self.accelerator.autocast():
            output = model(
                input_ids=packed.input_ids_NL,
                attention_mask=mask_argument(self.oracle.model, packed.visible),
                position_ids=packed.positions_NL,
                shift_labels=packed.labels_NL,
                fused_lm_head=True,
                use_cache=False,
            )
        log_probs_BC = packed.unpack(output.log_probs, width)
        return log_probs_BC, packed.unpack(output.entropy, width), None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        step, said = self.state.global_step + 1, ""
        for _ in range(ROUNDS):
            output = self._round(inputs)
            answers = gather_object(list(self.reward.last))
            ungraded = [answer for answer in answers if answer.reward is None]
            if len(ungraded) <= self.max_unscored * len(answers):
                self._answers += answers
                self._advantages_3 += self._moments(output)
                return output
            said = (
                f"the judge left {len(ungraded)} of {len(answers)} completions ungraded, above "
                f"--max_unscored {self.max_unscored:g} (the most frequent reason: "
                f"{main_reason(answer.reason for answer in ungraded)})"
            )
            if self.monitor is not None:
                self.monitor.say(step, "unscored", f"{said}. Their questions are asked anew.")
        self._save_now()
        raise JudgeError(
            f"{said}, {ROUNDS} times in a row, so the run stopped after step {step - 1}. {ADVICE}"
        )

    def _save_checkpoint(self, model, trial):
        with write_faults(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write none: TRL's says nothing of a run, and ``report.card`` writes one at its end."""

    def _save_now(self) -> None:
        """Write a checkpoint of the steps so far, where there is none yet."""
        if self.state.global_step % self.args.save_steps:
            self._save_checkpoint(self.model, trial=None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _round(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Complete the prompts, and return TRL's output with rows and advantages of ours."""
        started, generating = time.perf_counter(), self._seconds["generate"]
        self._rows = [example["row"] for example in inputs]
        output = super()._generate_and_score_completions(inputs)
        output["rows"] = torch.tensor(self._rows, device=output["completion_ids"].device)
        output["tag_mask"] = self._tag_mask(output["completion_ids"])
        if self.credit == "split":
            output["advantages"] = self._split_credit(output, self.reward.last)
        generating = self._seconds["generate"] - generating
        self._seconds["judge"] += self.reward.seconds_waited
        self._seconds["score"] += time.perf_counter() - started - generating
        return output

    def _gathered(self, tensor: Tensor) -> Tensor:
        """Return the tensor of all processes, one after the other."""
        gathered = self.accelerator.gather(tensor)
        if not isinstance(gathered, Tensor):
            raise TypeError(f"accelerate gathered a {type(gathered).__name__}, not a tensor.")
        return gathered

    def _moments(self, output: Mapping[str, Tensor]) -> Tensor:
        """Return number, sum and sum of squares of the advantages of all processes' tokens."""
        advantages, mask_BC = output["advantages"], output["completion_mask"]
        per_token = advantages if advantages.dim() == 2 else advantages[:, None].expand_as(mask_BC)
        values = per_token[mask_BC.bool()].double()
        moments_3 = torch.stack(
            [values.new_tensor(len(values)), values.sum(), values.square().sum()]
        )
        return self._gathered(moments_3[None]).sum(dim=0).cpu()

    def _split_credit(self, output: Mapping[str, Tensor], answers: Sequence[Answer]) -> Tensor:
        """Return advantages of shape (B, C) for this process's completions."""
        ids_BC = output["completion_ids"]
        terms_B4 = torch.tensor([_terms(answer) for answer in answers], device=ids_BC.device)
        parsed_B = torch.tensor([answer.parsed for answer in answers], device=ids_BC.device)
        # A group may be spread over processes, its baseline may not: gather, then take our part.
        width = self._gathered(torch.tensor([ids_BC.shape[1]], device=ids_BC.device)).max()
        padding = int(width) - ids_BC.shape[1]
        confidence_N, informativeness_N, calibration_N, reward_N = self._gathered(terms_B4).T
        if self.tag_outcome == "group":
            outcome_N = means_of_the_others(informativeness_N, self.group_size)
            calibration_N = self._calibration(confidence_N, outcome_N)
        advantages_NC = split_advantages(
            self._gathered(torch.nn.functional.pad(output["tag_mask"], (0, padding))),
            informativeness_N,
            calibration_N,
            reward_N,
            parsed_N=self._gathered(parsed_B),
            group_size=self.group_size,
            scale=self.scale,
        )
        first = self.accelerator.process_index * len(ids_BC)
        return advantages_NC[first : first + len(ids_BC), : ids_BC.shape[1]].contiguous()

    def _calibration(self, confidence_N: Tensor, outcome_N: Tensor) -> Tensor:
        """Return the reward's calibration term of each pair, NaN where one is not known."""
        pairs = torch.stack([confidence_N, outcome_N], dim=1).tolist()
        term = self.reward.rule.calibration
        terms = [nan if isnan(c) or isnan(outcome) else term(c, outcome) for c, outcome in pairs]
        return outcome_N.new_tensor(terms)

    def _compute_loss(self, model, inputs):
        self._rows = inputs["rows"].tolist()
        self.use_vllm = "sampling_per_token_logps" in inputs
        missing = self.use_vllm and "importance_sampling_ratio" not in inputs
        self._uncorrected = inputs if missing else None
        self._trained = inputs
        loss = super()._compute_loss(model, inputs)
        self._trained = self._uncorrected = None
        return loss

    def training_step(self, model, inputs, num_items_in_batch=None):
        """Train on one micro-batch, timing it; generation and scoring happen inside."""
        started = time.perf_counter()
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._fast.end()
        if is_sharded(self.oracle.model) and self.accelerator.sync_gradients:
            for parameter in self.oracle.model.parameters():
                if parameter.requires_grad:
                    mean = self.accelerator.reduce(parameter.grad, reduction="mean")
                    parameter.grad = cast("Tensor", mean)
        taken = time.perf_counter() - started
        self._seconds["step"] += taken
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL does, then hand the step to the monitor."""
        super().log(logs, start_time)
        step = self.state.global_step
        check_finite([torch.tensor(logs.get("loss", 0.0))], "the loss", step)
        if not self._answers:
            return
        if self.monitor is not None:
            self.monitor.record(
                step,
                self._answers,
                truncated=self._truncated(),
                advantages_std=_spread(*self._advantages_3.tolist()),
                kl=logs.get("kl"),
                sampling_gap=logs.get(_SAMPLING_GAP),
                logs=logs,
                seconds=dict(self._seconds),
            )
        self._forget_rounds()

    def _truncated(self) -> float:
        """Return the share of the completions that the length limit cut off."""
        cut = [not set(answer.token_ids[-1:]) & set(self.ends) for answer in self._answers]
        return sum(cut) / len(cut)


def _spread(count: float, total: float, squares: float) -> float:
    """Return the standard deviation; of nothing (each completion is masked), it is 0."""
    if not count:
        return 0.0
    return max(squares / count - (total / count) ** 2, 0.0) ** 0.5


def _repeats(rows: Sequence[int]) -> int:
    """Return n if the rows are each repeated n times in a row, else 1."""
    runs = [len(list(run)) for _, run in groupby(rows)]
    return runs[0] if len(set(runs)) == 1 else 1


def _joined(values: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [value for value in values if value is not None]
    if not tensors:
        return None
    return torch.cat(tensors) if tensors[0].dim() else torch.stack(tensors).mean()


def _terms(answer: Answer) -> tuple[float, ...]:
    terms = (answer.confidence, answer.informativeness, answer.calibration, answer.reward)
    return tuple(float("nan") if term is None else term for term in terms)
