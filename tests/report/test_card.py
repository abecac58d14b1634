import re
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError

from grpo_ao.cli import main
from grpo_ao.errors import UserError
from grpo_ao.files import MINI_WEIGHTS
from grpo_ao.report import card, headline
from grpo_ao.report.card import check_push, push_adapter, write_card
from grpo_ao.report.headline import METRICS, headline_of
from grpo_ao.report.run_record import read_run
from tests.report.made_run import make_run, write_json

FILES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "ao_config.json",
    "reliability.png",
}  # fmt: skip


def written(folder, name: str | None = None) -> str:
    record = read_run(folder)
    return write_card(record, headline_of(record, draws=20), name).read_text()


def change_config(folder, **settings) -> None:
    run = read_run(folder).run
    write_json(folder / "run.json", run | {"config": run["config"] | settings})


def tables(text: str) -> list[list[str]]:
    """Each table's lines."""
    return [found[0].splitlines() for found in re.finditer(r"(^\|.*\n)+", text, re.M)]


def results_of(text: str) -> Any:
    """The numbers in a card's metadata."""
    data: Any = ModelCard(text).data
    return data.eval_results


@pytest.fixture
def run_folder(tmp_path):
    return make_run(tmp_path / "run", evaluations=True)


class FakeHub:
    """Stands for the Hub's client; refuses what ``refuses`` names, with ``error``."""

    def __init__(self, refuses: str = "", error: Exception | None = None):
        self.refuses, self.error = refuses, error
        self.made: list[str] = []
        self.public = False
        self.uploaded: dict[str, set[str]] = {}

    def create_repo(self, repository, private, exist_ok):
        assert exist_ok
        self.public |= not private
        if self.refuses == "create" and self.error:
            raise self.error
        self.made.append(repository)
        return SimpleNamespace(repo_id=repository if "/" in repository else f"me/{repository}")

    def upload_folder(self, repo_id, folder_path, commit_message):
        assert commit_message
        if self.refuses == "upload" and self.error:
            raise self.error
        self.uploaded[repo_id] = {path.name for path in folder_path.iterdir()}
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


@pytest.fixture
def hub(monkeypatch):
    return use(monkeypatch, FakeHub())


def use(monkeypatch, hub: FakeHub) -> FakeHub:
    monkeypatch.setattr(card, "HfApi", lambda: hub)
    monkeypatch.setattr(card, "get_token", lambda: "hf_token")
    monkeypatch.setattr(headline, "headline_of", partial(headline_of, draws=20))
    return hub


# The card


def test_the_card_has_the_metadata_that_the_hub_reads(run_folder):
    data = ModelCard(written(run_folder)).data.to_dict()
    assert data["base_model"] == "Qwen/Qwen3-8B"
    assert data["library_name"] == "peft"
    assert data["datasets"] == ["someone/questions"]
    assert {"activation-oracle", "lora"} <= set(data["tags"])
    # The Hub cannot run what needs activations injected.
    assert not {"license", "pipeline_tag"} & data.keys()


def test_the_metadata_has_the_measured_numbers(run_folder):
    found = {(r.dataset_config, r.metric_type): r for r in results_of(written(run_folder))}
    headline = headline_of(read_run(run_folder), draws=20)
    assert headline
    assert found.keys() == set(product(("closed", "open"), METRICS))
    for (kind, metric), result in found.items():
        value = headline.modes["greedy"][kind]["after"][metric]["value"]
        assert result.metric_value == round(value, 4)
        assert result.dataset_name == f"held-out texts of someone/questions, {kind} questions"


def test_a_card_without_measurements_has_no_numbers_in_its_metadata(tmp_path):
    folder = make_run(tmp_path / "run")
    # A run that was killed between the sampled and the greedy answers.
    (folder / "heldout_after_greedy.jsonl").unlink()
    assert results_of(written(folder)) is None
    for path in folder.glob("heldout_*"):
        path.unlink()
    assert results_of(written(folder)) is None


def test_no_folder_of_this_machine_is_named(run_folder, tmp_path):
    local = {name: str(tmp_path / name) for name in ("model", "oracle_lora_path", "questions")}
    change_config(run_folder, **local)
    text = written(run_folder)
    assert str(tmp_path) not in text
    assert "starting from `oracle_lora_path`" in text
    assert not {"base_model", "datasets"} & ModelCard(text).data.to_dict().keys()


