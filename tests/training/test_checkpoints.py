import json

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from grpo_ao.files import mark_whole
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.spec import load_spec
from grpo_ao.processes import Processes
from grpo_ao.training.checkpoints import (
    COMPLETE,
    CheckpointCallback,
    StopCallback,
    last_checkpoint,
    load_adapter,
    make_trainable,
)
from tests.rigs import adapter_weights, make_oracle
from tests.tiny import tiny_tokenizer

FILES = ("adapter_model.safetensors", "optimizer.pt", "rng_state.pth", "ref/adapter_config.json")


def checkpoint(folder, step, whole=True):
    path = folder / f"checkpoint-{step}"
    for name in FILES:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(f"{name} of step {step}")
    if whole:
        mark_whole(path / COMPLETE, [path / name for name in FILES], step=step)
    return path


def last(folder):
    """The checkpoint that is taken, and what is said."""
    said = []
    return last_checkpoint(folder, said.append), said


def test_the_newest_whole_checkpoint_is_taken_by_number(tmp_path):
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    checkpoint(tmp_path, 11, whole=False)
    assert last(tmp_path) == (newest, [])


def test_there_may_be_none(tmp_path):
    assert last(tmp_path / "absent") == (None, [])
    checkpoint(tmp_path, 3, whole=False)
    assert last(tmp_path) == (None, [])


@pytest.mark.parametrize("name", [*FILES, COMPLETE])
@pytest.mark.parametrize("damage", ["cut", "changed", "longer", "emptied", "removed"])
def test_a_checkpoint_that_was_damaged_is_passed_over_by_name(tmp_path, name, damage):
    older, newest = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    path = newest / name
    content = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        changed = {"cut": content[:-3], "longer": content + b"}", "emptied": b""}
        path.write_bytes(changed.get(damage, b"?" + content[1:]))
    taken, said = last(tmp_path)
    assert taken == older
    if name == COMPLETE and damage == "removed":
        assert said == []  # as a kill would have left it
    else:
        fault = "not there" if damage == "removed" else "damaged"
        assert said == [f"{newest} is passed over, for {name} is {fault}."]


def test_a_checkpoint_is_marked_when_it_is_whole(tmp_path):
    oracle = make_oracle()
    folder, marked = checkpoint(tmp_path, 5, whole=False), []
    CheckpointCallback(oracle, Processes(), lambda: marked.append(last(tmp_path))).on_save(
        TrainingArguments(output_dir=str(tmp_path)), TrainerState(global_step=5), TrainerControl()
    )
    assert marked == [(folder, [])]
    assert load_spec(folder) == oracle.spec
    (folder / "optimizer.pt").unlink()
    assert last(tmp_path)[0] is None


@pytest.mark.parametrize("come", [[], [15]])
def test_a_signal_ends_training_behind_its_step_with_a_checkpoint(come):
    control = TrainerControl()
    callback = StopCallback(come, Processes())
    callback.on_step_end(TrainingArguments(), TrainerState(), control)
    assert control.should_save == control.should_training_stop == bool(come)


def test_gradients_reach_the_adapter_default_alone():
    oracle = make_oracle()
    oracle.model.add_adapter("ref", oracle.model.peft_config["default"])
    oracle.model.requires_grad_(True)
    make_trainable(oracle)
    trained = {name for name, p in oracle.model.named_parameters() if p.requires_grad}
    assert trained == set(adapter_weights(oracle))
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("times", [1, 2])
def test_a_saved_adapter_is_loaded_back_exactly(tmp_path, times):
    oracle = make_oracle()
    saved = adapter_weights(oracle)
    # Over an older one of the same folder too.
    for _ in range(times):
        oracle.save_adapter(tmp_path / "adapter")
    with torch.no_grad():
        for name, parameter in oracle.model.named_parameters():
            if ".default." in name:
                parameter.add_(1.0)
    load_adapter(oracle, tmp_path / "adapter")
    loaded = adapter_weights(oracle)
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in saved.items())


def test_a_writer_that_dies_leaves_the_old_adapter(tmp_path, monkeypatch):
    oracle = make_oracle()
    oracle.save_adapter(tmp_path)
    (tmp_path / "samples.jsonl").write_text("something else that lies there\n")
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(old) >= {"adapter_model.safetensors", "adapter_config.json", "ao_config.json"}
    with torch.no_grad():
        next(iter(p for p in oracle.model.parameters() if p.requires_grad)).add_(1.0)

    def die(*_, **__):
        raise KeyboardInterrupt

    # The adapter is written by then, its spec is not.
    monkeypatch.setattr("grpo_ao.oracle.oracle.save_spec", die)
    with pytest.raises(KeyboardInterrupt):
        oracle.save_adapter(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_the_adapter_of_a_run_is_loaded_by_peft_with_its_unknown_keys(tmp_path):
    (tmp_path / "first").mkdir()
    model = make_oracle().model
    spec = {"hook_onto_layer": 1, "special_token": " ?", "trained_by": "somebody", "n": [1, 2]}
    (tmp_path / "first" / "ao_config.json").write_text(json.dumps(spec))
    oracle = make_oracle()
    oracle.detach()
    again = Oracle(oracle.model, tiny_tokenizer(), load_spec_of(tmp_path / "first"))
    again.save_adapter(tmp_path / "second")
    written = json.loads((tmp_path / "second" / "ao_config.json").read_text())
    assert (written["trained_by"], written["n"]) == ("somebody", [1, 2])
    reloaded = type(model).from_pretrained(model.get_base_model(), str(tmp_path / "second"))
    assert list(reloaded.peft_config) == ["default"]


def load_spec_of(folder):
    (folder / "adapter_config.json").write_text("{}")
    return load_spec(folder)
