"""Choose a judge by its flags."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from grpo_ao.chat import ChatSettings
from grpo_ao.errors import UserError
from grpo_ao.judges.api import ApiJudge
from grpo_ao.judges.cache import CachedJudge
from grpo_ao.judges.local import LocalJudge
from grpo_ao.judges.protocol import CheckedJudge
from grpo_ao.judges.reference import ReferenceJudge

JudgeKind = Literal["api", "local", "reference"]


@dataclass(frozen=True)
class JudgeFlags:
    """The flags that name a judge, for every command that needs one."""

    judge: JudgeKind = "api"
    """Who grades: an endpoint, the base model itself, or word overlap with reference answers."""
    judge_model: str = ChatSettings.model
    """Model of the endpoint."""
    judge_base_url: str = ChatSettings.base_url
    """Any endpoint that speaks OpenAI's chat completions."""
    judge_api_key_env: str | None = ChatSettings.api_key_env
    """Environment variable with the endpoint's key; None for a server that needs none."""
    judge_concurrency: int = ChatSettings.concurrency
    """Requests in flight at the endpoint."""
    judge_input_price: float | None = None
    """US dollars per million tokens read, where the endpoint does not tell costs."""
    judge_output_price: float | None = None
    """US dollars per million tokens written."""

    def chat_settings(self) -> ChatSettings:
        """Return the endpoint's settings; ChatError where they cannot be."""
        return ChatSettings(
            model=self.judge_model,
            base_url=self.judge_base_url,
            api_key_env=self.judge_api_key_env,
            concurrency=self.judge_concurrency,
            input_price=self.judge_input_price,
            output_price=self.judge_output_price,
        )


def make_judge(
    flags: JudgeFlags, local: LocalJudge | None = None, cache: Path | None = None
) -> CheckedJudge:
    """Return the judge that the flags name, its grades kept in the file ``cache`` if there is one.

    The judge ``local`` needs its model; reference grades cost nothing and are never kept. Call
    ``check`` of the judge before relying on it.
    """
    if flags.judge == "reference":
        return ReferenceJudge()
    judge = local if flags.judge == "local" else ApiJudge(flags.chat_settings())
    if judge is None:
        raise UserError("the judge 'local' cannot be made without its model.")
    return judge if cache is None else CachedJudge(judge, cache)
