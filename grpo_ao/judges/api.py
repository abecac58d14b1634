"""The API judge: a language model behind an endpoint."""

import asyncio
import json
import logging
from collections.abc import Sequence

from grpo_ao.chat import (
    TRIAL_ATTEMPTS,
    ChatEndpoint,
    ChatSettings,
    Connection,
    EndpointError,
    explain,
)
from grpo_ao.chat_completion import ReplyError, Usage, content_of, usage_of
from grpo_ao.judges.protocol import Grade, GradeRequest, JudgeError, Keep, discard
from grpo_ao.judges.replies import JSON_REMINDER, JSON_REPLY, grade_schema, parse_grade
from grpo_ao.judges.rubric import TRIAL, judge_prompt, rubric_version

_LOG = logging.getLogger(__name__)
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
        async with self._endpoint.connect(TRIAL_ATTEMPTS) as connection:
            try:
                grade = await self._ask(connection, TRIAL)
            except EndpointError as failure:
                raise JudgeError(explain(failure, self.settings)) from failure
        if grade.score is None:
            said = "" if grade.raw is None else f" (it said {grade.raw[:80]!r})"
            raise JudgeError(
                f"the model {self.settings.model!r} at {self.settings.base_url} gives no grade: "
                f"{grade.reason}{said}."
            )

    async def grade(self, requests: Sequence[GradeRequest], keep: Keep = discard) -> list[Grade]:
        """Grade at once, ``concurrency`` at a time; ChatError where the key is missing."""
        found: dict[int, Grade] = {}
        async with self._endpoint.connect() as connection:
            numbered = enumerate(requests)
            tasks = [asyncio.ensure_future(self._grade(connection, *entry)) for entry in numbered]
            try:
                for task in asyncio.as_completed(tasks):
                    index, grade = await task
                    keep(index, grade)
                    found[index] = grade
            finally:
                for task in tasks:
                    task.cancel()
        return [found[index] for index in range(len(requests))]

    async def _grade(
        self, connection: Connection, index: int, request: GradeRequest
    ) -> tuple[int, Grade]:
        try:
            return index, await self._ask(connection, request)
        except EndpointError as failure:
            return index, Grade(None, str(failure), None, None, None, None)
        # An endpoint can send what nobody has thought of: it costs this grade, not the batch.
        except Exception as error:  # noqa: BLE001
            _LOG.warning("a grade is given up", exc_info=error)
            return index, Grade(None, f"{type(error).__name__}: {error}", None, None, None, None)

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
