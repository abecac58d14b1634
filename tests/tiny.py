"""Tiny random models of real architectures, and a small real fast tokenizer."""

from functools import cache

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
)

LAYERS = 4
WIDTH = 32
ARCHITECTURES = ("qwen3", "llama", "gemma2", "gemma3")

# What Qwen3's template gives for turns without tools.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false -%}
<think>

</think>

{% endif -%}
{%- endif -%}"""

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 260 tokens: the bytes, ' ?', three special tokens."""
    space_question = "Ġ?"
    vocabulary = {token: i for i, token in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary[space_question] = len(vocabulary)
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "?")]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=4096,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def token_id(token: str) -> int:
    found = tiny_tokenizer().convert_tokens_to_ids(token)
    assert isinstance(found, int)
    return found


def tiny_config(architecture: str) -> Qwen3Config | LlamaConfig | Gemma2Config | Gemma3TextConfig:
    kinds = {
        "qwen3": Qwen3Config,
        "llama": LlamaConfig,
        "gemma2": Gemma2Config,
        "gemma3": Gemma3TextConfig,
    }
    tokenizer = tiny_tokenizer()
    return kinds[architecture](
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def config_of_8b() -> Qwen3Config:
    """The shape of Qwen3-8B."""
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
        architectures=["Qwen3ForCausalLM"],
    )


def tiny_model(architecture: str = "qwen3", seed: int = 0) -> PreTrainedModel:
    """A random model, float32, in evaluation mode, whose outputs depend on its inputs."""
    kinds = {
        "qwen3": Qwen3ForCausalLM,
        "llama": LlamaForCausalLM,
        "gemma2": Gemma2ForCausalLM,
        "gemma3": Gemma3ForCausalLM,
    }
    torch.manual_seed(seed)
    model = kinds[architecture](tiny_config(architecture)).eval()
    return loud(model, seed)


def tiny_multimodal(seed: int = 0) -> PreTrainedModel:
    """Gemma 3 with a vision tower, as the 4B to 27B checkpoints are."""
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = tiny_config("gemma3")
    config = Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)
    torch.manual_seed(seed)
    return loud(Gemma3ForConditionalGeneration(config).eval(), seed)


def loud(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    # At the usual initial scale of .02 every layer is close to the identity.
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise * parameter.shape[1] ** -0.5
    return model


def tiny_peft(
    architecture: str = "qwen3", seed: int = 0, rank: int = 4, dropout: float = 0.0
) -> PeftModel:
    """A tiny model with a LoRA adapter whose weights are not zero."""
    return add_adapter(tiny_model(architecture, seed), seed, rank, dropout)


def add_adapter(
    model: PreTrainedModel, seed: int = 0, rank: int = 4, dropout: float = 0.0
) -> PeftModel:
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, config)
    assert isinstance(peft_model, PeftModel)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return peft_model.eval()
