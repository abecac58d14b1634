import copy
import logging
import os
import platform
import subprocess

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from grpo_ao.errors import UserError
from grpo_ao.oracle.activations import SubjectTexts, extract_activations
from grpo_ao.oracle.layers import decoder_layers
from grpo_ao.oracle.store import ActivationStore, model_fingerprint
from grpo_ao.probe import Positions, Probe
from tests.tiny import tiny_model, tiny_peft, tiny_tokenizer


def probe(text="The train leaves at noon.", question="Late?", layers=(2,), positions="last:4"):
    where = Positions.parse(positions)
    return Probe(text, question, "open", layers, where, reference=None, family="test")


PROBES = [
    probe(),
    probe(question="Early?"),
    probe(layers=(1,)),
    probe(layers=(1, 3)),
    probe(positions="all"),
    probe(text="Another text, somewhat longer than the first."),
]


@pytest.fixture
def subject():
    """A model, and the list of its forward passes."""
    model, calls = tiny_peft(), []
    decoder_layers(model)[0].register_forward_hook(lambda _m, _i, out: calls.append(len(out)))
    return model, calls


def build(folder, model, probes=PROBES, tokenizer=None, fingerprint="base@1"):
    texts = SubjectTexts(tokenizer or tiny_tokenizer())
    return ActivationStore.build(folder, model, texts, probes, fingerprint, batch_size=8)


def by_layer(model, p):
    """The activations of a probe, layer by layer in one tensor."""
    (found,) = extract_activations(model, tiny_tokenizer(), [p.text], p.layers, p.positions)
    return torch.cat([found[layer] for layer in p.layers])


def test_every_probe_gets_its_own_vectors(tmp_path, subject):
    model, calls = subject
    store = build(tmp_path, model)
    assert sum(calls) == 2  # two texts, each once
    assert len({p.id for p in PROBES}) == 6
    for p in PROBES:
        torch.testing.assert_close(store.vectors(p.id), by_layer(model, p), atol=1e-4, rtol=1e-4)


def test_equal_text_layer_and_positions_share_an_entry(tmp_path, subject):
    store = build(tmp_path, subject[0])
    assert torch.equal(store.vectors(PROBES[0].id), store.vectors(PROBES[1].id))
    with safe_open(store.path, framework="pt") as file:
        assert len(file.keys()) == 5


def test_an_unknown_probe_is_one_sentence(tmp_path, subject):
    store = build(tmp_path, subject[0])
    with pytest.raises(KeyError, match="holds no probe 'nobody'"):
        store.vectors("nobody")


def test_nothing_is_read_again_when_nothing_changed(tmp_path, subject):
    model, calls = subject
    first = build(tmp_path, model)
    calls.clear()
    again = build(tmp_path, model, probes=PROBES[::-1])
    assert not calls
    for p in PROBES:
        assert torch.equal(first.vectors(p.id), again.vectors(p.id))


def test_another_question_about_the_same_activations_needs_no_reading(tmp_path, subject):
    model, calls = subject
    build(tmp_path, model, [probe()])
    calls.clear()
    store = build(tmp_path, model, [probe(question="Something else?")])
    assert not calls
    assert store.vectors(probe(question="Something else?").id).shape[0] == 4


@pytest.mark.parametrize(
    "changed",
    [
        {"text": "The train leaves at ten."},
        {"layers": (3,)},
        {"layers": (2, 3)},
        {"positions": "last:5"},
        {"positions": "token@-3"},
    ],
)
def test_a_change_of_the_probes_is_read_anew(tmp_path, subject, changed):
    model, calls = subject
    build(tmp_path, model, [probe()])
    calls.clear()
    store = build(tmp_path, model, [probe(**changed)])
    assert calls
    found_KD = store.vectors(probe(**changed).id)
    expected_KD = by_layer(model, probe(**changed))
    torch.testing.assert_close(found_KD, expected_KD, atol=1e-4, rtol=1e-4)


def test_another_model_is_read_anew(tmp_path, subject):
    model, calls = subject
    build(tmp_path, model)
    calls.clear()
    build(tmp_path, model, fingerprint="base@2")
    assert calls


def test_another_dtype_is_read_anew(tmp_path, subject):
    model, calls = subject
    build(tmp_path, model)
    calls.clear()
    store = build(tmp_path, model.to(torch.bfloat16))
    assert calls
    assert store.vectors(PROBES[0].id).dtype == torch.bfloat16


def test_another_chat_template_is_read_anew(tmp_path, subject):
    model, calls = subject
    build(tmp_path, model)
    calls.clear()
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = "User says: {{ messages[0].content }}"
    build(tmp_path, model, tokenizer=tokenizer)
    assert calls


