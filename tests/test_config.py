import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from grpo_ao.cli import main, parse_train_config
from grpo_ao.config import (
    MINI_WEIGHTS,
    PRESETS,
    EvalConfig,
    TrainConfig,
    load_config_file,
    make_defaults,
)
from grpo_ao.errors import UserError

FIELDS = {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.fixture
def write(tmp_path):
    """Write a configuration file; return its path as text."""

    def write_text(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_text


def refusal(capsys, *arguments):
    """What the command line says where it ends with status 2, without the box around it."""
    with pytest.raises(SystemExit) as caught:
        parse_train_config(list(arguments))
    assert caught.value.code == 2
    return re.sub(r"[\s│╭╮╰╯─]+", " ", capsys.readouterr().err)


# Defaults and presets


def test_what_the_plain_command_does():
    config = parse_train_config([])
    assert config == TrainConfig()
    assert config.model == "Qwen/Qwen3-8B"
    assert config.oracle_lora_path == (
        "adamkarvonen/checkpoints_all_single_and_multi_pretrain_cls_latentqa_posttrain_Qwen3-8B"
    )
    assert config.questions == "ceselder/wildchat-oracle-questions"
    assert (config.num_generations, config.kl_penalty, config.calibration_lambda) == (8, 0.05, 0.5)
    assert (config.lr, config.temperature) == (1e-6, 0.9)
    assert (config.num_prompts, config.seed, config.resume) == (None, 0, False)
    assert (config.initial_eval, config.report_to, config.trl) == (True, (), {})
    # The default question set has no reference answers.
    assert (config.judge, config.judge_model) == ("api", "google/gemini-2.5-flash")
    assert config.judge_base_url == "https://openrouter.ai/api/v1"
    assert config.judge_api_key_env == "OPENROUTER_API_KEY"
    assert (config.judge_cache, config.max_unscored, config.strict) == (None, 0.2, False)


def test_the_preset_of_the_default_model_is_the_default():
    assert parse_train_config(["--preset", "qwen3-8b"]) == parse_train_config([])


@pytest.mark.parametrize("arguments", [["--preset", "mini"], ["--preset=mini"]])
def test_the_mini_preset_trains_the_embedded_model(arguments):
    config = parse_train_config([*arguments, "--seed", "3"])
    assert config == dataclasses.replace(make_defaults("mini", None), seed=3)
    assert Path(config.model) == MINI_WEIGHTS / "base"
    assert Path(config.model, "config.json").is_file()
    assert (config.questions, config.output_dir) == ("mini", Path("runs/mini"))
    assert config.judge == "reference"


def test_a_preset_may_stand_behind_other_flags():
    behind = parse_train_config(["--seed", "3", "--preset", "mini"])
    assert behind == parse_train_config(["--preset", "mini", "--seed", "3"])


def test_the_gemma_preset():
    config = parse_train_config(["--preset", "gemma-3-27b"])
    assert config.model == "google/gemma-3-27b-it"
    assert (
        config.oracle_lora_path == "adamkarvonen/checkpoints_latentqa_cls_past_lens_gemma-3-27b-it"
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_change_known_settings_and_share_no_state(preset):
    assert PRESETS[preset].keys() <= FIELDS
    make_defaults(preset, None).trl["max_grad_norm"] = 0.5
    assert "max_grad_norm" not in make_defaults(preset, None).trl


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"--preset qwen is unknown: .* qwen3-8b, gemma-3-27b, smollm2-135m, mini"
    ):
        parse_train_config(["--preset", "qwen"])


@pytest.mark.parametrize("flag", ["--preset", "--config"])
def test_a_flag_without_its_value_is_refused(flag):
    with pytest.raises(ValueError, match=f"{flag} needs a value"):
        parse_train_config([flag])


# Flags


@pytest.mark.parametrize("write_flag", [lambda name: name, lambda name: name.replace("_", "-")])
def test_flags_are_written_with_either_dash(write_flag):
    settings = {
        "num_generations": 4,
        "calibration_lambda": 0.25,
        "kl_penalty": 0.0,
        "layer_percents": (10, 90),
        "scale_rewards": "group",
        "warm_start": "none",
        "output_dir": Path("runs/other"),
        "num_prompts": 5,
        "positions": "window:5@-3",
    }
    arguments = []
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else (value,)
        arguments += ["--" + write_flag(name), *map(str, values)]
    assert parse_train_config(arguments) == TrainConfig(**settings)


@pytest.mark.parametrize("flag", ["--no_initial_eval", "--no-initial-eval"])
def test_the_first_measurement_can_be_left_out(flag):
    assert parse_train_config([flag]).initial_eval is False
    assert parse_train_config(["--preset", "mini"]).initial_eval is True


def test_switches_that_are_off_can_be_put_on():
    config = parse_train_config(["--preset", "mini", "--resume", "--gradient_checkpointing"])
    assert (config.resume, config.gradient_checkpointing) == (True, True)


def test_the_help_shows_every_flag_and_the_presets(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_train_config(["--preset", "mini", "--help"])
    shown = capsys.readouterr().out.replace("-", "_")
    assert caught.value.code == 0
    # `trl` is no flag: its fields are for the file.
    assert [name for name in FIELDS if f"__{name}" not in shown] == ["trl"]
    words = " ".join(re.sub("│", " ", shown).split())
    assert "__preset {qwen3_8b,gemma_3_27b,smollm2_135m,mini}" in words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nope", "3"], "--nope"),
        (["--trl.max_grad_norm", "3"], "--trl.max_grad_norm"),
        (["--lr", "fast"], "lr"),
        (["--credit", "half"], "'joint', 'split'"),
        (["--report_to", "nowhere"], "'tensorboard'"),
        (["--calibration_lambda", "-1"], "--calibration_lambda must be 0 or more, got -1.0"),
        (["--num-generations", "1"], "--num_generations must be at least 2, got 1"),
        (["--positions", "first:3"], "positions 'first:3' are not understood"),
    ],
)
def test_flags_that_cannot_be_are_refused(capsys, arguments, said):
    assert said in refusal(capsys, *arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"calibration_lambda": -0.1}, "--calibration_lambda must be 0 or more, got -0.1"),
        ({"calibration_lambda": float("nan")}, "--calibration_lambda"),
        ({"calibration_lambda": float("inf")}, "--calibration_lambda"),
        ({"num_generations": 1}, "--num_generations must be at least 2"),
        ({"kl_penalty": -0.1}, "--kl_penalty must be 0 or more"),
        ({"kl_penalty": float("nan")}, "--kl_penalty"),
        ({"temperature": 0.0}, "--temperature must be above 0"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"layers": ("9",), "layer_percents": (50,)}, "--layers and --layer_percents say the same"),
        ({"layers": ("21,x",)}, "layers '21,x' are not understood"),
        ({"layers": ("21,22,21",)}, "hold one twice"),
        ({"layer_percents": (25, 100)}, r"--layer_percents must lie .* got \(25, 100\)"),
        ({"layer_percents": (0,)}, "--layer_percents"),
        ({"positions": "last"}, "positions 'last' are not understood"),
        ({"positions": "last:0"}, "at least 1"),
        ({"num_prompts": 0}, "--num_prompts must be above 0, got 0"),
        ({"max_unscored": 1.1}, "--max_unscored must lie between 0 and 1, got 1.1"),
        ({"max_unscored": float("nan")}, "--max_unscored"),
        ({"lr": 0.0}, "--lr must be above 0"),
        ({"lr": float("nan")}, "--lr must be a number"),
        ({"warm_start_lr": -1.0}, "--warm_start_lr"),
        ({"questions_per_step": 0}, "--questions_per_step"),
        ({"max_steps": -1}, "--max_steps"),
        ({"max_new_tokens": 0}, "--max_new_tokens"),
        ({"eval_probes": 0}, "--eval_probes"),
        ({"warm_start_probes": 0}, "--warm_start_probes"),
        ({"warm_start_steps": 0}, "--warm_start_steps"),
        ({"warm_start_batch": 0}, "--warm_start_batch"),
        ({"save_steps": 0}, "--save_steps"),
        ({"plot_every": 0}, "--plot_every"),
        ({"seed": -1}, "--seed must be 0 or more, got -1"),
        ({"max_steps": 10**20}, "--max_steps must be a number up to 2147483647"),
        ({"lr": float("inf")}, "--lr must be a number up to"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_the_flags_name(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"positions": ("last:20", "last:20")}, "--positions names last:20 twice"),
        ({"positions": ("token@-1", "last:1")}, "--positions names token@-1 twice"),
        ({"benchmarks": ("sst2", "ner", "sst2")}, "--benchmarks names sst2 twice"),
        ({"layers": ("2", "2")}, "--layers names 2 twice"),
        ({"layers": ("2,3", "3,2")}, "--layers names 2,3 twice"),
        ({"layer_percents": (25, 25)}, "--layer_percents names 25 twice"),
    ],
)
def test_what_an_evaluation_would_count_twice_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        EvalConfig(**settings)


