import base64
import hashlib
import json
import re

import pytest

from grpo_ao.cli import main
from grpo_ao.report.headline import headline_of
from grpo_ao.report.page import render_report
from grpo_ao.report.run_record import read_run
from tests.report.made_run import HOSTILE, PROBES, make_run, metrics_rows, write_rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return render(make_run(tmp_path_factory.mktemp("report") / "run", evaluations=True))


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    return render(make_run(tmp_path_factory.mktemp("report") / "run", finished=False))


def render(folder) -> str:
    record = read_run(folder)
    return render_report(record, headline_of(record, draws=20), draws=20)


def data_of(page: str) -> dict:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="([\w-]+)"', page)


def words(page: str) -> str:
    """The page's text, on one line."""
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_a_finished_run_has_every_section(finished):
    assert sections(finished) == [
        "meaning", "results", "breakdown", "benchmarks", "training", "warm-start", "answers",
        "setup",
    ]  # fmt: skip
    assert "Finished: 40 steps. The process ran for 1.5 minutes." in words(finished)


def test_an_unfinished_run_shows_what_it_has(unfinished):
    assert sections(unfinished) == [
        "meaning", "results", "breakdown", "training", "warm-start", "answers", "setup",
    ]  # fmt: skip
    assert "Stopped at step 20 of 40." in words(unfinished)
    assert "Measured before training only." in words(unfinished)
    assert "→" not in unfinished


def test_a_run_that_has_just_begun_shows_its_setup(tmp_path):
    folder = make_run(tmp_path / "run", finished=False)
    for path in folder.iterdir():
        if path.is_file() and path.name != "run.json":
            path.unlink()
    (folder / "warm_start" / "summary.json").unlink()
    page = render(folder)
    assert sections(page) == ["setup"]
    assert "Stopped at step 0 of 40." in words(page)


def test_the_setup_says_what_was_run(finished):
    text = words(finished)
    for fact in ("Qwen/Qwen3-8B", "someone/oracle", "c0ffee", "torch 2.13.0", "Seed 7",
                 "0123456789abcdef", "train.py --preset mini", "warm_start_batch 32",
                 "Judge api, model some/judge, rubric v1"):  # fmt: skip
        assert fact in text


def test_held_out_answers_are_broken_down_by_layer_and_family(finished):
    section = finished[finished.index('id="breakdown"') : finished.index('id="benchmarks"')]
    names = re.findall(r'<th scope="row".*?>(.*?)</th>', section)
    layers = [
        f"layer {layer}, {kind} \N{DAGGER}" for kind in ("open", "closed") for layer in (9, 18, 27)
    ]
    assert names[:6] == layers
    assert sorted(names[6:]) == ["city, closed \N{DAGGER}", "topic, open \N{DAGGER}"]
    assert re.findall(r'aria-label="(Right and confident by \w+)"', section) == [
        "Right and confident by layer", "Right and confident by family",
    ]  # fmt: skip


def test_no_text_of_the_run_is_markup(finished):
    # The curves' alerts, the script's data and the list of alerts hold it, escaped.
    assert HOSTILE not in finished
    assert "<img src=x" not in finished
    assert "<b>bold" not in finished
    assert finished.count("</script>") == 2
    assert data_of(finished)["items"][0]["text"] == [HOSTILE[:10], HOSTILE[10:19], HOSTILE[19:]]


def test_the_page_fetches_nothing_and_runs_its_own_script_alone(finished):
    assert not re.search(r'(src|href)="(?!#)', finished)
    script = re.findall(r"<script>(.*?)</script>", finished, re.S)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in finished  # fmt: skip # noqa: E501


def test_answers_of_all_measurements_and_rollouts_can_be_browsed(finished):
    data = data_of(finished)
    assert data["views"] == [
        "after sampled", "after greedy", "before sampled", "before greedy", "rollouts",
    ]  # fmt: skip
    assert data["totals"] == {"heldout": PROBES, "rollouts": 4}
    assert len(data["items"]) == PROBES + 4
    assert [len(item["answers"]) for item in data["items"]] == [4] * (PROBES + 4)
    assert data["items"][-1]["step"] == 20


def test_alerts_are_listed_and_marked_on_their_curve(finished):
    assert "Step 10 all alike" in words(finished)
    figures = re.findall(r'<figure data-curve="(\w+)">(.*?)</figure>', finished, re.S)
    marks = {name: set(re.findall(r'href="#(alert-\d)"', figure)) for name, figure in figures}
    # The second alert has no curve of its own, so it is on all of them.
    second = {"alert-2"}
    assert marks == {
        "reward": second, "auroc": second, "confidence_std": {"alert-1"} | second,
        "seconds_generate": second,
    }  # fmt: skip


