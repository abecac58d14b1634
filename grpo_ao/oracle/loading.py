"""Load a base model with an oracle adapter on it, with every check that can come first."""

import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.save_and_load import load_peft_weights
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging
from transformers.utils.import_utils import is_bitsandbytes_available

from grpo_ao.bounded import matches_end
from grpo_ao.errors import UserError, first_line
from grpo_ao.files import read_faults
from grpo_ao.oracle.hub import check_shipped, resolve_files
from grpo_ao.oracle.layers import check_layer, layer_index, num_decoder_layers
from grpo_ao.oracle.merging import ADAPTER
from grpo_ao.oracle.prompt import build_oracle_prompt
from grpo_ao.oracle.sharding import shard_base
from grpo_ao.oracle.spec import SPEC_FILE, OracleSpec, load_spec
from grpo_ao.oracle.turn import check_template

ADAPTER_FILES = ["adapter_config.json", "adapter_model.*", "ao_config.json"]
_TOKENIZER_FILES = ["*.json", "*.jinja", "*.model", "*.txt"]
MAX_CPU_PARAMETERS = 3e9
# More layers no model has, and a skeleton of millions takes all memory.
_MOST_LAYERS = 1_000
# What an adapter may be begun with and leave the base's weights, which are the subject's, alone.
_OWN_BEGINNINGS = (True, False, "gaussian", "orthogonal", "eva")


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device asked for, by default the first GPU, or the CPU where there is none."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"the device {device} was asked for, but torch sees no GPU here.")
    return device


