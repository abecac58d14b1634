"""The subject: the base model, or the base model with a LoRA adapter of its own.

Auditors ask about fine-tuned models. The subject's adapter lies beside the oracle's on one base: it
alone is on while the subject is read, the oracle's alone while the oracle answers.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from grpo_ao.errors import UserError
from grpo_ao.oracle.hub import adapter_name, resolve_files
from grpo_ao.oracle.layers import hidden_width
from grpo_ao.oracle.loading import (
    ADAPTER_FILES,
    adapter_config,
    check_adapter,
    load_config,
    meta_model,
)
from grpo_ao.oracle.merging import reason_not_plain

SUBJECT = "subject"
_NAMES: "WeakKeyDictionary[PeftModel, str]" = WeakKeyDictionary()


def subject_of(model: PreTrainedModel | PeftModel) -> str:
    """Return the name of the adapter with which the subject is read; "" for the base model."""
    return _NAMES.get(model, "") if isinstance(model, PeftModel) else ""


def check_subject(base: str | Path, adapter: str | Path) -> None:
    """Raise UserError, in one sentence, unless the subject's adapter fits the oracle's base."""
    folder = resolve_files(adapter, ADAPTER_FILES)
    settings = adapter_config(folder)
    if reason := reason_not_plain(settings):
        raise UserError(f"the subject {adapter} cannot be read: {reason}.")
    config = load_config(base)
    try:
        weights = check_adapter(base, meta_model(config), folder)
    except UserError as error:
        of = settings.base_model_name_or_path or "another model"
        raise UserError(
            f"the subject {adapter}, an adapter of {of}, cannot be read on the oracle's base model "
            f"{base}, of width {hidden_width(config)}: {error}"
        ) from error
    _check_trained(adapter, weights.items())


@contextmanager
def with_subject(model: PeftModel, adapter: str | Path | None, name: str = "") -> Iterator[None]:
    """Attach the subject's adapter for the block; without one the subject is the base model.

    ``name`` is what probes call it, by default its ``adapter_name``. Raises UserError for an
    adapter that changes nothing.
    """
    if adapter is None:
        yield
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    folder = resolve_files(adapter, ADAPTER_FILES)
    _NAMES[model] = name or adapter_name(str(adapter))
    try:
        model.load_adapter(str(folder), SUBJECT)
        _only_trained(model, trained)
        _check_trained(adapter, _weights(model))
        yield
    finally:
        del _NAMES[model]
        if SUBJECT in model.peft_config:
            model.delete_adapter(SUBJECT)
        _unwrap_bare(model)
        _only_trained(model, trained)


def subject_digest(model: PreTrainedModel | PeftModel) -> list[str]:
    """Return a hash of the attached adapter's weights and scales; nothing for the base model."""
    if not subject_of(model):
        return []
    digest = hashlib.sha256()
    for key, weight in _weights(model):
        digest.update(key.encode())
        digest.update(weight.float().cpu().numpy().tobytes())
    for key, layer in model.named_modules():
        if isinstance(layer, LoraLayer) and SUBJECT in layer.scaling:
            digest.update(f"{key} {layer.scaling[SUBJECT]}".encode())
    return [digest.hexdigest()]


def _check_trained(adapter: str | Path, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    if not any(b.any() for key, b in weights if "lora_B" in key):
        raise UserError(f"the subject {adapter} is untrained: it is the base model.")


def _weights(model: PreTrainedModel | PeftModel) -> list[tuple[str, torch.Tensor]]:
    return [(n, p.detach()) for n, p in model.named_parameters() if f".{SUBJECT}." in n]


def _only_trained(model: PeftModel, trained: Sequence[torch.nn.Parameter]) -> None:
    # PEFT turns gradients on and off by which adapter is active.
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)


def _unwrap_bare(model: PeftModel) -> None:
    """Take PEFT's layers off the modules that the subject's adapter alone was on."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer) and not (child.lora_A or child.lora_embedding_A):
                setattr(parent, name, child.get_base_layer())
