"""Make a question set: texts in, questions with reference answers out, by a language model."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from huggingface_hub import get_token
from rich.console import Console

from grpo_ao.chat import ChatSettings
from grpo_ao.errors import UserError
from grpo_ao.numbers import check_numbers
from grpo_ao.probes.filters import TextFilter, TextRules
from grpo_ao.probes.question_file import QuestionFile
from grpo_ao.probes.question_prompt import prompt_version
from grpo_ao.probes.question_requests import QuestionRequests
from grpo_ao.probes.question_statistics import question_statistics, statistics_table
from grpo_ao.probes.rows import parse_row
from grpo_ao.probes.sources import LeftOut, SourceText, read_texts

# At 0 the questions about different texts are more alike.
_TEMPERATURE = 0.7
_MAX_TOKENS = 2048


@dataclass(frozen=True)
class QuestionsConfig:
    """Make a question set from texts, with a language model behind an endpoint."""

    source: str = "allenai/WildChat-1M"
    """Texts: a data set on the Hub (its split train), or a JSONL file."""
    column: str = "conversation"
    """Column with the text, or with a conversation, whose first user turn is the text."""
    output: Path = Path("questions.jsonl")
    """File of the rows. *.log.jsonl beside it says what each took, what is left out, and why."""
    resume: bool = False
    """Go on with the set in output."""
    num_texts: int = 1000
    """Ask about the first N texts that pass the filters."""

    language: str | None = "english"
    """Language of the texts, None for any. Where the source does not tell, the model does."""
    min_characters: int = 20
    """Shortest text."""
    max_characters: int = 4000
    """Longest text."""
    allow_toxic: bool = False
    """Take texts, too, that the source flags as toxic."""

    model: str = ChatSettings.model
    """Model of the endpoint."""
    base_url: str = ChatSettings.base_url
    """Any endpoint that speaks OpenAI's chat completions."""
    api_key_env: str | None = ChatSettings.api_key_env
    """Environment variable with the endpoint's key; None for a server that needs none."""
    concurrency: int = ChatSettings.concurrency
    """Requests in flight at the endpoint."""
    input_price: float | None = None
    """US dollars per million tokens read, where the endpoint does not tell costs."""
    output_price: float | None = None
    """US dollars per million tokens written."""
    max_cost: float | None = None
    """US dollars that the whole set may cost, what was spent before a --resume included."""
    push_to_hub: str | None = None
    """Repository on the Hub that the finished set is pushed to, as owner/name."""
    push_public: bool = False
    """Make that repository public where it is not there yet; else it is private."""

    def __post_init__(self) -> None:
        check_numbers(self, may_be_zero=("input_price", "output_price"))
        if self.max_characters < self.min_characters:
            raise UserError("--max_characters must be at least --min_characters.")

    def chat_settings(self) -> ChatSettings:
        """Return the endpoint's settings; ChatError where they cannot be."""
        return ChatSettings(
            model=self.model,
            base_url=self.base_url,
            api_key_env=self.api_key_env,
            concurrency=self.concurrency,
            temperature=_TEMPERATURE,
            max_tokens=_MAX_TOKENS,
            input_price=self.input_price,
            output_price=self.output_price,
        )

    def of_the_set(self) -> dict:
        """Return the settings that all rows of one set must share."""
        names = ("source", "column", "language", "min_characters", "max_characters")
        names += ("allow_toxic", "model", "base_url")
        return {name: getattr(self, name) for name in names} | {"prompt": prompt_version()}


def generate_questions(config: QuestionsConfig, console: Console) -> None:
    """Make the set that ``config`` describes, or go on with it; print what it is made of.

    Everything that can be refused without a request is refused before the first one (UserError).
    """
    settings = config.chat_settings()
    settings.api_key()
    if config.push_to_hub is not None and get_token() is None:
        raise UserError("--push_to_hub needs a token of the Hub: log in with `hf auth login`.")
    with QuestionFile(config.output, config.of_the_set(), config.resume) as file:
        texts = _choose(config, file, console)
        todo = [text for text in texts if not file.is_decided(text.text)]
        done = len(texts) - len(todo)
        console.print(f"{len(texts)} texts to ask about, {done} of them done.")
        asking = QuestionRequests(settings, config.language, config.max_cost, file, console)
        if todo:
            asyncio.run(asking.run(todo))
    rows = [parse_row(row) for row in file.rows]
    console.print(statistics_table(question_statistics(rows), str(file.path)))
    asking.check()
    if config.push_to_hub is not None:
        private = not config.push_public
        Dataset.from_list(file.rows).push_to_hub(config.push_to_hub, private=private)
        console.print(f"pushed to https://huggingface.co/datasets/{config.push_to_hub}")


def _choose(config: QuestionsConfig, file: QuestionFile, console: Console) -> list[SourceText]:
    """Return the first texts that pass the filters; log and count those that do not."""
    rules = TextRules(
        config.language, config.min_characters, config.max_characters, config.allow_toxic
    )
    filters, chosen, left_out = TextFilter(rules), [], []
    for entry in read_texts(config.source, config.column):
        reason = entry.reason if isinstance(entry, LeftOut) else filters.reason(entry)
        if isinstance(entry, SourceText) and reason is None:
            chosen.append(entry)
        else:
            left_out.append(LeftOut(entry.number, str(reason)))
        if len(chosen) == config.num_texts:
            break
    file.leave_out_unasked(left_out)
    if left_out:
        console.print(
            f"{len(left_out)} rows of {config.source} are left out, each with its reason in "
            f"{file.log_path}. The first: row {left_out[0].number}, {left_out[0].reason}."
        )
    if not chosen:
        raise UserError(f"{config.source} has no text that passes the filters.")
    return chosen
