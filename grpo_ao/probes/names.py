"""The names of the nine benchmarks; light to import, since every command line has them."""

from collections.abc import Sequence
from typing import Literal

from grpo_ao.errors import UserError

Suite = Literal["paper", "mini"]
IN_DISTRIBUTION = ("geometry_of_truth", "relations", "sst2", "md_gender", "snli", "ner", "tense")
"""What the public oracles were trained on."""
OUT_OF_DISTRIBUTION = ("ag_news", "singular_plural")
BENCHMARKS = (*IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION)
SECRETS = ("taboo", "personaqa")
"""What a fine-tuned subject was taught; asked of no other, and so only where they are named."""


def check_benchmarks(benchmarks: Sequence[str]) -> None:
    """Raise UserError for what is no benchmark and no JSONL file."""
    for benchmark in benchmarks:
        if benchmark not in (*BENCHMARKS, *SECRETS) and not is_own(benchmark):
            raise UserError(
                f"there is no benchmark '{benchmark}': choose from "
                f"{', '.join((*BENCHMARKS, *SECRETS))}, or give a .jsonl file of your own."
            )
    if not benchmarks:
        raise UserError("--benchmarks names none.")


def is_secret(family: str) -> bool:
    """Say whether a family of questions is about what a subject was taught in fine-tuning."""
    return family.startswith(SECRETS)


def is_own(benchmark: str) -> bool:
    """Say whether the name is that of a file of one's own."""
    return benchmark.endswith(".jsonl")
