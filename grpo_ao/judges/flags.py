"""The flags that name a judge; light to import, since every command line has them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from grpo_ao.errors import UserError

if TYPE_CHECKING:
    from grpo_ao.chat import ChatSettings

JUDGES = ("api", "local", "reference")
PRICES = ("judge_input_price", "judge_output_price")

# Metadata of a field that a resumed run may change, since no result depends on it.
CHANGEABLE = {"changeable": True}


@dataclass(frozen=True)
class JudgeFlags:
    """The flags that name a judge, for every command that needs one."""

    judge: str = "api"
    """Who grades: `api` (an endpoint), `local` (the base model itself), `reference` (word overlap
    with reference answers), or MODULE:FUNCTION, which returns a judge of your own."""
    judge_model: str = "google/gemini-2.5-flash"
    """Model of the endpoint."""
    judge_base_url: str = field(default="https://openrouter.ai/api/v1", metadata=CHANGEABLE)
    """Any endpoint that speaks OpenAI's chat completions."""
    judge_api_key_env: str | None = field(default="OPENROUTER_API_KEY", metadata=CHANGEABLE)
    """Environment variable with the endpoint's key; None for a server that needs none."""
    judge_concurrency: int = field(default=64, metadata=CHANGEABLE)
    """Requests in flight at the endpoint."""
    judge_input_price: float | None = field(default=None, metadata=CHANGEABLE)
    """US dollars per million tokens read, where the endpoint does not tell costs."""
    judge_output_price: float | None = field(default=None, metadata=CHANGEABLE)
    """US dollars per million tokens written."""

    def __post_init__(self) -> None:
        if self.judge not in JUDGES and ":" not in self.judge:
            raise UserError(
                f"--judge {self.judge} is unknown: choose from {', '.join(JUDGES)}, or name your "
                "own as MODULE:FUNCTION."
            )

    def chat_settings(self) -> "ChatSettings":
        """Return the endpoint's settings; ChatError where they cannot be."""
        from grpo_ao.chat import ChatSettings

        return ChatSettings(
            model=self.judge_model,
            base_url=self.judge_base_url,
            api_key_env=self.judge_api_key_env,
            concurrency=self.judge_concurrency,
            input_price=self.judge_input_price,
            output_price=self.judge_output_price,
        )