def default_dtype(device: torch.device) -> torch.dtype:
    """Return float32 for the CPU, bfloat16 for anything else."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def load_config(base: str | Path) -> PreTrainedConfig:
    """Read a model's config; UserError, in one sentence, for what is not a model."""
    folder = resolve_files(base, ["config.json"])
    if not (folder / "config.json").is_file():
        raise UserError(f"{base} holds no config.json: it is not a transformers model.")
    with read_faults(f"the config.json of {base}"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if num_decoder_layers(config) > _MOST_LAYERS:
            raise UserError(f"the config.json of {base} names more than {_MOST_LAYERS:,} layers.")
    return config


def load_tokenizer(base: str | Path) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer, from a local folder or the Hub.

    Raises UserError, in one sentence, where there is none, or none that makes a turn of a text.
    """
    folder = resolve_files(base, _TOKENIZER_FILES)
    with read_faults(f"the tokenizer of {base}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    check_template(tokenizer, base)
    return tokenizer


def meta_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the model without weights: its modules and shapes only.

    Raises UserError for a model that is no language model, or only as a part of another one, and
    for a configuration of which none can be made.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"transformers knows no causal language model of type '{config.model_type}': take a "
            "checkpoint of the text model alone."
        )
    with read_faults(f"the config.json of {config.name_or_path}"), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def check_fits_device(base: str | Path, skeleton: PreTrainedModel, device: torch.device) -> None:
    """Refuse a model too large for a CPU (more than 3 billion parameters)."""
    count = sum(parameter.numel() for parameter in skeleton.parameters())
    if device.type == "cpu" and count > MAX_CPU_PARAMETERS:
        raise UserError(
            f"{base} has {count / 1e9:.1f} billion parameters and needs a GPU, but the device is "
            "the CPU: run it on a machine with a GPU, or choose a smaller model."
        )


def check_4bit(device: torch.device) -> None:
    """Refuse 4 bits without CUDA or without bitsandbytes (UserError)."""
    if device.type != "cuda":
        raise UserError(
            f"a base model in 4 bits needs an NVIDIA GPU, but the device is {device}: leave out "
            "load_in_4bit."
        )
    if not is_bitsandbytes_available():
        raise UserError(
            "a base model in 4 bits needs bitsandbytes: pip install '.[4bit]' in the clone."
        )


def check_adapter(base: str | Path, skeleton: PreTrainedModel, adapter: Path) -> dict[str, Tensor]:
    """Return the weights of the adapter in ``adapter``; UserError unless it fits the base model.

    The weights of the base are not read (``skeleton`` has none, and is changed by this check).
    """
    config = adapter_config(adapter)
    weights = _adapter_weights(adapter)
    _check_patterns(adapter, config, skeleton)
    misfit = f"the adapter {adapter} does not fit the base model {base}"
    try:
        model = PeftModel(skeleton, config, low_cpu_mem_usage=True)
        result = set_peft_model_state_dict(model, weights, low_cpu_mem_usage=True)
    except RuntimeError as error:
        raise UserError(
            f"{misfit}: its weights have other shapes than its config (rank {config.r}) and the "
            f"model give ({_first_mismatch(error)})."
        ) from error
    except Exception as error:  # a value of another type, a pattern that is none, ...
        raise UserError(f"{misfit} ({type(error).__name__}: {first_line(error)}).") from error
    if not all(map(_is_finite, _scales(model))):
        raise UserError(f"the adapter {adapter} has scales (lora_alpha) that are not finite.")
    # The skeleton lacks the weights of the base as well.
    if missing := [name for name in result.missing_keys if "lora_" in name]:
        raise UserError(f"{misfit}: it lacks {len(missing)} weights, first {missing[0]}.")
    if unexpected := result.unexpected_keys:
        raise UserError(
            f"{misfit}: {len(unexpected)} of its weights have no place in the model, first "
            f"{unexpected[0]}."
        )
    if skeleton.config.tie_word_embeddings and isinstance(
        skeleton.get_output_embeddings(), BaseTunerLayer
    ):
        raise UserError(
            f"the adapter {adapter} is on the output layer of {base}, whose weights are those of "
            "its input embeddings: take an adapter on other layers."
        )
    return weights


def _check_patterns(adapter: Path, config: LoraConfig, skeleton: PreTrainedModel) -> None:
    """Refuse a regular expression over the names of modules that takes for ever on one of them."""
    fields = (config.target_modules, config.exclude_modules, config.layers_pattern)
    fields += (config.rank_pattern, config.alpha_pattern, config.modules_to_save)
    patterns: list[str] = []
    for field in fields:
        given = [field] if isinstance(field, str) else field if isinstance(field, Iterable) else []
        patterns += [p for p in given if isinstance(p, str) and any(sign in p for sign in "*+?{")]
    if patterns and not matches_end(patterns, [name for name, _ in skeleton.named_modules()]):
        raise UserError(
            f"the adapter_config.json of {adapter} has a pattern over names of modules that takes "
            f"for ever to match ({' or '.join(patterns):.100}): write a simpler one."
        )


def _scales(model: PeftModel) -> Iterator[float]:
    for module in model.modules():
        if isinstance(module, LoraLayer):
            yield from module.scaling.values()


def _is_finite(number: float) -> bool:
    return abs(number) <= torch.finfo(torch.float32).max


def _adapter_weights(adapter: Path) -> dict[str, Tensor]:
    if not any(adapter.glob("adapter_model.*")):
        raise UserError(f"{adapter} holds no adapter_model.safetensors: its weights are missing.")
    with read_faults(f"the adapter {adapter}"):
        weights = load_peft_weights(str(adapter), device="cpu")
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise UserError(f"the adapter {adapter} has weights that are not finite: {name}.")
    return weights


def adapter_config(adapter: Path) -> LoraConfig:
    """Read the configuration of the LoRA adapter in a folder."""
    if not (adapter / "adapter_config.json").is_file():
        raise UserError(f"{adapter} holds no adapter_config.json: it is no adapter.")
    with read_faults(f"the adapter_config.json of {adapter}"):
        config = PeftConfig.from_pretrained(str(adapter))
    if not isinstance(config, LoraConfig):
        raise UserError(f"the adapter {adapter} is a {config.peft_type}, not a LoRA adapter.")
    if config.init_lora_weights not in _OWN_BEGINNINGS:
        raise UserError(
            f"the adapter {adapter} began with {config.init_lora_weights!r}, which changes the "
            "weights of the base, and so the subject: convert it into a plain LoRA adapter."
        )
    config.inference_mode = True
    return config


def _first_mismatch(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
    return (lines or [first_line(error)])[0].rstrip(".")


def _check_layers(spec: OracleSpec, adapter: Path, num_layers: int) -> None:
    for layer in (spec.hook_onto_layer, *chain(*spec.act_layer_combinations)):
        try:
            check_layer(num_layers, layer)
        except UserError as error:
            raise UserError(f"{adapter / SPEC_FILE} is of another model: {error}") from error


@dataclass(frozen=True)
class OracleSources:
    """A base model and an adapter that make an oracle on a device, and what was read to know it.

    ``adapter_size`` is the number of the adapter's weights.
    """

    base: str | Path
    adapter: Path
    device: torch.device
    load_in_4bit: bool
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase
    spec: OracleSpec
    adapter_size: int


def check_sources(
    base: str | Path,
    adapter: str | Path,
    device: torch.device,
    load_in_4bit: bool = False,
) -> OracleSources:
    """Raise, in one sentence, unless base and adapter make an oracle on this device.

    All but the base's weights is read: its config and tokenizer, the adapter, its spec.
    """
    if load_in_4bit:
        check_4bit(device)
    folder = resolve_files(adapter, ADAPTER_FILES)
    check_shipped(Path(base))
    check_shipped(folder)
    config = load_config(base)
    skeleton = meta_model(config)
    check_fits_device(base, skeleton, device)
    # A tokenizer's template is tried in another process, while the adapter is checked in this one.
    with ThreadPoolExecutor(1) as beside:
        trial = beside.submit(load_tokenizer, base)
        weights = check_adapter(base, skeleton, folder)
        spec, num_layers = load_spec(folder), num_decoder_layers(config)
        _check_layers(spec, folder, num_layers)
    tokenizer = trial.result()
    build_oracle_prompt(tokenizer, (layer_index(num_layers, 50),), 1, "Which language?", spec)
    size = sum(weight.numel() for weight in weights.values())
    return OracleSources(base, folder, device, load_in_4bit, config, tokenizer, spec, size)


def load_peft_model(sources: OracleSources, dtype: torch.dtype, divided: bool) -> PeftModel:
    """Load base and adapter (as ``ADAPTER``, not trainable).

    The base is divided over the processes if ``divided`` (see ``sharding``): it is loaded into the
    CPU's memory first.
    """
    device = sources.device
    quantization = nf4(dtype) if sources.load_in_4bit else None
    first = torch.device("cpu") if divided else device
    with _without_notes():
        model = load_base(sources.base, dtype, first, quantization)
        if divided:
            shard_base(model, device)
        oracle = PeftModel.from_pretrained(model, str(sources.adapter)).eval()
    # What is saved from here on belongs to the base that it was trained on.
    oracle.peft_config[ADAPTER].base_model_name_or_path = str(sources.base)
    return oracle


@contextmanager
def _without_notes() -> Iterator[None]:
    """Show neither transformers' bar nor what it means to rename."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return QLoRA's quantization (arXiv 2305.14314): NF4, its constants quantized too."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def load_base(
    base: str | Path,
    dtype: torch.dtype,
    device: torch.device,
    quantization: BitsAndBytesConfig | None,
) -> PreTrainedModel:
    """Load a model onto one device; UserError, in one sentence, where that fails."""
    # From a folder: by its id, a model that is in the cache would be asked for at the Hub, file by
    # file, for minutes where there is no network.
    folder = resolve_files(base, ["*.json", "model*.safetensors"])
    if not any(folder.glob("*.safetensors")):
        folder = resolve_files(base, ["*.json", "pytorch_model*.bin"])
    with read_faults(f"the base model {base}"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            quantization_config=quantization,
            trust_remote_code=False,
            output_loading_info=True,
        )
    model, found = loaded
    if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
        raise UserError(
            f"the base model {base} lacks {len(missing)} weights, first {missing[0]}: fetch it "
            "anew."
        )
    return model
