"""Tokens that a grade reads: ``python -m benchmarks.judge_tokens [TOKENIZER [QUESTIONS]]``.

The rubric with its delimiters, by kind of question, and the mean text and question of a question
set, in the tokens of TOKENIZER (default Qwen/Qwen3-8B, a Hub id or a folder). What a chat template
puts around them comes on top.
"""

import sys
from dataclasses import replace

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from grpo_ao.judges.local import LETTER_REPLY
from grpo_ao.judges.protocol import GradeRequest
from grpo_ao.judges.replies import JSON_REPLY
from grpo_ao.judges.rubric import judge_prompt, rubric_version
from grpo_ao.probes.rows import load_rows


def main() -> None:
    given = [
        *sys.argv[1:],
        *("Qwen/Qwen3-8B", "ceselder/wildchat-oracle-questions")[len(sys.argv) - 1 :],
    ]
    tokenizer, rows = AutoTokenizer.from_pretrained(given[0]), load_rows(given[1]).rows

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False))

    table = Table(title=f"Tokens of a grade, rubric {rubric_version()}, tokenizer {given[0]}")
    table.add_column()
    table.add_column("tokens", justify="right")
    closed = GradeRequest("", "", "", "closed", None)
    for name, request in (("closed", closed), ("open", replace(closed, kind="open"))):
        for judge, reply in (("api", JSON_REPLY), ("local", LETTER_REPLY)):
            tokens = count(judge_prompt(request, reply))
            table.add_row(f"rubric, {name} question, judge {judge}", str(tokens))
    texts, questions = [row[0].text for row in rows], [q.question for row in rows for q in row]
    for name, values in (("mean text", texts), ("mean question", questions)):
        table.add_row(f"{name} of {given[1]}", f"{sum(map(count, values)) / len(values):.1f}")
    table.add_row("reply of the judge api", str(count('{"grade": "A"}')))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
