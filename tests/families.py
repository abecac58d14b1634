"""Tiny random models of the families that are supported, each with a tokenizer and template.

The Gemmas differ where it matters to an oracle: the template writes the ``<bos>`` that the
tokenizer would add too, has no system role, and ends a turn with another token than ``<eos>``;
layers attend within a sliding window, here shorter than a prompt.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GptOssConfig,
    LlamaConfig,
    Ministral3Config,
    Olmo3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SiglipVisionConfig,
)

from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.spec import OracleSpec
from tests.tiny import add_adapter, loud, tiny_tokenizer

KINDS: dict[str, Callable[..., PreTrainedConfig]] = {
    "qwen3": Qwen3Config,
    "qwen2": Qwen2Config,
    "qwen3_moe": Qwen3MoeConfig,
    "qwen3_5": Qwen3_5TextConfig,
    "llama3": LlamaConfig,
    "ministral3": Ministral3Config,
    "olmo3": Olmo3Config,
    "gpt_oss": GptOssConfig,
    "gemma2": Gemma2Config,
    "gemma3_text": Gemma3TextConfig,
    "gemma3": Gemma3TextConfig,
    "gemma4": Gemma4TextConfig,
    "gemma4_shared": Gemma4TextConfig,
}
FAMILIES = tuple(KINDS)
LAYERS, WIDTH, WINDOW = 4, 32, 8
SLIDING = ["sliding_attention", "full_attention"] * (LAYERS // 2)
EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 16}
# What a family's small models need beside the shape that all share.
OWN: dict[str, dict[str, Any]] = {
    "qwen3_moe": EXPERTS,
    "qwen3_5": {
        "layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2),
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        }
    },
    "olmo3": {"sliding_window": WINDOW, "layer_types": SLIDING},
    "gpt_oss": {
        "sliding_window": WINDOW,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 150000.0},
    },
    "gemma4": {"global_head_dim": 16, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True},
    # As the E2B and E4B: embeddings for each layer, and keys and values that layers share.
    "gemma4_shared": {
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
        "layer_types": SLIDING,
    },
}

GEMMA_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
{% if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}
{{ message.content | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""


@cache
def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, ' ?' and Gemma's special tokens; adds ``<bos>`` unless it is told not to."""
    vocabulary = {token: i for i, token in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary["Ġ?"] = len(vocabulary)
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "?")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    bpe.add_special_tokens([AddedToken(token, special=True) for token in special])
    bpe.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bpe.token_to_id("<bos>"))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.chat_template = GEMMA_TEMPLATE
    return tokenizer


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    return gemma_tokenizer() if family.startswith("gemma") else tiny_tokenizer()


def config_of(family: str) -> PreTrainedConfig:
    tokenizer = tokenizer_of(family)
    own: dict[str, Any] = {"head_dim": 8} if family not in ("qwen2", "olmo3") else {}
    if family.startswith("gemma"):
        full_last = ["sliding_attention"] * (LAYERS - 1) + ["full_attention"]
        own |= {"sliding_window": WINDOW, "layer_types": full_last}
    if family.startswith(("gemma2", "gemma3")):
        own["query_pre_attn_scalar"] = 8
    if family.startswith("gemma4"):
        own["vocab_size_per_layer_input"] = len(tokenizer)
    config = KINDS[family](
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **(own | OWN.get(family, {})),
    )
    return _multimodal(config) if family == "gemma3" else config


def _multimodal(text: PreTrainedConfig) -> Gemma3Config:
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        vision_use_head=False,
    )
    return Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)


def model_of(family: str) -> PreTrainedModel:
    """A random model, with what transformers' Auto class makes of its config."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family), dtype=torch.float32)
    if family.startswith("gemma"):
        ends = tokenizer_of(family).convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
        model.generation_config.eos_token_id = ends
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter)
    return loud(model.eval(), 0)


def save_family(family: str, folder: Path) -> tuple[Path, Path]:
    """Save a base and an adapter (all-linear, not zero) of a family; return their folders."""
    base, adapter = folder / "base", folder / "adapter"
    model = model_of(family)
    model.save_pretrained(base)
    tokenizer_of(family).save_pretrained(base)
    Oracle(add_adapter(model), tokenizer_of(family), OracleSpec()).save_adapter(adapter)
    return base, adapter
