"""One step of supervised training: read the subject, inject, and learn the answers' tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from grpo_ao.errors import UserError
from grpo_ao.oracle.activations import evaluating, layer_outputs, subject_on
from grpo_ao.oracle.injection import Injection
from grpo_ao.oracle.layers import decoder_layers, decoder_of, input_device, unwrap
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.training.example_batches import Batch, Curriculum, Drawn
from grpo_ao.training.passes import autocast


def new_adapter(base: PreTrainedModel, rank: int) -> PeftModel:
    """Put a fresh LoRA adapter, in float32, on all linear layers of a base model.

    Without dropout, which the public adapters have (0.05): at a million different examples it
    costs time and regularises nothing.
    """
    lora = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, lora)
    if not isinstance(model, PeftModel):
        raise TypeError(f"PEFT gave {type(model).__name__}.")
    return model


def answer_logits(oracle: Oracle, batch: Batch) -> Float[Tensor, "predicted vocab"]:
    """Return the logits from which each token of the answers is predicted.

    The subject, the oracle's adapter off, is read as far as the deepest layer; the head is applied
    to the answers' positions alone. The injection stays bound for the backward pass.
    """
    layers = {layer for layers in oracle.spec.act_layer_combinations for layer in layers}
    with torch.no_grad(), subject_on(oracle.model):
        resid = layer_outputs(oracle.model, batch.subject_BS, layers)
    resid_NBSD = torch.stack([resid[layer] for layer in sorted(layers)])
    device = batch.layer_BK.device
    place_BK = torch.searchsorted(torch.tensor(sorted(layers), device=device), batch.layer_BK)
    rows_B1 = torch.arange(len(place_BK), device=device)[:, None]
    vectors_BKD = resid_NBSD[place_BK, rows_B1, batch.read_BK.clamp(min=0)]
    oracle.hook.bind(Injection(batch.placeholders_BK, vectors_BKD))
    return _logits(oracle.model, batch.prompts_BL, batch.predict_N)


def _logits(
    model: PeftModel, ids_BL: Int64[Tensor, "batch seq"], columns_N: Int64[Tensor, " read"]
) -> Float[Tensor, "read vocab"]:
    """Return the logits behind the tokens at ``columns_N`` of the flattened rows."""
    decoder = decoder_of(model)
    hidden_BLD = decoder(input_ids=ids_BL, use_cache=False).last_hidden_state
    head: Any = unwrap(model).get_output_embeddings()
    logits_NV = head(hidden_BLD.flatten(0, 1)[columns_N])
    cap = getattr(decoder.config, "final_logit_softcapping", None)  # Gemma 2 and 3 have one
    return logits_NV if cap is None else cap * torch.tanh(logits_NV / cap)


def check_head(model: PeftModel) -> None:
    """Raise UserError unless the logits that are trained are those with which the model answers.

    Some families scale them behind the output layer (Granite, Cohere).
    """
    ids_BL = torch.arange(4, device=input_device(model))[None]
    with evaluating(model):
        own_LV, ours_LV = model(input_ids=ids_BL).logits[0], _logits(model, ids_BL, ids_BL[0])
    if (own_LV - ours_LV).abs().max() > 0.1 * own_LV.abs().max():
        raise UserError(
            f"{type(unwrap(model)).__name__} changes its logits behind the output layer, where "
            "make-oracle does not: oracles of this family cannot be made."
        )


def divided(curriculum: Curriculum, drawn: Drawn, most_tokens: int) -> Iterator[Batch]:
    """Lay out examples in as few passes as the bound on padded prompt tokens allows."""
    whole = curriculum.lay_out(drawn)
    rows, length = whole.prompts_BL.shape
    count = -(-rows * length // most_tokens)
    if count == 1:
        yield whole
        return
    for part in np.array_split(np.arange(rows), min(count, rows)):
        yield curriculum.lay_out(drawn.take(part))


def learn(oracle: Oracle, batches: Sequence[Batch], targets: int) -> Float[Tensor, ""]:
    """Add the gradient of the answers' cross-entropy (nats, over ``targets`` tokens); return it."""
    device = input_device(oracle.model)
    total = torch.zeros((), device=device)
    for batch in batches:
        moved = batch.to(device)
        with autocast(device):
            logits_NV = answer_logits(oracle, moved)
            loss = nn.functional.cross_entropy(logits_NV.float(), moved.targets_N, reduction="sum")
        (loss / targets).backward()
        total += loss.detach() / targets
    return total


def accuracy(oracle: Oracle, batches: Sequence[Batch]) -> list[bool]:
    """Tell of each example whether every token of its answer is the most likely one."""
    right: list[bool] = []
    device = input_device(oracle.model)
    for batch in batches:
        moved = batch.to(device)
        with torch.no_grad(), autocast(device):
            logits_NV = answer_logits(oracle, moved)
        wrong_N = (logits_NV.argmax(-1) != moved.targets_N).cpu()
        wrong_B = torch.zeros(len(batch.subject_BS), dtype=torch.int64)
        wrong_B.index_add_(0, batch.row_N, wrong_N.long())
        right += (wrong_B == 0).tolist()
    oracle.hook.clear()
    return right


def compile_layers(model: PeftModel) -> None:
    """Compile the forward pass of each decoder layer, for rows of any length."""
    for layer in decoder_layers(model):
        layer.forward = torch.compile(layer.forward, dynamic=True)
