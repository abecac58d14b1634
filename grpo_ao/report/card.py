"""The model card of a trained adapter, and its way to the Hugging Face Hub."""

import math
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # httpx or httpx2, by its version
)
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from grpo_ao.errors import UserError
from grpo_ao.files import adapter_of, atomic_write_text
from grpo_ao.probe import format_layers
from grpo_ao.report.formats import TITLES, number
from grpo_ao.report.headline import METRICS, Headline
from grpo_ao.report.meaning import reading_tables
from grpo_ao.report.page import PAGE
from grpo_ao.report.run_record import RunRecord
from grpo_ao.report.tables import benchmark_tables, heldout_tables

_FIGURE = "reliability.png"


def write_card(record: RunRecord, headline: Headline | None, name: str | None) -> Path:
    """Write ``adapter/README.md``, the card that the Hub shows, and its figure beside it.

    ``name`` is the repository that the card tells its reader to load. Of paths on this machine only
    the last part is named. Raises UserError if the run has no adapter yet.
    """
    adapter = adapter_of(record.folder)
    figure = record.folder / _FIGURE
    if figure.exists():
        shutil.copyfile(figure, adapter / _FIGURE)
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "public": _public}
    name = name or adapter.name
    text = environment.get_template("card.md.jinja").render(
        card_data=_card_data(record.config, headline, name).to_yaml().rstrip(),
        base=_public(record.config["model"]),
        name=name,
        judge=_judge(record),
        config=record.config,
        layers=_layers(record),
        run=record.run,
        steps=record.last_step,
        ships=record.summary.get("ships"),
        headline=headline,
        figure=figure.exists(),
        tables=heldout_tables(record, headline),
        reading=reading_tables(record.of_mode("greedy"), record.controls),
        benchmarks=benchmark_tables(record.evaluations),
    )
    atomic_write_text(adapter / "README.md", text)
    return adapter / "README.md"


def _layers(record: RunRecord) -> list[str]:
    """Return what the held-out questions were asked of: a layer each, or several together."""
    probes = [answer.probe for answers in record.heldout.values() for answer in answers]
    return [format_layers(layers) for layers in sorted({probe.layers for probe in probes})]


def _public(name: str) -> str:
    """Return a name of the Hub as it is, and of a folder or file its last part."""
    return name if _on_hub(name) else Path(name).name


def _judge(record: RunRecord) -> str:
    """Name who graded: a model by its own name, others by their flag's."""
    model = record.run.get("judge", {}).get("model")
    judge = record.config["judge"]
    return f"{model} (`{judge}`)" if judge == "api" and model else f"`{judge}`"


def check_push(repository: str, public: bool = False) -> None:
    """Make sure, before a run, that its adapter can be pushed; the repository is made here.

    It is private unless ``public``; one that is there stays what it is.

    Raises UserError in one sentence: no token, a name that is none, no right to write, no network.
    """
    if get_token() is None:
        raise UserError(
            f"the adapter cannot be pushed to {repository}: there is no token of the Hugging Face "
            "Hub. Log in by `hf auth login` or set HF_TOKEN."
        )
    _make_repository(repository, public)


def push_adapter(folder: Path, repository: str, public: bool = False) -> str:
    """Upload a run's adapter folder, card and all; return the address of the commit.

    Raises UserError in one sentence if the Hub does not take it.
    """
    adapter = adapter_of(folder)
    full_name = _make_repository(repository, public)
    try:
        commit = HfApi().upload_folder(
            repo_id=full_name,
            folder_path=adapter,
            commit_message="Upload a calibrated activation oracle",
        )
    except (OSError, HTTPError) as error:
        raise UserError(
            f"the adapter in {adapter} could not be uploaded to {full_name} ({_reason(error)}): "
            f"try again by `grpo-ao push {folder} {repository}`."
        ) from error
    return commit.commit_url


def _make_repository(repository: str, public: bool) -> str:
    """Make the repository if it is not there; return its name with its owner's."""
    try:
        return HfApi().create_repo(repository, private=not public, exist_ok=True).repo_id
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(
            f"the adapter cannot be pushed to {repository} ({_reason(error)}): check the name, "
            "USER/NAME, the network, and that the token may write there."
        ) from error


def _reason(error: Exception) -> str:
    """Return the Hub's own words, or the first line of the error."""
    words = error.server_message if isinstance(error, HfHubHTTPError) else None
    lines = (words or str(error)).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _card_data(config: dict[str, Any], headline: Headline | None, name: str) -> ModelCardData:
    """Return the card's header, without local folders, which the Hub does not know."""
    base, questions = config["model"], config["questions"]
    return ModelCardData(
        base_model=base if _on_hub(base) else None,
        datasets=[questions] if _on_hub(questions) else None,
        library_name="peft",
        tags=["activation-oracle", "interpretability", "calibration", "grpo", "lora"],
        model_name=name.rpartition("/")[2],
        eval_results=_results(questions, headline),
    )


def _results(questions: str, headline: Headline | None) -> list[EvalResult] | None:
    """Return what the greedy answers of the last measurement came to, as far as it is defined."""
    kinds = headline.modes.get("greedy", {}) if headline else {}
    last = headline.measured if headline else ""
    found = [
        EvalResult(
            task_type="other",
            task_name="Questions about activations, with stated confidence",
            dataset_type=_public(questions),
            dataset_name=f"held-out texts of {_public(questions)}, {kind} questions",
            dataset_config=kind,
            metric_type=metric,
            metric_name=TITLES[metric],
            metric_value=round(measured[last][metric]["value"], 4),
        )
        for kind, measured in kinds.items()
        for metric in METRICS
        if last in measured and math.isfinite(measured[last][metric]["value"])
    ]
    return found or None


def _on_hub(name: str) -> bool:
    return name.count("/") == 1 and not Path(name).exists() and not name.endswith(".jsonl")
