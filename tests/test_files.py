import codecs
import errno
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandas import DataFrame
from safetensors import SafetensorError

from grpo_ao import __version__
from grpo_ao import files as module
from grpo_ao.errors import UserError
from grpo_ao.files import (
    UNFINISHED,
    RunFolder,
    Stopwatch,
    append_jsonl,
    atomic_write_json,
    atomic_write_text,
    finite,
    git_commit,
    keep_rows,
    read_foreign_rows,
    read_json,
    read_jsonl,
    record_activations,
    remove_unfinished,
    text_digest,
    write_faults,
    written_whole,
)

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = {"seed": 7, "lr": 1e-6, "layer_percents": (25, 50), "resume": False, "trl": {}}
DATA = {"train": "aaaa", "heldout": "bbbb"}


class KilledError(Exception):
    pass


# Files


def test_a_file_is_written_and_its_folder_made(tmp_path):
    path = tmp_path / "new" / "file.txt"
    atomic_write_text(path, "Zürich\n")
    assert path.read_bytes() == "Zürich\n".encode()
    assert os.listdir(path.parent) == ["file.txt"]  # noqa: PTH208


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_writer_that_dies_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "file.txt"
    atomic_write_text(path, "old")

    def die(*_):
        raise KilledError

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), die)
    with pytest.raises(KilledError):
        atomic_write_text(path, "new and longer")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_leaves_of_a_file_is_named_as_unfinished(tmp_path):
    path = tmp_path / "file.txt"
    with written_whole(path) as unfinished:
        unfinished.write_text("text")
        assert unfinished.parent.name.startswith(UNFINISHED)
        assert not path.exists()
    assert path.read_text() == "text"


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    pipe = tmp_path / "pipe"  # or, for root, /dev/null
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="pipe cannot be written: it is a device or a pipe"):
        atomic_write_text(pipe, "text")
    assert pipe.is_fifo()


def test_half_of_a_surrogate_pair_does_not_end_a_write(tmp_path):
    atomic_write_text(tmp_path / "file.txt", "a \ud800 b")
    assert (tmp_path / "file.txt").read_text() == "a ? b"


def test_the_text_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    calls = []
    replace, fsync = Path.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: calls.append("fsync") or fsync(file))
    monkeypatch.setattr(Path, "replace", lambda *paths: calls.append("replace") or replace(*paths))
    atomic_write_text(tmp_path / "file.txt", "text")
    assert calls == ["fsync", "replace"]


def test_what_is_not_finite_becomes_null(tmp_path):
    value = {"a": math.nan, "b": [1.5, math.inf, {"c": (-math.inf, 2)}], "d": "nan", "e": True}
    expected = {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "nan", "e": True}
    assert finite(value) == expected
    atomic_write_json(tmp_path / "value.json", value)
    assert json.loads((tmp_path / "value.json").read_text()) == expected
    append_jsonl(tmp_path / "rows.jsonl", [value])
    assert read_jsonl(tmp_path / "rows.jsonl") == [expected]
    assert "NaN" not in (tmp_path / "rows.jsonl").read_text()


def test_rows_are_appended(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, [{"step": 1}, {"step": 2}])
    append_jsonl(path, [])
    append_jsonl(path, [{"step": 3}])
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert path.read_text().count("\n") == 3


def test_a_file_that_is_not_there_has_no_rows(tmp_path):
    assert read_jsonl(tmp_path / "rows.jsonl") == []


@pytest.mark.parametrize("half", ['{"step": 3, "rew', '{"step": 3}', "{"])
def test_half_a_last_line_is_dropped(tmp_path, half):
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, [{"step": 1}, {"step": 2}])
    path.write_text(path.read_text() + half)
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]
    path.write_text(half)
    assert read_jsonl(path) == []


def test_a_broken_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl is damaged: row 2 cannot be read.*JSON"):
        read_jsonl(path)


def test_a_row_goes_behind_the_last_whole_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_jsonl(path, [{"step": 1}])
    for half in ('{"step": 2, "rew', "{", '{"step": 2}'):
        with path.open("a") as file:
            file.write(half)
        append_jsonl(path, [])
        assert path.read_text() == '{"step": 1}\n'
    path.write_text("{half")
    append_jsonl(path, [{"step": 3}])
    assert read_jsonl(path) == [{"step": 3}]


