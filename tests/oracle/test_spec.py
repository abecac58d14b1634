import json

import huggingface_hub.constants
import pytest

from grpo_ao.errors import UserError
from grpo_ao.oracle.spec import OracleSpec, load_spec, save_spec

# The relevant part of the file beside the public Qwen3-8B oracle.
PUBLIC = {
    "schema_version": 1,
    "model_name": "Qwen/Qwen3-8B",
    "hook_onto_layer": 1,
    "special_token": " ?",
    "prefix_template": "Layer: {layer}\\n{special_token} * {num_positions} \\n",
    "steering_coefficient": 1.0,
    "layer_combinations": [[25], [50], [75]],
    "act_layer_combinations": [[9], [18], [27]],
}


def write(folder, values):
    (folder / "ao_config.json").write_text(json.dumps(values), encoding="utf-8")


def test_the_public_file_is_read(tmp_path):
    write(tmp_path, PUBLIC)
    spec = load_spec(tmp_path)
    assert spec.prefix(18, 2) == ("Layer: 18\n", " ? ?", " \n")
    assert spec == OracleSpec(
        act_layer_combinations=((9,), (18,), (27,)),
        other={k: PUBLIC[k] for k in ("schema_version", "model_name", "layer_combinations")},
    )


def test_reading_and_writing_gives_the_same_file(tmp_path):
    write(tmp_path, PUBLIC)
    path = save_spec(load_spec(tmp_path), tmp_path / "saved")
    own = {"calibrated": False, "calibrated_by": ""}
    assert json.loads(path.read_text(encoding="utf-8")) == PUBLIC | own
    assert [p.name for p in path.parent.iterdir()] == ["ao_config.json"]


def test_a_new_line_and_the_short_name_of_the_run_are_read_too():
    spec = OracleSpec(prefix_template="Layer: {layer}\n{special_tokens} \n")
    assert spec.prefix(9, 3) == OracleSpec().prefix(9, 3) == ("Layer: 9\n", " ? ? ?", " \n")


def test_a_folder_without_the_file_has_the_literatures_defaults(tmp_path):
    spec = load_spec(tmp_path)
    assert spec == OracleSpec()
    assert spec.for_model(36).act_layer_combinations == ((9,), (18,), (27,))


def test_known_layers_are_kept():
    spec = OracleSpec(act_layer_combinations=((5,),))
    assert spec.for_model(36) is spec


def test_layers_that_are_read_together_are_in_rising_order(tmp_path):
    write(tmp_path, PUBLIC | {"act_layer_combinations": [[25, 21, 22], [9]]})
    assert load_spec(tmp_path).layers(36) == ((21, 22, 25), (9,))


def test_depths_stand_in_for_layers_that_the_file_leaves_out(tmp_path):
    combinations = {"layer_combinations": [[59, 62, 64]], "act_layer_combinations": []}
    write(tmp_path, PUBLIC | combinations)
    assert load_spec(tmp_path).layers(36) == ((21, 22, 23),)


def test_layers_are_those_that_are_named_else_those_of_the_adapter():
    spec = OracleSpec(act_layer_combinations=((9,), (18,)))
    assert spec.layers(36) == ((9,), (18,))
    assert spec.layers(36, named=("23,21,22", "9")) == ((21, 22, 23), (9,))
    assert spec.layers(36, percents=(50, 75)) == ((18,), (27,))
    with pytest.raises(UserError, match="there is no layer 36: the model has layers 0 to 35"):
        spec.layers(36, named=("35,36",))
    with pytest.raises(UserError, match="there is no layer 9: the model has layers 0 to 7"):
        spec.layers(8)


def test_depths_that_are_one_layer_are_read_once():
    assert OracleSpec().layers(6, percents=(25, 30, 50)) == ((1,), (3,))
    assert OracleSpec().layers(2) == ((0,), (1,))


def test_an_adapter_that_is_trained_on_other_layers_names_them_alone(tmp_path):
    write(tmp_path, PUBLIC)
    spec = load_spec(tmp_path)
    assert spec.trained_on(((9,), (18,), (27,))) is spec
    save_spec(spec.trained_on(((21, 22),)), tmp_path)
    saved = json.loads((tmp_path / "ao_config.json").read_text(encoding="utf-8"))
    assert saved["act_layer_combinations"] == [[21, 22]]
    assert "layer_combinations" not in saved


def test_layers_that_the_adapter_was_not_trained_on_are_told():
    spec = OracleSpec(act_layer_combinations=((9,), (21, 22)))
    assert spec.warning_of([(21, 22), (9,)]) is None
    said = spec.warning_of([(9,), (21,), (21, 22)])
    assert (
        said == "the adapter was trained to read layers 9 or 21,22, but 21 is read: see --layers."
    )
    assert OracleSpec().warning_of([(3,)]) is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hook_onto_layer", "1", "not an integer"),
        ("hook_onto_layer", True, "not an integer"),
        ("hook_onto_layer", -1, "counts from 0"),
        ("special_token", "", "empty"),
        ("prefix_template", "Layer: {layer}", "must hold"),
        ("steering_coefficient", None, "not a number"),
        ("act_layer_combinations", [9, 18], "list of lists"),
        ("act_layer_combinations", [[21, 22, 21]], "list of lists of different layer indices"),
        ("act_layer_combinations", [[9], []], "list of lists"),
        ("layer_combinations", [25, 50], "list of lists of different depths"),
        ("calibrated", "yes", "not true or false"),
        ("calibrated_by", 3, "not a string"),
    ],
)
def test_a_wrong_value_is_refused(tmp_path, key, value, message):
    write(tmp_path, {**PUBLIC, key: value})
    with pytest.raises(ValueError, match=message):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"steering_coefficient": NaN}', '{"special_token": "\\ud800"}']
)
def test_a_file_that_is_not_an_object_is_refused(tmp_path, content):
    (tmp_path / "ao_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"ao_config\.json"):
        load_spec(tmp_path)


def test_a_hub_id_without_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"some/adapter is neither .* cannot be reached"):
        load_spec("some/adapter")


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        load_spec(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        load_spec(tmp_path / "file")