@pytest.mark.parametrize("keep", [0, 6, 0.5, -1])
def test_a_truncated_file_is_read_anew(tmp_path, subject, caplog, keep):
    model, calls = subject
    first = build(tmp_path, model)
    path, expected_KD = first.path, first.vectors(PROBES[0].id).clone()
    del first
    content = path.read_bytes()
    cut = int(len(content) * keep) if isinstance(keep, float) else keep
    path.write_bytes(content[:cut])
    calls.clear()
    with caplog.at_level(logging.WARNING):
        store = build(tmp_path, model)
    assert calls
    assert "is damaged" in caplog.text
    assert torch.equal(store.vectors(PROBES[0].id), expected_KD)


def changed_in_its_middle(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def without_its_mark(path):
    path.with_suffix(".json").unlink()


@pytest.mark.parametrize("spoil", [changed_in_its_middle, without_its_mark])
def test_a_file_that_is_not_as_it_was_written_is_read_anew(tmp_path, subject, caplog, spoil):
    model, calls = subject
    first = build(tmp_path, model)
    path, expected_KD = first.path, first.vectors(PROBES[0].id).clone()
    del first
    spoil(path)
    calls.clear()
    with caplog.at_level(logging.WARNING):
        store = build(tmp_path, model)
    assert calls
    assert "is read anew from the subject" in caplog.text
    assert torch.equal(store.vectors(PROBES[0].id), expected_KD)


def test_what_a_killed_writer_left_is_taken_away_and_not_that_of_a_living_one(tmp_path, subject):
    model, _ = subject
    path = build(tmp_path, model).path
    dead = subprocess.Popen(["true"])
    dead.wait()
    begun = [
        path.with_name(f".unfinished-{platform.node()}-{pid}-{path.name}")
        for pid in (dead.pid, os.getppid())
    ]
    for unfinished in begun:
        unfinished.mkdir()
    path.unlink()
    build(tmp_path, model)
    assert [unfinished.exists() for unfinished in begun] == [False, True]


def test_a_foreign_file_is_refused_and_kept(tmp_path, subject):
    path = build(tmp_path, subject[0]).path
    save_file({"weight": torch.ones(2)}, path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match="not an activation store"):
        build(tmp_path, subject[0])
    assert path.read_bytes() == content


def test_nothing_else_is_left_in_the_folder(tmp_path, subject):
    store = build(tmp_path / "new" / "folder", subject[0])
    mark = store.path.with_suffix(".json")
    assert set((tmp_path / "new" / "folder").iterdir()) == {store.path, mark}


def test_a_text_that_is_too_short_is_refused_before_reading(tmp_path, subject):
    model, calls = subject
    with pytest.raises(ValueError, match=r"cannot read 'Hi'.*token@-9"):
        build(tmp_path, model, [probe(), probe(text="Hi", positions="token@-9")])
    assert not calls


def test_the_fingerprint_of_a_local_model_is_of_its_weights(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    before = model_fingerprint(tmp_path)
    (tmp_path / "notes.txt").write_text("not a weight")
    assert model_fingerprint(tmp_path) == before
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    model.save_pretrained(tmp_path)
    assert model_fingerprint(tmp_path) != before


def test_a_folder_without_weights_has_no_fingerprint(tmp_path):
    with pytest.raises(UserError, match="no weight files"):
        model_fingerprint(tmp_path)


def test_progress_counts_the_texts_that_are_read(tmp_path, subject):
    seen = []
    for _ in range(2):
        texts = SubjectTexts(tiny_tokenizer())
        ActivationStore.build(
            tmp_path, subject[0], texts, PROBES, "base@1", 1, progress=seen.append
        )
    assert seen == [1, 2]


def test_no_probes_are_refused(tmp_path, subject):
    with pytest.raises(ValueError, match="no probes"):
        build(tmp_path, subject[0], [])


def test_runs_that_read_differently_share_a_folder(tmp_path, subject):
    model, calls = subject
    first = build(tmp_path, model)
    expected_KD = first.vectors(PROBES[0].id).clone()
    other = build(tmp_path, tiny_peft(seed=5), fingerprint="other@1")
    assert not torch.equal(other.vectors(PROBES[0].id), expected_KD)
    few = build(tmp_path, model, PROBES[:1])
    assert len({first.path, other.path, few.path}) == 3
    calls.clear()
    again = build(tmp_path, model)
    assert not calls
    assert torch.equal(again.vectors(PROBES[0].id), expected_KD)
    assert torch.equal(first.vectors(PROBES[0].id), expected_KD)


def test_a_quantized_model_is_another_one(tmp_path, subject):
    model, _ = subject
    plain = build(tmp_path, model)
    model.get_base_model().config.quantization_config = {"load_in_4bit": True}
    assert build(tmp_path, model).path != plain.path
