"""A base model from a GGUF file: dequantised once, to a folder that transformers reads."""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_ao.errors import UserError
from grpo_ao.files import as_umask_says, read_faults, remove_unfinished, unfinished_name
from grpo_ao.probe import stable_hash


def local_base(base: str | Path) -> str | Path:
    """Return ``base`` as it is, or, of a ``.gguf`` file, the bfloat16 folder that is made of it.

    The folder lies in Hugging Face's cache and is made again when the file changes. Raises
    UserError for a file that is not there or that transformers cannot read.
    """
    path = Path(base)
    if path.suffix != ".gguf":
        return base
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    if find_spec("gguf") is None:
        raise UserError(f"reading {path} needs the package gguf: pip install gguf.")
    facts = path.stat()
    key = stable_hash(str(path.resolve()), str(facts.st_size), str(facts.st_mtime_ns))
    folder = Path(HF_HOME) / "grpo_ao" / f"{path.stem}-{key}"
    if not (folder / "config.json").is_file():
        remove_unfinished(folder)
        unfinished = unfinished_name(folder)
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            _dequantise(path, unfinished)
            unfinished.replace(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _dequantise(path: Path, folder: Path) -> None:
    where = {"gguf_file": path.name}
    with read_faults(path):
        tokenizer = AutoTokenizer.from_pretrained(
            str(path.parent), trust_remote_code=False, **where
        )
        packed = AutoModelForCausalLM.from_pretrained(
            str(path.parent), dtype=torch.bfloat16, trust_remote_code=False, **where
        )
    # Newer versions of transformers keep the packing and refuse to save it.
    values = packed.config.to_dict()
    values.pop("quantization_config", None)
    model: Any = type(packed)(type(packed.config).from_dict(values))
    model.to(torch.bfloat16)
    weights = {name: w.to(torch.bfloat16) for name, w in packed.state_dict().items()}
    model.load_state_dict(weights)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for saved in folder.iterdir():
        as_umask_says(saved)
