"""What `grpo-ao questions` is told; reading it loads no library."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from grpo_ao.errors import UserError
from grpo_ao.judges.flags import JudgeFlags
from grpo_ao.numbers import check_numbers

if TYPE_CHECKING:
    from grpo_ao.chat import ChatSettings

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

    model: str = JudgeFlags.judge_model
    """Model of the endpoint."""
    base_url: str = JudgeFlags.judge_base_url
    """Any endpoint that speaks OpenAI's chat completions."""
    api_key_env: str | None = JudgeFlags.judge_api_key_env
    """Environment variable with the endpoint's key; None for a server that needs none."""
    concurrency: int = JudgeFlags.judge_concurrency
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

    def chat_settings(self) -> "ChatSettings":
        """Return the endpoint's settings; ChatError where they cannot be."""
        from grpo_ao.chat import ChatSettings

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
        from grpo_ao.probes.question_prompt import prompt_version

        names = ("source", "column", "language", "min_characters", "max_characters")
        names += ("allow_toxic", "model", "base_url")
        return {name: getattr(self, name) for name in names} | {"prompt": prompt_version()}
