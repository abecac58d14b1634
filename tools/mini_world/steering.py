"""Activations for the mini oracle's training, and their injection over static buffers."""

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from grpo_ao.oracle.layers import decoder_layers
from tools.mini_world.corpus import LONGEST_RUN, OracleExamples


@torch.no_grad()
def read_activations(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    layers: list[int],
) -> Float[Tensor, "texts layers positions width"]:
    """Read the last 20 positions of every text, in bfloat16, in one right-padded pass a batch."""
    device = next(model.parameters()).device
    out = torch.empty(
        len(texts), len(layers), LONGEST_RUN, model.config.hidden_size, dtype=torch.bfloat16
    )
    out = out.to(device)
    turns = [f"<|im_start|>user\n{text}<|im_end|>\n" for text in texts]
    for start in range(0, len(texts), 1024):
        batch = tokenizer(turns[start : start + 1024], padding=True, return_tensors="pt")
        ids_BL, mask_BL = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            hidden = model.model(ids_BL, output_hidden_states=True, use_cache=False).hidden_states
        last_B = mask_BL.sum(1)[:, None] - LONGEST_RUN + torch.arange(LONGEST_RUN, device=device)
        rows_B = torch.arange(len(ids_BL), device=device)[:, None]
        for slot, layer in enumerate(layers):
            # hidden_states[0] is the embedding, so a layer's output stands one further on.
            out[start : start + len(ids_BL), slot] = hidden[layer + 1][rows_B, last_B].bfloat16()
    return out


class SteeredBatches:
    """Batches of oracle examples, each with its activations laid out over the prompt."""

    def __init__(
        self, examples: OracleExamples, activations: Tensor, batch_size: int, seed: int
    ) -> None:
        device = activations.device

        def on_device(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).to(device)

        self._activations = activations
        self._batch_size = batch_size
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self.ids_BL = on_device(examples.ids_BL.astype(np.int32))
        self.weight_BL = on_device(examples.weight_BL)
        self.text_B = on_device(examples.text_B)
        self.layer_B = on_device(examples.layer_B)
        self.run_B = on_device(examples.run_B)
        self.start_B = on_device(examples.start_B)

    def __call__(self, step: int) -> dict[str, Tensor]:
        """Draw one random batch."""
        device = self._activations.device
        size = (self._batch_size,)
        return self.take(
            torch.randint(len(self.ids_BL), size, generator=self._generator, device=device)
        )

    def take(self, index: Tensor) -> dict[str, Tensor]:
        """Return the examples of ``index``: ids, loss weights and the steering of each position.

        The steering has unit rows at the placeholders, the last ``run`` of the stored positions,
        and zeros elsewhere.
        """
        vectors_BKD = self._activations[self.text_B[index], self.layer_B[index]].float()
        vectors_BKD = vectors_BKD / vectors_BKD.norm(dim=-1, keepdim=True)
        ids_BL = self.ids_BL[index].long()
        slot_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        slot_BL = (
            slot_L[None] - self.start_B[index][:, None] + LONGEST_RUN - self.run_B[index][:, None]
        )
        within_BL = (slot_L[None] >= self.start_B[index][:, None]) & (slot_BL < LONGEST_RUN)
        rows_B1 = torch.arange(len(index), device=ids_BL.device)[:, None]
        steer_BLD = vectors_BKD[rows_B1, slot_BL.clamp(0, LONGEST_RUN - 1)] * within_BL[..., None]
        return {"ids": ids_BL, "weight": self.weight_BL[index].float(), "steer": steer_BLD}


def steered_logits(oracle: PeftModel, holder: dict[str, Tensor], batch) -> Tensor:
    """Run the oracle on a batch whose steering the hook reads from ``holder``."""
    holder["steer"] = batch["steer"]
    return oracle(input_ids=batch["ids"], use_cache=False).logits


def attach_steering(oracle: PeftModel, layer: int) -> dict[str, Tensor]:
    """Add ``||h|| * steer`` at a layer's output: injection over a static dense buffer.

    The same sum as ``grpo_ao.oracle.injection.inject``, without its checks, which would make the
    GPU wait and cannot be captured in a graph.
    """
    holder: dict[str, Tensor] = {}

    def hook(_module, _inputs, output):
        resid_BLD = output[0] if isinstance(output, tuple) else output
        norm_BL1 = resid_BLD.float().norm(dim=-1, keepdim=True)
        steered = (resid_BLD + norm_BL1 * holder["steer"]).to(resid_BLD.dtype)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    decoder_layers(oracle)[layer].register_forward_hook(hook)
    return holder
