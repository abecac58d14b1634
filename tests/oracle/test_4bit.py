"""A base model in 4 bits: what is refused without CUDA, and what is asked of transformers."""

import importlib.util

import pytest
import torch

from grpo_ao.errors import UserError
from grpo_ao.oracle.loading import check_4bit, nf4
from grpo_ao.oracle.oracle import Oracle
from tests.families import save_family


def test_4_bits_without_a_gpu_are_refused_before_the_base_is_read(tmp_path):
    base, adapter = save_family("qwen3", tmp_path)
    (base / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="in 4 bits needs an NVIDIA GPU, but the device is cpu"):
        Oracle.from_pretrained(base, adapter, device="cpu", load_in_4bit=True)


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed"
)
def test_4_bits_without_bitsandbytes_say_what_to_install():
    with pytest.raises(UserError, match=r"pip install '\.\[4bit\]' in the clone"):
        check_4bit(torch.device("cuda"))


def test_the_quantization_is_that_of_qlora():
    quantization = nf4(torch.bfloat16).to_dict()
    assert quantization["load_in_4bit"]
    assert quantization["bnb_4bit_quant_type"] == "nf4"
    assert quantization["bnb_4bit_use_double_quant"]
    assert quantization["bnb_4bit_compute_dtype"] == "bfloat16"


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None,
    reason="needs CUDA and bitsandbytes",
)
def test_a_base_in_4_bits_answers(tmp_path):
    oracle = Oracle.from_pretrained(*save_family("qwen3", tmp_path), load_in_4bit=True)
    assert oracle.model.get_base_model().is_loaded_in_4bit
    (answer,) = oracle.ask(["The train leaves at noon."], ["Late?"], max_new_tokens=4)
    assert answer.completion
