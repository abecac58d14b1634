"""The API judge: a language model behind an endpoint."""

import asyncio
import json
from collections.abc import Sequence

from grpo_ao.chat import (
    ChatEndpoint,
    ChatFailure,
    ChatSettings,
    Connection,
    describe,
    explain,
)
from grpo_ao.completions import ReplyError, Usage, content_of, usage_of
from grpo_ao.judges.protocol import Grade, GradeRequest, JudgeError
from grpo_ao.judges.replies import JSON_REMINDER, JSON_REPLY, grade_schema, parse_grade
from grpo_ao.judges.rubric import TRIAL, judge_prompt, rubric_version

# An endpoint that is not there is reported after seconds, not after all attempts of a grade.
_TRIAL_ATTEMPTS = 3
_LONGEST_RAW = 2_000


class ApiJudge:
    """Grades by a language model behind an endpoint.

    Failures of the endpoint are tried again as ``ChatSettings`` says; a reply that is not exactly
    a grade is asked for once more. What has no grade then is None, with the reason.
    """

    def __init__(self, settings: ChatSettings) -> None:
        self.settings = settings
        self._endpoint = ChatEndpoint(settings)

    @property
    def identity(self) -> str:
        """Model, endpoint, generation settings and the rubric's version, as JSON."""
        facts = {
            "judge": "api",
            "rubric": rubric_version(),
            "model": self.settings.model,
            "endpoint": self.settings.base_url.rstrip("/"),
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
        }
        return json.dumps(facts)

    async def check(self) -> None:
        """Grade one answer for trial.

        Raises, in one sentence, ChatError for a missing key, JudgeError for a refused one, an
        unknown model, an endpoint that is not there, and a model whose replies are no grades.
        """
        async with self._endpoint.connect(_TRIAL_ATTEMPTS) as connection:
            try:
                grade = await self._ask(connection, TRIAL)
            except ChatFailure as error:
                raise JudgeError(explain(error, self.settings)) from error
        if grade.score is None:
            said = "" if grade.raw is None else f" (it said {grade.raw[:80]!r})"
            raise JudgeError(
                f"the model {self.settings.model!r} at {self.settings.base_url} gives no grade: "
                f"{grade.reason}{said}."
            )

    async def grade(self, requests: Sequence[GradeRequest]) -> list[Grade]:
        """Grade at once, ``concurrency`` at a time; ChatError where the key is missing."""
        async with self._endpoint.connect() as connection, asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._grade(connection, request)) for request in requests]
        return [task.result() for task in tasks]

    async def _grade(self, connection: Connection, request: GradeRequest) -> Grade:
        try:
            return await self._ask(connection, request)
        except ChatFailure as error:
            return Grade(None, describe(error), None, None, None, None)

    async def _ask(self, connection: Connection, request: GradeRequest) -> Grade:
        """Ask, and once more if the reply is no grade; raise what ``complete`` raises."""
        prompt, schema = judge_prompt(request, JSON_REPLY), grade_schema(request.kind)
        spent, reason, raw = Usage(), None, None
        for turn in (prompt, prompt + JSON_REMINDER):
            try:
                completion = await connection.complete(turn, schema)
                spent = spent.plus(self._priced(usage_of(completion)))
                raw = content_of(completion)
                score = parse_grade(raw, request.kind)
            except ReplyError as error:
                reason = str(error)
            else:
                return Grade(score, None, raw, *spent)
        return Grade(None, reason, raw and _storable(raw), *spent)

    def _priced(self, usage: Usage) -> Usage:
        return usage.at_prices(self.settings.input_price, self.settings.output_price)


def _storable(raw: str) -> str:
    # A model may write escaped lone surrogates, which no file and no database takes.
    return raw[:_LONGEST_RAW].encode("utf-8", "replace").decode()
