"""Choose a judge by its flags."""

from pathlib import Path
from typing import cast

from grpo_ao.errors import UserError
from grpo_ao.extensions import load_function, own_code
from grpo_ao.judges.api import ApiJudge
from grpo_ao.judges.cache import CachedJudge
from grpo_ao.judges.flags import JudgeFlags
from grpo_ao.judges.local import LocalJudge
from grpo_ao.judges.protocol import CheckedJudge, PaidJudge
from grpo_ao.judges.reference import ReferenceJudge


def make_judge(flags: JudgeFlags, local: LocalJudge | None = None) -> CheckedJudge:
    """Return the judge that the flags name; call its ``check`` before relying on it.

    ``MODULE:FUNCTION`` is called without arguments. The judge ``local`` needs its model.
    """
    if flags.judge == "reference":
        return ReferenceJudge()
    if ":" in flags.judge:
        judge = _own_judge(flags.judge)
    else:
        judge = local if flags.judge == "local" else ApiJudge(flags.chat_settings())
    if judge is None:
        raise UserError("the judge 'local' cannot be made without its model.")
    return judge


def with_cache(judge: CheckedJudge, cache: Path) -> CheckedJudge:
    """Let a judge keep its grades in the file ``cache``; the reference judge's cost nothing."""
    return (
        judge if isinstance(judge, ReferenceJudge) else CachedJudge(cast("PaidJudge", judge), cache)
    )


def _own_judge(name: str) -> PaidJudge:
    make = load_function(name, "--judge")
    with own_code(name, "--judge"):
        judge = make()
    if not isinstance(judge, CheckedJudge):
        raise UserError(
            f"--judge {name} returns a {type(judge).__name__}, which lacks one of grade, check and "
            "identity: see grpo_ao.judges.protocol.CheckedJudge."
        )
    # What a method takes is not checked at run time.
    return cast("PaidJudge", judge)
