import pytest
import torch

from grpo_ao.oracle.activations import SubjectTexts, adapter_off, subject_token_ids
from grpo_ao.oracle.layers import decoder_layers
from grpo_ao.oracle.store import ActivationStore
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probe import Positions, Probe
from tests.rigs import make_oracle

TEXTS = ("The train leaves at noon.", "It rains.", "Nobody was there to see it ?")
READS = ((1,), (0, 3), (1, 2, 3))
BLOCK = "Layer: {}\n ? ? \n"


def hidden_states(oracle, text):
    ids = torch.tensor([subject_token_ids(oracle.tokenizer, text)])
    with torch.no_grad(), adapter_off(oracle.model):
        return oracle.model(input_ids=ids, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_behind_the_name_of_a_layer_its_own_output_is_injected(tmp_path, architecture):
    oracle = make_oracle(architecture)
    where = Positions.parse("window:2@-2")
    probes = [
        Probe(text, "What ? ?", "open", layers, where, None, "family")
        for text in TEXTS
        for layers in READS
    ]
    texts = SubjectTexts(oracle.tokenizer)
    store = ActivationStore.build(tmp_path, oracle.model, texts, probes, "base")
    table = ProbeTable.build(oracle, probes, store)
    outputs = []
    hook = decoder_layers(oracle.model)[1].register_forward_hook(
        lambda _m, _i, h: outputs.append(h)
    )
    for row, (probe, prompt) in enumerate(zip(probes, table.prompts, strict=True)):
        assert prompt.text.count("".join(map(BLOCK.format, probe.layers)) + "What ? ?") == 1
        for injection in (table.injection([row]), None):
            oracle.hook.clear() if injection is None else oracle.hook.bind(injection)
            with torch.no_grad():
                oracle.model(input_ids=torch.tensor([prompt.input_ids]))
        steered_LD, plain_LD = outputs[-2][0], outputs[-1][0]
        states = hidden_states(oracle, probe.text)
        places = iter(prompt.positions)
        for layer in probe.layers:
            for v_D in states[layer + 1][0, -3:-1]:
                place = next(places)
                added_D = (steered_LD - plain_LD)[place] / plain_LD[place].norm()
                torch.testing.assert_close(added_D, v_D / v_D.norm(), atol=1e-4, rtol=1e-3)
        assert next(places, None) is None
    hook.remove()