def test_the_card_says_what_the_number_means_and_where_it_fails(run_folder):
    text = written(run_folder)
    assert "On closed questions the stated confidence" in text
    assert "On open questions, after less before, paired: " in text
    # One answer to an open question has no grade.
    for name in ("its own text", "noise of the same norms"):
        graded = re.findall(rf"\| {name} † \| (\d+) \| 0\.\d+ \| 0\.\d+ \|", text)
        assert graded == ["30", "29"]
    assert "Only 20 texts stand behind this, fewer than 30" in text
    assert "\n\n\N{DAGGER} of fewer than 30 texts" in text


def test_the_judge_is_named_as_it_is(run_folder):
    assert "judged by some/judge (`api`)" in written(run_folder)
    change_config(run_folder, judge="my_judge:make")
    assert "judged by `my_judge:make`" in written(run_folder)


def test_the_reward_is_the_one_of_the_run(run_folder):
    assert "0.5 · (confidence" in written(run_folder)
    change_config(run_folder, reward="my_reward:log_score")
    text = written(run_folder)
    assert "`my_reward:log_score` of confidence and informativeness" in text and "²" not in text


def test_the_card_says_whether_a_step_of_grpo_is_in_what_ships(run_folder):
    summary = read_run(run_folder).summary
    write_json(run_folder / "summary.json", summary | {"ships": "GRPO, step 20"})
    text = written(run_folder)
    assert "\n\nIt was trained with GRPO" in text and "is the warm start" not in text
    assert "taught it of greedy answers. GRPO trained it on answers sampled at temp" in text
    write_json(run_folder / "summary.json", summary | {"ships": "warm start"})
    text = written(run_folder)
    assert "\n\nIt is the warm start" in text and "trained with GRPO" not in text
    assert "taught it of greedy answers.\n- " in text and "answers sampled at" not in text
    write_json(run_folder / "summary.json", summary | {"ships": "adapter as it was"})
    text = written(run_folder)
    assert "as it was, measured by a run of grpo_ao: no step of GRPO was better" in text
    assert "trained with GRPO" not in text and "answers sampled at" not in text


def test_every_table_of_the_card_is_whole(run_folder):
    found = tables(written(run_folder))
    assert len(found) == 13
    for lines in found:
        widths = {line.rstrip().count("|") for line in lines}
        assert len(widths) == 1, lines
        assert set(lines[1].strip()) <= set("| -")


def test_the_card_shows_the_numbers_of_the_run(run_folder):
    text = written(run_folder)
    headline = headline_of(read_run(run_folder), draws=20)
    assert headline
    sampled = headline.modes["sampled"]["closed"]
    assert f"| ECE, 10 bins | {sampled['before']['ece10']['value']:.3f} [" in text
    assert f"| {sampled['after']['ece10']['value']:.3f} [" in text
    assert "| sst2 | 250 | 0.750 [0.625, 0.875] |" in text
    of_one = "0.750 [0.625, 0.875]"
    assert re.search(r"\| stated confidence \| 250 \| .*" + re.escape(f"{of_one} | " * 3), text)
    assert "| judge | some/judge (`api`), rubric v1 |" in text
    assert re.search(r"\| agreement of 20 \N{DAGGER} \| 20 \| 0\.\d+ ", text)
    assert "40 steps of 8 questions, 8 completions each" in text
    assert "![Reliability diagrams before and after training](reliability.png)" in text
    assert (run_folder / "adapter" / "reliability.png").read_bytes() == b"png"


def test_the_card_says_how_to_load_what_it_lies_beside(run_folder):
    assert 'Oracle.from_pretrained("Qwen/Qwen3-8B", "me/oracle")' in written(
        run_folder, "me/oracle"
    )
    assert "--oracle_lora_path adapter --positions last:20 " in written(run_folder)


def test_the_cards_own_example_runs_as_printed(run_folder, capsys):
    text = written(run_folder, "me/oracle").replace("me/oracle", str(MINI_WEIGHTS / "oracle"))
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(block.replace("Qwen/Qwen3-8B", str(MINI_WEIGHTS / "base")), {})
    assert re.fullmatch(r"[01]\.\d+ \S.*\n", capsys.readouterr().out)


