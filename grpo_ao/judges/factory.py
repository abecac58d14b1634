"""Choose a judge by its name."""

from pathlib import Path
from typing import Literal

from grpo_ao.chat.client import ChatSettings
from grpo_ao.judges.api import ApiJudge
from grpo_ao.judges.cache import CachedJudge
from grpo_ao.judges.local import LocalJudge
from grpo_ao.judges.protocol import CheckedJudge
from grpo_ao.judges.reference import ReferenceJudge

JudgeKind = Literal["api", "local", "reference"]


def make_judge(
    kind: JudgeKind,
    chat: ChatSettings | None = None,
    local: LocalJudge | None = None,
    cache: Path | None = None,
) -> CheckedJudge:
    """Return the judge of this kind, its grades kept in the file ``cache`` where one is given.

    ``api`` needs ``chat``, ``local`` needs ``local``; reference grades cost nothing and are never
    kept. Call ``check`` of the judge before relying on it.
    """
    if kind == "reference":
        return ReferenceJudge()
    judge = local if kind == "local" else chat and ApiJudge(chat)
    if judge is None:
        raise ValueError(f"the judge '{kind}' cannot be made without its settings or its model.")
    return judge if cache is None else CachedJudge(judge, cache)
