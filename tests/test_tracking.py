import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from grpo_ao.errors import UserError
from grpo_ao.tracking import (
    ModuleReporter,
    Reporter,
    check_destinations,
    make_reporter,
)

ROWS = [{"step": 2, "answer": "Yes", "score": 1.0}, {"step": 2, "answer": "No", "score": None}]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    image = np.zeros((4, 6, 3))
    image[:, :3] = (1.0, 0.0, 0.0)
    plt.imsave(path, image)
    return path


def report_all(reporter: Reporter, picture: Path) -> None:
    reporter.scalars(1, {"reward": 0.25, "kl": 0.5})
    reporter.scalars(2, {"reward": 0.75, "kl": float("nan")})
    reporter.image(2, "reliability", picture)
    reporter.table(2, "rollouts", ROWS)
    reporter.alert("parse_rate", "completions lack a tag")


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_none_reports_nowhere(tmp_path, picture):
    before = files_below(tmp_path)
    reporter = make_reporter(["none"], tmp_path / "run", {})
    report_all(reporter, picture)
    assert files_below(tmp_path) == before


# TensorBoard


def events_of(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard")).Reload()


def test_tensorboard_has_scalars_at_once(tmp_path):
    reporter = make_reporter(["tensorboard"], tmp_path, {})
    reporter.scalars(1, {"reward": 0.25, "kl": 0.5})
    reporter.scalars(2, {"reward": 0.75, "kl": float("nan")})
    events = events_of(tmp_path)
    found = [(event.step, event.value) for event in events.Scalars("reward")]
    assert found == [(1, 0.25), (2, 0.75)]
    kls = [event.value for event in events.Scalars("kl")]
    assert kls[0] == 0.5
    assert np.isnan(kls[1])


def test_tensorboard_has_the_picture_the_rollouts_and_the_alert(tmp_path, picture):
    reporter = make_reporter(["tensorboard"], tmp_path, {})
    report_all(reporter, picture)
    reporter.scalars(3, {"reward": 1.0})  # which flushes
    events = events_of(tmp_path)
    (image,) = events.Images("reliability")
    assert (image.step, image.width, image.height) == (2, 6, 4)
    text = {tag: events.Tensors(tag)[0] for tag in events.Tags()["tensors"]}
    assert text.keys() == {"rollouts/text_summary", "alert/parse_rate/text_summary"}
    rollouts = text["rollouts/text_summary"].tensor_proto.string_val[0].decode()
    assert "'answer': 'Yes'" in rollouts and "'answer': 'No'" in rollouts
    alert = text["alert/parse_rate/text_summary"].tensor_proto.string_val[0].decode()
    assert alert == "completions lack a tag"


# wandb and what is called alike


class RecordingModule:
    """Stands for wandb or trackio."""

    def __init__(self):
        self.calls: list[Any] = []
        self.Image = lambda path: ("image", path)
        self.Table = lambda dataframe: ("table", dataframe.to_dict("records"))

    def init(self, **settings):
        self.calls.append(("init", settings))

    def log(self, values, step):
        self.calls.append(("log", step, values))

    def alert(self, title, text):
        self.calls.append(("alert", title, text))


def test_a_module_is_called_as_wandb_documents(tmp_path, picture):
    module = RecordingModule()
    reporter = ModuleReporter(module, project="grpo_ao", name="mini", config={"lr": 1e-6})
    reporter.scalars(1, {"reward": 0.25})
    reporter.image(2, "reliability", picture)
    reporter.table(2, "rollouts", ROWS[:1])
    reporter.alert("parse_rate", "completions lack a tag")
    assert module.calls == [
        ("init", {"project": "grpo_ao", "name": "mini", "config": {"lr": 1e-6}}),
        ("log", 1, {"reward": 0.25}),
        ("log", 2, {"reliability": ("image", str(picture))}),
        ("log", 2, {"rollouts": ("table", ROWS[:1])}),
        ("alert", "parse_rate", "completions lack a tag"),
    ]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """No key of wandb anywhere; what is set here is taken back afterwards."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_MODE", "WANDB_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return home


def test_wandb_without_a_key_writes_an_offline_run_into_the_folder(
    tmp_path, environment, picture, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    config = {"lr": 1e-6, "output_dir": folder, "layer_percents": (25, 50)}
    reporter = make_reporter(["wandb"], folder, config)
    wandb = importlib.import_module("wandb")
    try:
        assert wandb.run.settings.mode == "offline"
        assert wandb.run.name == "run"
        assert wandb.run.config["lr"] == 1e-6
        report_all(reporter, picture)
        reporter.scalars(3, {"reward": 1.0})  # which ends the step before
        assert wandb.run.summary["reward"] == 0.75
        assert {"kl", "reliability", "rollouts"} <= set(wandb.run.summary.keys())
    finally:
        wandb.finish()
    (data,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert data.stat().st_size > 0
    assert not (tmp_path / "wandb").exists()


class StandIn(SimpleNamespace):
    def init(self, **_):
        return None


@pytest.mark.parametrize(
    ("key", "netrc", "mode"),
    [
        (None, None, "offline"),
        (None, "machine example.com login user password x", "offline"),
        (None, "machine api.wandb.ai login user password x", None),
        (None, "machine api.wandb.ai.example.com login user password x", "offline"),
        ("0123456789", None, None),
    ],
)
def test_wandb_is_offline_only_where_it_has_no_key(environment, monkeypatch, key, netrc, mode):
    monkeypatch.setitem(sys.modules, "wandb", StandIn())
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    if netrc:
        (environment / ".netrc").write_text(netrc)
    make_reporter(["wandb"], environment, {})
    assert os.environ.get("WANDB_MODE") == mode


def test_a_mode_and_a_folder_that_the_user_has_set_stay(environment, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", StandIn())
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    make_reporter(["wandb"], environment, {})
    assert (os.environ["WANDB_MODE"], os.environ["WANDB_DIR"]) == ("disabled", "/elsewhere")


@pytest.mark.parametrize("destination", ["wandb", "tensorboard", "trackio"])
def test_a_missing_package_is_named_with_how_to_get_it(tmp_path, monkeypatch, destination):
    monkeypatch.setitem(sys.modules, destination, None)
    with pytest.raises(UserError) as caught:
        make_reporter([destination], tmp_path, {})
    assert str(caught.value) == (
        f"--report_to {destination} needs its package: pip install {destination}."
    )


class Recorder(SimpleNamespace):
    def init(self, **settings):
        self.settings = settings


def test_a_resumed_run_goes_on_in_the_same_run_of_wandb(environment, monkeypatch):
    module = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    (environment / "run").mkdir()
    (environment / "run" / "run.json").write_text('{"id": "0a1b"}')
    make_reporter(["wandb"], environment / "run", {})
    assert (module.settings["id"], module.settings["resume"]) == ("0a1b", "allow")
    assert (module.settings["project"], module.settings["name"]) == ("mine", "run")


def test_the_environment_names_another_run_of_wandb(environment, monkeypatch):
    module = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    (environment / "run.json").write_text('{"id": "0a1b"}')
    make_reporter(["wandb"], environment, {})
    assert module.settings["id"] == "mine"


def test_several_destinations_are_told_the_same(environment, monkeypatch, picture):
    module = RecordingModule()
    monkeypatch.setitem(sys.modules, "wandb", module)
    report_all(make_reporter(["wandb", "tensorboard"], environment, {}), picture)
    events = events_of(environment)
    assert [event.value for event in events.Scalars("reward")] == [0.25, 0.75]
    assert ("log", 1, {"reward": 0.25, "kl": 0.5}) in module.calls
    assert module.calls[-1] == ("alert", "parse_rate", "completions lack a tag")


def test_a_server_of_ones_own_has_its_own_key(environment, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Recorder())
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com/api")
    (environment / ".netrc").write_text("machine api.wandb.ai login user password x")
    notice = check_destinations(["wandb"])
    assert notice is not None
    assert "no key for wandb.example.com, so the run is logged offline" in notice
    (environment / ".netrc").write_text("machine wandb.example.com login user password x")
    assert check_destinations(["wandb"]) is None


def test_a_logger_that_cannot_be_opened_is_one_sentence(environment, monkeypatch):
    class Refusing(SimpleNamespace):
        def init(self, **_):
            raise RuntimeError("the key is too short.\nMore of it")

    monkeypatch.setitem(sys.modules, "wandb", Refusing())
    with pytest.raises(UserError) as caught:
        make_reporter(["wandb"], environment, {})
    assert "--report_to wandb cannot be opened (the key is too short): mend" in str(caught.value)


def test_a_netrc_that_cannot_be_read_is_one_sentence(environment, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Recorder())
    (environment / ".netrc").write_text("machine api.wandb.ai login user passwort x")
    with pytest.raises(
        UserError, match=r"cannot read its key from .*\.netrc .*set WANDB_API_KEY\.$"
    ):
        check_destinations(["wandb"])