def test_rows_can_be_taken_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    keep_rows(path, lambda row: True)
    assert not path.exists()
    append_jsonl(path, [{"step": n, "answer": "\u2028\ud800"} for n in range(4)])
    keep_rows(path, lambda row: row["step"] < 2)
    assert [row["step"] for row in read_jsonl(path)] == [0, 1]
    assert read_jsonl(path)[0]["answer"] == "\u2028\ud800"


# Files of other people


SOUND = {"text": "Zürich \u2028 \x85 \x0c end", "n": 1}
BROKEN_LINES = {
    "latin-1": ('{"text": "Zürich"}'.encode("latin-1"), "not UTF-8"),
    "no JSON": (b'{"text": ', "not valid JSON"),
    "nested": (b"[" * 200_000 + b"]" * 200_000, "nested too deep"),
    "nested objects": (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested too deep"),
    "digits": (b'{"n": ' + b"9" * 5_000 + b"}", "too many digits"),
}
lines_of_a_file = st.lists(
    st.sampled_from([None, *BROKEN_LINES]).flatmap(
        lambda name: st.tuples(st.just(name), st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n  \n"]))
    ),
    min_size=1,
    max_size=5,
)


@given(st.booleans(), lines_of_a_file, st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_broken_row_costs_itself_alone(tmp_path, marked, lines, ended):
    sound = json.dumps(SOUND, ensure_ascii=False).encode()
    # An object first: a file that opens with a bracket is a JSON array.
    lines = [(None, b"\n"), *lines]
    bodies = [sound if name is None else BROKEN_LINES[name][0] for name, _ in lines]
    data = b"".join(body + end for body, (_, end) in zip(bodies, lines, strict=True))
    path = tmp_path / "rows.jsonl"
    path.write_bytes((codecs.BOM_UTF8 if marked else b"") + (data if ended else data.rstrip()))
    number, found = 1, dict(read_foreign_rows(path))
    for name, end in lines:
        row = found.pop(number)
        if name is None:
            assert row == SOUND
        else:
            assert isinstance(row, ValueError)
            assert BROKEN_LINES[name][1] in str(row)
        number += end.count(b"\n")
    assert found == {}


@pytest.mark.parametrize("start", [b"", codecs.BOM_UTF8, b"\n  "])
def test_the_entries_of_an_array_are_rows(tmp_path, start):
    path = tmp_path / "rows.json"
    path.write_bytes(start + b'[\n{"text": "a"},\n{"text": "b"}\n]')
    assert list(read_foreign_rows(path)) == [(1, {"text": "a"}), (2, {"text": "b"})]
    path.write_bytes(start + b'[{"text": "a"},')
    with pytest.raises(UserError, match=r"rows\.json cannot be read as a JSON array: it is not"):
        list(read_foreign_rows(path))


def test_rows_of_csv_and_parquet_are_those_of_jsonl(tmp_path):
    rows = [
        {"text": "a, b", "question": "Is it\nso?"},
        {"text": "Z\u00fcrich", "question": "What?"},
    ]
    for name, write in {"a.csv": DataFrame.to_csv, "a.parquet": DataFrame.to_parquet}.items():
        write(DataFrame(rows), tmp_path / name, index=False)
        assert list(read_foreign_rows(tmp_path / name)) == [*enumerate(rows, start=1)]


@pytest.mark.parametrize(
    ("name", "data"),
    [("a.parquet", b"no parquet"), ("a.csv", b'a\n"b'), ("a.csv", b"a\n\xff\xfe\n")],
)
def test_a_file_of_another_format_is_one_sentence(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=r"a\.\w+ is no (parquet file|CSV of UTF-8): "):
        list(read_foreign_rows(tmp_path / name))


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    below = tmp_path / "file"
    below.write_text("{}")
    for path in (tmp_path / "absent.jsonl", tmp_path, below / "rows.jsonl", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"no file at|cannot be read") as caught:
            list(read_foreign_rows(path))
        assert "\n" not in str(caught.value)


@given(st.lists(st.text(st.characters())))
def test_rows_of_any_text_are_read_back(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"answer": text, "step": i} for i, text in enumerate([*texts, "\u2028\x85\n\ud800"])]
    append_jsonl(path, rows)
    assert read_jsonl(path) == rows


def test_digests_depend_on_the_texts_and_their_order():
    # printf 'a\0bc\0' | sha256sum
    assert text_digest(["a", "bc"]) == "aa795aa4bbb61179"
    assert len({text_digest(t) for t in (["a", "bc"], ["bc", "a"], ["ab", "c"], ["abc"], [])}) == 5


# The folder


def test_a_new_run_makes_its_folder(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "mini", resume=False)
    folder.write_record(CONFIG, DATA)
    assert folder.path.is_dir()


def test_an_existing_run_is_refused_and_resume_is_offered(tmp_path):
    RunFolder(tmp_path, resume=False).write_record(CONFIG, DATA)
    before = (tmp_path / "run.json").read_text()
    with pytest.raises(UserError, match=r"holds a run already.*--resume.*--output_dir"):
        RunFolder(tmp_path, resume=False)
    assert (tmp_path / "run.json").read_text() == before


def test_a_folder_with_other_files_is_no_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert RunFolder(tmp_path, resume=False).path == tmp_path


def test_what_others_may_be_writing_is_left_alone(tmp_path, monkeypatch):
    def kill(process: int, _: int) -> None:
        raise PermissionError if process == 7 else ProcessLookupError

    monkeypatch.setattr(os, "kill", kill)
    monkeypatch.setattr(platform, "node", lambda: "train")
    of_others = ["train-7-a.json", "train-0-12-a.json", "train-12-b-a.json", "train-0-8-9-a.json"]
    for name in [*of_others, "train-12-a.json"]:
        (tmp_path / f"{UNFINISHED}{name}").mkdir()
    remove_unfinished(tmp_path / "a.json")
    left = {path.name.removeprefix(UNFINISHED) for path in tmp_path.iterdir()}
    assert left == set(of_others)


def test_what_a_killed_start_left_unfinished_is_taken_away(tmp_path):
    for part in ("", "plots", "final/deep"):
        (tmp_path / part).mkdir(parents=True, exist_ok=True)
        (tmp_path / part / f"{UNFINISHED}7-file.txt").write_text("half")
        (tmp_path / part / "whole.txt").write_text("whole")
    (tmp_path / f"{UNFINISHED}folder").mkdir()
    (tmp_path / f"{UNFINISHED}folder" / "inside").write_text("half")
    RunFolder(tmp_path, resume=False)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        ".lock",
        *["whole.txt"] * 3,
    ]


def test_there_must_be_a_run_to_resume(tmp_path):
    with pytest.raises(UserError, match=r"no run to resume in .*absent"):
        RunFolder(tmp_path / "absent", resume=True)
    assert not (tmp_path / "absent").exists()


def test_a_second_holder_is_refused_until_the_first_ends(tmp_path):
    first = RunFolder(tmp_path, resume=False)
    with pytest.raises(UserError, match=r"another process is running in .*: wait for it\."):
        RunFolder(tmp_path, resume=False)
    first.write_record(CONFIG, DATA)
    with pytest.raises(UserError, match="another process"):
        RunFolder(tmp_path, resume=True)
    del first
    assert RunFolder(tmp_path, resume=True).path == tmp_path


HOLDER = """
import sys
from pathlib import Path
from grpo_ao.files import RunFolder
folder = RunFolder(Path(sys.argv[1]), resume=False)
print("at work", flush=True)
sys.stdin.read()
"""


def test_another_process_in_the_folder_is_seen_and_its_death_too(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "at work\n"
            with pytest.raises(UserError, match="another process is running"):
                RunFolder(tmp_path, resume=False)
        finally:
            process.kill()
    assert RunFolder(tmp_path, resume=False).path == tmp_path


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_the_record_says_what_was_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--preset", "mini"])
    RunFolder(tmp_path, resume=False).write_record(CONFIG, DATA)
    found = record(tmp_path)
    assert found["config"] == CONFIG | {"layer_percents": [25, 50]}
    assert found["data"] == DATA
    assert found["seed"] == 7
    assert found["command"] == ["train.py", "--preset", "mini"]
    assert found["python"] == platform.python_version()
    packages = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy")
    assert found["versions"] == {"grpo_ao": __version__} | {
        name: version(name) for name in packages
    }
    assert found["started"].startswith("20")


def git(folder, *arguments):
    settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *settings, *arguments], cwd=folder, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_record_has_the_commit_of_the_code(tmp_path):
    head = git(REPOSITORY, "rev-parse", "HEAD")
    RunFolder(tmp_path, resume=False).write_record(CONFIG, DATA)
    found = record(tmp_path)["git_commit"]
    assert (found or "").removesuffix("-dirty") == head


def test_a_commit_with_changes_is_dirty(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-m", "One")
    git(tmp_path, "tag", "v1")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert len(head) == 40
    (tmp_path / "untracked").write_text("2\n")
    assert git_commit(tmp_path) == head
    (tmp_path / "code.py").write_text("2\n")
    assert git_commit(tmp_path) == f"{head}-dirty"


@pytest.mark.parametrize(
    "error", [FileNotFoundError("git"), subprocess.CalledProcessError(128, "git")]
)
def test_without_git_there_is_no_commit(tmp_path, monkeypatch, error):
    def no_git(*_, **__):
        raise error

    monkeypatch.setattr(module.subprocess, "run", no_git)
    RunFolder(tmp_path, resume=False).write_record(CONFIG, DATA)
    assert record(tmp_path)["git_commit"] is None


def resume(folder, config=CONFIG, data=DATA):
    changeable = ("resume", "output_dir", "report_to")
    folder = RunFolder(folder, resume=True)
    folder.write_record(config | {"resume": True}, data, changeable, {"new_setting": 3})


@pytest.fixture
def stopped(tmp_path):
    """The folder of a run that has ended."""
    RunFolder(tmp_path, resume=False).write_record(CONFIG, DATA)
    return tmp_path


def test_the_same_settings_resume_and_the_record_stays_the_first(stopped):
    before = (stopped / "run.json").read_text()
    resume(stopped)
    assert (stopped / "run.json").read_text() == before


@pytest.mark.parametrize(
    ("name", "value", "was", "now"),
    [
        ("lr", 1e-5, "1e-06", "1e-05"),
        ("seed", 8, "7", "8"),
        ("layer_percents", (25,), r"\[25, 50\]", r"\[25\]"),
        ("trl", {"max_grad_norm": 0.5}, r"\{\}", r"\{'max_grad_norm': 0.5\}"),
        ("new_setting", 4, "3", "4"),
        ("unknown_setting", 3, "None", "3"),
    ],
)
def test_a_changed_setting_is_refused_by_name(stopped, name, value, was, now):
    with pytest.raises(ValueError, match=f"cannot resume: '{name}' was {was} .* is {now} now"):
        resume(stopped, CONFIG | {name: value})


def test_all_that_differs_is_named_at_once(stopped):
    with pytest.raises(UserError, match=r"'lr' was .*; 'seed' was .*; the digest of 'train' was "):
        resume(stopped, {"lr": 1.0, "seed": 8}, {"train": "cccc"})


def test_what_no_result_depends_on_may_change_and_is_recorded(stopped):
    resume(stopped, CONFIG | {"report_to": "wandb", "new_setting": 3})
    assert record(stopped)["config"]["report_to"] == "wandb"


def test_the_version_that_made_the_run_is_named(stopped):
    found = record(stopped)
    found["versions"]["grpo_ao"] = "0.0.1"
    atomic_write_json(stopped / "run.json", found)
    said = rf"in this run, by grpo_ao 0.0.1 .this is {__version__}., and is 3 now"
    with pytest.raises(UserError, match=said):
        resume(stopped, CONFIG | {"unknown_setting": 3})


@pytest.mark.parametrize("path", [".", "/", "file/run", "a" * 300, "/proc/run", "loop/run", "a\0b"])
def test_a_path_that_cannot_hold_a_run_is_one_sentence(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"^--output_dir .* cannot be used: [^\n]*\.$"):
        RunFolder(Path(path), resume=False).write_record(CONFIG, DATA)


def test_a_start_that_is_refused_later_leaves_no_folder(tmp_path):
    RunFolder(tmp_path / "runs" / "one", resume=False)
    assert not (tmp_path / "runs").exists()


def test_changed_data_are_refused_by_name(stopped):
    said = r"cannot resume: the digest of 'train' was 'aaaa' .* is 'cccc' now"
    with pytest.raises(ValueError, match=said):
        resume(stopped, data=DATA | {"train": "cccc"})


def test_a_run_that_was_moved_resumes(tmp_path):
    (tmp_path / "old").mkdir()
    config = CONFIG | {"output_dir": "old"}
    RunFolder(tmp_path / "old", resume=False).write_record(config, DATA)
    (tmp_path / "old").rename(tmp_path / "new")
    resume(tmp_path / "new", CONFIG | {"output_dir": "new"})
    assert record(tmp_path / "new")["config"]["output_dir"] == "old"


# What cannot be written

UNWRITABLE = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG]


@pytest.mark.parametrize("number", UNWRITABLE)
def test_what_cannot_be_written_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch, number):
    def fail(_descriptor):
        raise OSError(number, os.strerror(number))

    text, rows = tmp_path / "text", tmp_path / "rows.jsonl"
    atomic_write_text(text, "old")
    append_jsonl(rows, [{"a": 1}])
    monkeypatch.setattr(os, "fsync", fail)
    reason = re.escape(os.strerror(number))
    with pytest.raises(UserError, match=rf"text cannot be written: {reason}\. .*--resume"):
        atomic_write_text(text, "new")
    with pytest.raises(UserError, match=rf"rows\.jsonl cannot be written: {reason}"):
        append_jsonl(rows, [{"a": 2}])
    assert text.read_text() == "old"
    assert read_jsonl(rows)[0] == {"a": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "text"]


