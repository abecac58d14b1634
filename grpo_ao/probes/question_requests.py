"""Ask a language model for the questions about many texts: trial, estimate, progress, limits."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import TaskID

from grpo_ao.chat import (
    TRIAL_ATTEMPTS,
    ChatEndpoint,
    ChatError,
    ChatSettings,
    Connection,
    explain,
)
from grpo_ao.chat_completion import Usage
from grpo_ao.errors import UserError
from grpo_ao.probes.question_file import QuestionFile
from grpo_ao.probes.question_prompt import Outcome, questions_prompt, write_questions
from grpo_ao.probes.sources import LeftOut, SourceText
from grpo_ao.terminal import progress_bar

# So many texts one after the other without a reply: the endpoint is gone.
_GONE = 20


class QuestionRequests:
    """The requests of one start of the command, and what has come of them so far.

    The first text is the trial: it shows that the endpoint works, and what it takes gives the
    estimate. Its row is kept like every other, as soon as it is there.
    """

    def __init__(
        self,
        settings: ChatSettings,
        language: str | None,
        max_cost: float | None,
        file: QuestionFile,
        console: Console,
    ) -> None:
        self.settings = settings
        self.language = language
        self.max_cost = max_cost
        self.file = file
        self.console = console
        self.left_out: list[LeftOut] = []
        self.failures: list[LeftOut] = []
        self.failed_in_a_row = 0
        self.in_flight = 0
        self.stopped: str | None = None
        self.progress = progress_bar(console, "questions", "{task.description}")

    async def run(self, todo: Sequence[SourceText]) -> None:
        """Ask about the texts, and say what came of them.

        Raises ChatError where the endpoint does not work, UserError where the estimate is above
        --max_cost.
        """
        endpoint = ChatEndpoint(self.settings)
        async with endpoint.connect(TRIAL_ATTEMPTS) as connection:
            trial = self._priced(await write_questions(connection, todo[0], self.language))
        if trial.failure is not None:
            raise ChatError(explain(trial.failure, self.settings)) from trial.failure
        self._take(todo[0], trial)
        self._estimate(todo, trial.usage)
        rest = iter(todo[1:])
        task = self.progress.add_task(self._said(), total=len(todo), completed=1)
        with self.progress:
            async with endpoint.connect() as connection, asyncio.TaskGroup() as group:
                for _ in range(min(self.settings.concurrency, len(todo) - 1)):
                    group.create_task(self._work(connection, rest, task))
        for entry in self.left_out:
            self.console.print(f"row {entry.number} is left out: {entry.reason}.")

    async def _work(self, connection: Connection, rest: Iterator[SourceText], task: TaskID) -> None:
        for source in rest:
            if self._must_stop():
                return
            self.in_flight += 1
            outcome = await write_questions(connection, source, self.language)
            self.in_flight -= 1
            self._take(source, self._priced(outcome))
            self.progress.update(task, advance=1, description=self._said())

    def _priced(self, outcome: Outcome) -> Outcome:
        prices = (self.settings.input_price, self.settings.output_price)
        return outcome._replace(usage=outcome.usage.at_prices(*prices))

    def _take(self, source: SourceText, outcome: Outcome) -> None:
        """Write down what came of a text at once."""
        if outcome.row is not None:
            self.file.add(outcome.row, outcome.usage)
        else:
            final = outcome.failure is None
            self.file.leave_out(source, str(outcome.reason), outcome.usage, final)
            told = self.left_out if final else self.failures
            told.append(LeftOut(source.number, str(outcome.reason)))
        self.failed_in_a_row = self.failed_in_a_row + 1 if outcome.failure else 0

    def _must_stop(self) -> bool:
        """Say whether no further text may be asked about, and why in ``stopped``."""
        if self.failed_in_a_row >= _GONE:
            self.stopped = f"the endpoint failed {_GONE} times in a row"
        elif self.max_cost is not None:
            cost = self.file.spent.cost_usd
            if cost is None:
                self.stopped = "the endpoint no longer tells what a reply costs"
            # What is in flight and the next one are counted at the mean of those before.
            elif cost * (1 + (self.in_flight + 1) / max(1, self.file.paid)) > self.max_cost:
                self.stopped = f"${cost:.4f} are spent, and --max_cost is {self.max_cost:g}"
        return self.stopped is not None

    def _estimate(self, todo: Sequence[SourceText], trial: Usage) -> None:
        """Say what the texts will take, going by the first one; refuse what exceeds --max_cost."""
        lengths = [len(questions_prompt(text.text)) for text in todo]
        said, cost = "the endpoint does not tell tokens", None
        if trial.input_tokens is not None and trial.output_tokens is not None:
            read = trial.input_tokens * sum(lengths) / lengths[0]
            written = trial.output_tokens * len(todo)
            said = f"about {read:,.0f} tokens to read and {written:,.0f} to write"
            cost = _cost(trial, read, written, self.settings)
        dollars = "cost not known" if cost is None else f"about ${cost:.4f}"
        self.console.print(f"{len(todo)} texts to do: {said}, {dollars}.")
        if self.max_cost is not None:
            before = (self.file.spent.cost_usd or 0.0) - (trial.cost_usd or 0.0)
            _check_cost(None if cost is None else before + cost, self.max_cost)

    def _said(self) -> str:
        spent = self.file.spent
        tokens, cost = "tokens not told", "cost not known"
        if spent.input_tokens is not None and spent.output_tokens is not None:
            tokens = f"{spent.input_tokens + spent.output_tokens:,} tokens"
        if spent.cost_usd is not None:
            cost = f"${spent.cost_usd:.4f}"
        failed = len(self.left_out) + len(self.failures)
        return f"{len(self.file.rows)} rows, {failed} failed, {tokens}, {cost}"

    def check(self) -> None:
        """Raise ChatError if there are texts that the endpoint has failed to give questions for."""
        failed = ""
        if self.failures:
            reason, count = Counter(e.reason for e in self.failures).most_common(1)[0]
            failed = f"the endpoint failed for {len(self.failures)} texts ({count} times: {reason})"
        told = "; ".join(part for part in (failed, self.stopped) if part)
        if told:
            raise ChatError(f"{told}. The set is not finished: --resume goes on with it.")


def _check_cost(cost: float | None, limit: float) -> None:
    if cost is None:
        raise UserError(
            "--max_cost cannot be kept where the cost is not known: give --input_price and "
            "--output_price. The first row is kept: go on with --resume."
        )
    if cost > limit:
        raise UserError(
            f"the set will cost about ${cost:.4f}, above --max_cost {limit:g}: lower --num_texts "
            "or raise --max_cost. The first row is kept: go on with --resume."
        )


def _cost(trial: Usage, read: float, written: float, settings: ChatSettings) -> float | None:
    """Extrapolate the cost in US dollars, by the prices or else by the trial's cost a token."""
    if settings.input_price is not None and settings.output_price is not None:
        return (read * settings.input_price + written * settings.output_price) / 1e6
    tokens = (trial.input_tokens or 0) + (trial.output_tokens or 0)
    if trial.cost_usd is None or not tokens:
        return None
    return trial.cost_usd * (read + written) / tokens