def test_a_run_without_measurements_or_benchmarks_has_a_card(tmp_path):
    folder = make_run(tmp_path / "run")
    for path in folder.glob("heldout_*"):
        path.unlink()
    text = written(folder)
    assert "Not measured." in text
    assert "Benchmarks" not in text


def test_a_run_without_an_adapter_has_no_card(tmp_path):
    folder = make_run(tmp_path / "run", finished=False)
    with pytest.raises(UserError, match="there is no trained adapter in"):
        written(folder)


# To the Hub


def test_a_push_takes_the_adapter_with_card_figure_and_spec(run_folder, hub, capsys):
    main(["push", str(run_folder), "me/oracle"])
    assert hub.uploaded == {"me/oracle": FILES}
    assert capsys.readouterr().out.strip() == "https://hub/me/oracle/commit/1"
    assert '"me/oracle"' in (run_folder / "adapter" / "README.md").read_text()


def test_no_repository_is_made_for_a_run_of_which_there_is_no_card(run_folder, hub, monkeypatch):
    monkeypatch.setattr("grpo_ao.report.headline.headline_of", lambda _: None)  # which takes long
    (run_folder / "adapter" / "README.md").mkdir()
    with pytest.raises(IsADirectoryError):
        main(["push", str(run_folder), "me/oracle"])
    assert hub.made == []


def test_a_repository_is_private_unless_it_is_to_be_public(run_folder, hub):
    main(["push", str(run_folder), "me/oracle"])
    assert not hub.public
    main(["push", str(run_folder), "me/oracle", "--push_public"])
    assert hub.public


def test_a_name_without_its_owner_is_the_users(run_folder, hub):
    push_adapter(run_folder, "oracle")
    assert list(hub.uploaded) == ["me/oracle"]


def test_a_missing_token_is_one_sentence(monkeypatch):
    monkeypatch.setattr(card, "get_token", lambda: None)
    with pytest.raises(ValueError) as caught:
        check_push("me/oracle")
    assert str(caught.value) == (
        "the adapter cannot be pushed to me/oracle: there is no token of the Hugging Face Hub. "
        "Log in by `hf auth login` or set HF_TOKEN."
    )


def forbidden() -> HfHubHTTPError:
    response: Any = SimpleNamespace(headers={}, request=None)
    said = "You may not write here.\nSorry."
    return HfHubHTTPError("403", response=response, server_message=said)


def test_a_token_that_may_not_write_is_refused_before_the_run(monkeypatch):
    use(monkeypatch, FakeHub("create", forbidden()))
    with pytest.raises(ValueError) as caught:
        check_push("other/oracle")
    assert str(caught.value) == (
        "the adapter cannot be pushed to other/oracle (You may not write here): check the name, "
        "USER/NAME, the network, and that the token may write there."
    )


def test_a_failed_upload_says_how_to_try_again(run_folder, monkeypatch):
    use(monkeypatch, FakeHub("upload", ConnectionError("no route to host")))
    with pytest.raises(ValueError) as caught:
        push_adapter(run_folder, "me/oracle")
    assert str(caught.value) == (
        f"the adapter in {run_folder / 'adapter'} could not be uploaded to me/oracle (no route to "
        f"host): try again by `grpo-ao push {run_folder} me/oracle`."
    )


def test_the_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    monkeypatch.setattr(card, "HfApi", lambda: card_client("http://127.0.0.1:9"))
    with pytest.raises(ValueError, match=r"cannot be pushed to me/oracle \(.*refused.*\): check"):
        check_push("me/oracle")


def card_client(endpoint: str):
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint, token="hf_token")


def test_a_run_that_could_not_push_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "get_token", lambda: None)
    folder = tmp_path / "run"
    small = [
        "--eval_probes",
        "4",
        "--warm_start_probes",
        "4",
        "--max_steps",
        "1",
        "--questions_per_step",
        "4",
    ]
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "train",
                "--preset",
                "mini",
                "--output_dir",
                str(folder),
                "--push_to_hub",
                "me/oracle",
                *small,
            ]
        )
    assert "there is no token of the Hugging Face Hub" in str(caught.value)
    assert not (folder / "run.json").exists()