# The file


def test_the_file_overrides_the_preset_and_flags_override_the_file(write):
    path = write("lr: 2.0e-6\nnum_generations: 4\nlayer_percents: [30, 60]\noutput_dir: runs/x\n")
    config = parse_train_config(["--preset", "mini", "--config", path, "--num_generations", "6"])
    assert config == dataclasses.replace(
        make_defaults("mini", None),
        lr=2e-6,
        num_generations=6,
        layer_percents=(30, 60),
        output_dir=Path("runs/x"),
    )
    assert config.max_steps == PRESETS["mini"]["max_steps"]


def test_paths_and_prices_that_may_be_absent_are_read_as_what_they_are(write):
    config = parse_train_config(
        ["--config", write("judge_cache: a/b.sqlite\njudge_input_price: 1\n")]
    )
    assert (config.judge_cache, config.judge_input_price) == (Path("a/b.sqlite"), 1.0)
    assert parse_train_config(["--config", write("judge_api_key_env: null")]) == TrainConfig(
        judge_api_key_env=None
    )


def test_the_order_of_preset_config_and_flags_does_not_matter(write):
    path = write("lr: 2.0e-6\n")
    orders = [
        ["--preset", "mini", f"--config={path}", "--lr", "5e-6"],
        ["--lr", "5e-6", "--config", path, "--preset=mini"],
    ]
    first, second = map(parse_train_config, orders)
    assert first == second
    assert first.lr == 5e-6