def test_a_path_below_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "text", tmp_path / "file" / "folder" / "text"):
        with pytest.raises(UserError, match=r"text cannot be written: "):
            atomic_write_text(path, "new")
    with pytest.raises(UserError, match=r"rows cannot be written: "):
        append_jsonl(tmp_path / "file" / "rows", [{}])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
        SafetensorError("Error while serializing: I/O error: No space left on device"),
    ],
)
def test_a_full_disk_in_a_librarys_words_is_one_sentence(tmp_path, error):
    said = r"checkpoint-3 cannot be written: the disk is full\."
    with pytest.raises(UserError, match=said), write_faults(tmp_path / "checkpoint-3"):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError(errno.EBADF, "bad")])
def test_other_errors_keep_their_traceback(tmp_path, error):
    with pytest.raises(type(error)) as caught, write_faults(tmp_path):
        raise error
    assert caught.value is error


# What a run keeps of itself


def test_activations_from_another_source_are_refused_on_resuming(tmp_path):
    atomic_write_json(tmp_path / "run.json", {"seed": 7})
    for name, source in (("training", "a"), ("held-out", "b"), ("training", "a")):
        record_activations(tmp_path, name, source)
    expected = {"seed": 7, "activations": {"training": "a", "held-out": "b"}}
    assert read_json(tmp_path / "run.json") == expected
    with pytest.raises(UserError, match=r"the held-out texts were b and are c now"):
        record_activations(tmp_path, "held-out", "c")
    assert read_json(tmp_path / "run.json") == expected


def test_a_run_counts_the_seconds_of_all_its_processes(tmp_path):
    path, started = tmp_path / "run.json", time.perf_counter()
    atomic_write_json(path, {"id": "of the run"})
    Stopwatch(path, started - 100).keep({"warm start": 30.0, "GRPO": 50.0}, "H100")
    second = Stopwatch(path, started - 20)
    assert second.seconds >= 120
    second.keep({"GRPO": 15.0}, "H200")
    second.keep({"GRPO": 16.0}, "H200")
    kept = read_json(path)
    assert kept.pop("seconds") >= 120
    phases = {"warm start": 30.0, "GRPO": 66.0}
    assert kept == {"id": "of the run", "phases": phases, "devices": ["H100", "H200"]}
    assert Stopwatch(path, time.perf_counter()).seconds >= 120


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": ' * 100_000, "\udc80"])
def test_a_damaged_record_is_named(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"run\.json is damaged: "):
        read_json(path)