def test_a_metric_that_was_never_known_has_no_curve(finished):
    assert 'data-curve="kl"' not in finished
    assert data_of(finished)["curves"]["auroc"][0] is None


def test_a_single_evaluation_is_not_compared_with_itself(tmp_path):
    folder = make_run(tmp_path / "run", finished=False, evaluations=True)
    for name in ("step_000020", "after"):
        (folder / "eval" / name / "metrics.json").unlink()
    text = words(render(folder))
    assert "Benchmarks, closed questions, before training" in text
    assert "All benchmarks 250 0.500 [0.375, 0.625]" in text
    assert "Change since" not in text


def test_the_page_of_a_long_run_stays_small(tmp_path):
    folder = make_run(tmp_path / "run")
    write_rows(folder / "metrics.jsonl", metrics_rows(9000))
    page = render(folder)
    assert len(page) < 1_000_000
    assert len(data_of(page)["steps"]) == 1800


def test_the_command_writes_the_report_and_says_where(tmp_path, capsys):
    folder = make_run(tmp_path / "run", finished=False)
    main(["report", str(folder)])
    path = folder / "report.html"
    assert capsys.readouterr().out.strip() == str(path)
    assert path.read_text().startswith("<!DOCTYPE html>")


def test_the_command_names_a_folder_without_a_run(tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(["report", str(tmp_path)])
    expected = f"error: there is no run in {tmp_path}: it holds no run.json."
    assert str(caught.value) == expected


def untagged(folder, when: str) -> None:
    """Make the answers those of an oracle that never learned the tag."""
    for mode in ("sampled", "greedy"):
        path = folder / f"heldout_{when}_{mode}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        plain = {"completion": "Rome", "confidence": None}
        write_rows(path, [row | plain for row in rows])


def test_an_oracle_without_the_tag_has_no_confidence_to_show(tmp_path):
    folder = make_run(tmp_path / "run", finished=False)
    untagged(folder, "before")
    page = render(folder)
    assert "Parse rate 0.000 [0.000, 0.000]" in words(page)
    assert "No output states a confidence, so that only accuracy" in words(page)
    assert "Is it right as often as it says?" not in page
    assert 'aria-label="Right and confident' not in page
    items = data_of(page)["items"]
    assert {answer["confidence"] for item in items[:PROBES] for answer in item["answers"]} == {None}


def test_an_oracle_that_learned_the_tag_is_shown_from_then_on(tmp_path):
    folder = make_run(tmp_path / "run")
    untagged(folder, "before")
    page = render(folder)
    assert re.search(r"ECE, 10 bins – 0\.\d+ \[0\.\d+, 0\.\d+\] –", words(page))  # noqa: RUF001
    assert re.search(r"Parse rate 0\.000 \[0\.000, 0\.000\] 0\.967 .* \+0\.967", words(page))
    assert 'class="key before"' not in page
    assert 'class="key after"' in page


def test_the_page_opens_with_a_verdict_on_each_kind_of_question(finished, unfinished):
    opening = words(finished[finished.index('id="meaning"') : finished.index('id="results"')])
    higher = (
        "the stated confidence is higher on right answers than on wrong ones of the same family"
    )
    assert f"On closed questions {higher}" in opening
    assert f"On open questions {higher}" in opening
    assert "60 held-out questions about 21 texts" in opening
    warned = re.findall(r"Only (\d+) texts stand behind this, fewer than 30", opening)
    # One text of open questions has no graded answer.
    assert warned == ["20", "20"]
    assert "On closed questions, after less before, paired: " in opening
    assert "On open questions, AUROC within families of other sources" in opening
    assert "was not seen to tell right answers from wrong ones" in words(unfinished)


def test_every_table_is_there(finished):
    names = re.findall(r'role="region" aria-label="(.*?)"', finished)
    assert names == [
        "All metrics, closed questions, sampled answers",
        "All metrics, open questions, sampled answers",
        "All metrics, closed questions, greedy answers",
        "All metrics, open questions, greedy answers",
        "Sources of confidence, closed questions, greedy answers after training",
        "Sources of confidence, open questions, greedy answers after training",
        "Held-out answers by layer", "Held-out answers by family",
        "Benchmarks, closed questions, after training",
        "Other sources of confidence, on the same answers",
        "Change since before training, paired", "All benchmarks, in the course of training",
        "Warm start", "Setup", "Configuration",
    ]  # fmt: skip
    text = words(finished)
    of_one = "0.750 [0.625, 0.875] "
    assert f"All benchmarks 250 {of_one * 7}" in text
    assert "All benchmarks 250 −0.500 [−0.750, −0.250]" in text  # noqa: RUF001
    assert f"step 20, closed questions 250 {'0.600 [0.475, 0.725] ' * 7}".strip() in text
    assert 'aria-label="risk coverage"' in finished
