"""The local judge: the policy's own base weights, adapter off."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_ao.judges.protocol import Grade, GradeRequest, JudgeError, Keep, discard
from grpo_ao.judges.rubric import GRADES, TRIAL, judge_prompt, rubric_version
from grpo_ao.judges.sanitise import sanitise
from grpo_ao.oracle.activations import adapter_off, evaluating
from grpo_ao.oracle.batches import batched, mask_of, padded
from grpo_ao.oracle.context import context_length
from grpo_ao.oracle.layers import input_device, unwrap
from grpo_ao.oracle.loading import (
    check_fits_device,
    choose_device,
    default_dtype,
    load_base,
    load_config,
    load_tokenizer,
    meta_model,
)
from grpo_ao.oracle.store import model_fingerprint
from grpo_ao.oracle.turn import control_tokens, render_user_turn
from grpo_ao.probe import QuestionKind

LETTER_REPLY = "Reply with the letter of the grade alone."
_BATCH_TOKENS = 16_384


class LocalJudge:
    """Grades by the base model's own probabilities: no second model, no key, no generation.

    The model reads rubric, text, question and answer; the probabilities of the grades' letters at
    the next position give the expected score, which for an open question may lie between two
    levels; a closed one is 1 or 0, whichever is likelier. Adapters are off and no activations are
    injected while it reads; gradients, training mode and what the injection hook serves are
    afterwards as they were.

    A grade costs one forward pass over its prompt, and no generated token. In Qwen3's tokenizer
    that is 245 tokens of rubric for a closed question, 318 for an open one, plus those of the text
    (of which at most 12,000 characters are read), the question and the answer. The pass runs in the
    thread that calls ``grade``: nothing else may use the model meanwhile.
    """

    def __init__(
        self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, name: str
    ) -> None:
        """Check the tokenizer; ``name`` identifies the base weights (``model_fingerprint``).

        Raises JudgeError where a grade is not one token of its own behind the prompt, or where an
        answer could bring one of the tokenizer's special tokens into the prompt.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._name = name
        _check_special_tokens(tokenizer)
        self._letters: dict[QuestionKind, list[int]] = {
            kind: letter_ids(tokenizer, self._prompt(replace(TRIAL, kind=kind)), list(GRADES[kind]))
            for kind in GRADES
        }
        self._longest = context_length(unwrap(model).config)

    @classmethod
    def from_pretrained(cls, base: str | Path) -> "LocalJudge":
        """Load a base model as a judge alone, from a local folder or the Hub.

        On a GPU where there is one. Raises UserError as ``Oracle.from_pretrained`` does.
        """
        device = choose_device(None)
        check_fits_device(base, meta_model(load_config(base)), device)
        model = load_base(base, default_dtype(device), device, None)
        return cls(model.eval(), load_tokenizer(base), model_fingerprint(base))

    @property
    def identity(self) -> str:
        """Base weights, their dtype and the rubric's version, as JSON."""
        dtype = str(unwrap(self._model).dtype)
        facts = {"judge": "local", "rubric": rubric_version(), "model": self._name, "dtype": dtype}
        return json.dumps(facts)

    async def check(self) -> None:
        """Grade one answer for trial; JudgeError where the model cannot read even that."""
        (grade,) = await self.grade([TRIAL])
        if grade.score is None:
            raise JudgeError(f"the model {self._name} cannot be a judge: {grade.reason}.")

    async def grade(self, requests: Sequence[GradeRequest], keep: Keep = discard) -> list[Grade]:
        """Grade in batches of prompts of like length."""
        rows = [self._encode(self._prompt(request)) for request in requests]
        grades = {i: self._refuse(row) for i, row in enumerate(rows) if len(row) > self._longest}
        readable = [i for i in range(len(rows)) if i not in grades]
        with adapter_off(self._model), evaluating(self._model):
            longest_first = sorted(readable, key=lambda i: -len(rows[i]))
            for batch in batched(
                longest_first, lambda batch: len(batch) * len(rows[batch[0]]) <= _BATCH_TOKENS
            ):
                logits_BV = next_token_logits(self._model, [rows[i] for i in batch])
                for i, logits_V in zip(batch, logits_BV, strict=True):
                    grades[i] = self._read(logits_V, requests[i].kind, len(rows[i]))
                    keep(i, grades[i])
        return [grades[i] for i in range(len(rows))]

    def _prompt(self, request: GradeRequest) -> str:
        content = judge_prompt(request, LETTER_REPLY)
        return render_user_turn(self._tokenizer, content, answer_next=True)

    def _encode(self, prompt: str) -> list[int]:
        return self._tokenizer.encode(prompt, add_special_tokens=False)

    def _refuse(self, row: Sequence[int]) -> Grade:
        return Grade(None, f"{len(row)} tokens to read, but the model takes {self._longest}")

    def _read(self, logits_V: Float[Tensor, "V"], kind: QuestionKind, length: int) -> Grade:
        letters, scores = list(GRADES[kind]), list(GRADES[kind].values())
        probability_V = logits_V.float().softmax(-1)
        found = probability_V[self._letters[kind]].double().cpu()
        mass = float(found.sum())
        if not (math.isfinite(mass) and mass > 0):
            return Grade(None, "the model gives the grades no probability", None, length)
        shares = (found / mass).tolist()
        score = sum(share * value for share, value in zip(shares, scores, strict=True))
        if kind == "closed":  # right or wrong: a share would pay an honest oracle for less
            score = float(score > 0.5)
        shown = " ".join(f"{a} {share:.3f}" for a, share in zip(letters, shares, strict=True))
        # Rounding may put the sum of the shares a hair above 1.
        return Grade(min(score, 1.0), None, f"{shown} (of {mass:.3f})", length)


def letter_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, letters: Sequence[str]
) -> list[int]:
    """Return the token of each letter behind ``prompt``; JudgeError unless it is one of its own."""
    before = tokenizer.encode(prompt, add_special_tokens=False)
    rows = [tokenizer.encode(prompt + letter, add_special_tokens=False) for letter in letters]
    ids = [row[-1] for row in rows]
    if any(row[:-1] != before for row in rows) or len(set(ids)) < len(ids):
        raise JudgeError(
            f"this model cannot be a judge: behind its chat template's opening of an answer, the "
            f"letters {', '.join(letters)} are not one token each in its tokenizer."
        )
    return ids


def next_token_logits(
    model: PreTrainedModel | PeftModel, rows: Sequence[Sequence[int]]
) -> Float[Tensor, "batch V"]:
    """Return the logits behind each row of token ids, in one pass over rows padded on the left."""
    # Any id pads: the mask hides it, and positions count from each row's first own token.
    input_ids_BL, mask_BL = padded(rows, 0, left=True), mask_of(rows, left=True)
    positions_BL = (mask_BL.cumsum(-1) - 1).clamp(min=0)
    base: Any = unwrap(model)
    device = input_device(model)
    logits_BLV = base(
        input_ids=input_ids_BL.to(device),
        attention_mask=mask_BL.to(device),
        position_ids=positions_BL.to(device),
        use_cache=False,
        logits_to_keep=1,
    ).logits
    return logits_BLV[:, -1]


def _check_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    special = control_tokens(tokenizer)
    for token in special.values():
        ids = tokenizer.encode(sanitise("answer", f"a {token} b"), add_special_tokens=False)
        if special.keys() & set(ids):
            raise JudgeError(
                f"this model cannot be a judge: an answer with {token!r} in it would put a special "
                "token into the prompt."
            )