def test_switches_of_the_file_can_be_put_back_by_flags(write):
    path = write("initial_eval: false\n")
    assert parse_train_config(["--config", path]).initial_eval is False
    assert parse_train_config(["--config", path, "--initial_eval"]).initial_eval is True


@pytest.mark.parametrize(
    ("written", "lr"),
    [
        ("1e-6", 1e-6),
        ("1.0e-6", 1e-6),
        ("3E-4", 3e-4),
        ("1.5e0", 1.5),
        (".5e-1", 0.05),
        ("0.001", 1e-3),
        ("+1e-6", 1e-6),
        ("1", 1.0),
    ],
)
def test_numbers_are_read_as_people_write_them(write, written, lr):
    found = load_config_file(Path(write(f"lr: {written}\n")), TrainConfig)["lr"]
    assert (found, type(found)) == (lr, float)


@pytest.mark.parametrize("text", ["", "# nothing\n", "trl:\n", "{}"])
def test_an_empty_file_or_section_changes_nothing(write, text):
    assert parse_train_config(["--config", write(text)]) == TrainConfig()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            # YAML reads what looks like a number as one.
            "model": st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])).filter(
                lambda name: not re.match(r"[-+.]*\d", name)
            ),
            "seed": st.integers(0, 2**31 - 1),
            "num_prompts": st.none() | st.integers(1, 10**6),
            "lr": st.floats(1e-12, 1.0),
            "layer_percents": st.lists(st.integers(1, 99), min_size=1, unique=True).map(tuple),
            "credit": st.sampled_from(["joint", "split"]),
            "warm_start": st.sampled_from(["measured", "random", "none"]),
            "resume": st.booleans(),
            "trl": st.fixed_dictionaries({}, optional={"max_grad_norm": st.floats(0.0, 10.0)}),
        },
    )
)
def test_a_configuration_that_is_written_is_read_back(tmp_path_factory, settings):
    config = TrainConfig(**settings)
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    values = dataclasses.asdict(config)
    values |= {"output_dir": str(config.output_dir), "layer_percents": [*config.layer_percents]}
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    assert make_defaults(None, path) == config


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no configuration file at .*absent\.yaml"):
        parse_train_config(["--config", str(tmp_path / "absent.yaml")])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1\n", "sets 'learning_rat', which is no setting of this command"),
        ("preset: mini\n", "sets 'preset', which is no setting"),
        ("3: 4\n", "sets '3', which is no setting"),
        ("- lr\n", "does not hold a mapping"),
        ("lr: [\n", "is not valid YAML: .* line 2"),
        ("trl: &a {b: 1}\nvllm: *a\n", r"is not valid YAML: it holds an alias \(\*name\)"),
        ("lr: fast\n", "sets 'lr' to 'fast', which is not of type float"),
        ("lr: true\n", "sets 'lr' to True, which is not of type float"),
        ("lr:\n", "sets 'lr' to None"),
        ("seed: 1.5\n", "sets 'seed' to 1.5, which is not of type int"),
        ("seed: '1'\n", "sets 'seed' to '1'"),
        ("max_steps: true\n", "sets 'max_steps' to True"),
        ("num_prompts: some\n", r"sets 'num_prompts' to 'some', which is not of type int \| None"),
        ("resume: 'no'\n", "sets 'resume' to 'no', which is not of type bool"),
        ("credit: half\n", "sets 'credit' to 'half', which is not of type Literal.*'joint'"),
        ("warm_start: off\n", "sets 'warm_start' to False"),
        ("layer_percents: 50\n", "sets 'layer_percents' to 50, which is not of type tuple"),
        ("layer_percents: [25, '50']\n", "sets 'layer_percents' to "),
        ("output_dir: 3\n", "sets 'output_dir' to 3, which is not of type pathlib.Path"),
        ("model: 3\n", "sets 'model' to 3, which is not of type str"),
        ("trl: [max_grad_norm]\n", "sets 'trl' to "),
        ("num_generations: 1\n", "--num_generations must be at least 2"),
        ("calibration_lambda: -1\n", "--calibration_lambda must be 0 or more"),
    ],
)
def test_a_file_that_cannot_be_is_refused_with_what_is_wrong(write, text, message):
    with pytest.raises(ValueError, match=message):
        parse_train_config(["--config", write(text)])


# The section trl


def test_fields_of_trl_are_kept_and_merged_with_the_presets(write):
    path = write("trl:\n  max_grad_norm: 5e-1\n  loss_type: dr_grpo\n")
    assert parse_train_config(["--config", path]).trl == {
        "max_grad_norm": 0.5,
        "loss_type": "dr_grpo",
    }
    merged = parse_train_config(["--preset", "mini", "--config", path, "--lr", "1e-4"]).trl
    assert merged == PRESETS["mini"]["trl"] | {"max_grad_norm": 0.5, "loss_type": "dr_grpo"}


def test_the_files_field_wins_over_the_presets(write):
    path = write("trl: {lr_scheduler_type: constant}\n")
    config = parse_train_config(["--preset", "mini", "--config", path])
    assert config.trl["lr_scheduler_type"] == "constant"


# The command


def test_what_is_wrong_ends_the_command_with_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: --preset qwen is unknown: .*\.$"):
        main(["train", "--preset", "qwen"])
    with pytest.raises(SystemExit, match=r"^error: there is no configuration file at .*"):
        main(["train", "--config", str(tmp_path / "absent.yaml")])
