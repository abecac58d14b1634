"""Make a question set: texts in, questions with reference answers out, by a language model."""

import asyncio

from datasets import Dataset
from huggingface_hub import get_token
from rich.console import Console

from grpo_ao.errors import UserError
from grpo_ao.probes.filters import TextFilter, TextRules
from grpo_ao.probes.question_file import QuestionFile
from grpo_ao.probes.question_requests import QuestionRequests
from grpo_ao.probes.question_statistics import question_statistics, statistics_table
from grpo_ao.probes.questions_config import QuestionsConfig
from grpo_ao.probes.rows import parse_row
from grpo_ao.probes.sources import LeftOut, SourceText, read_texts


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
