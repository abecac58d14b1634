"""The names of the nine benchmarks; light to import, since every command line has them."""

from collections.abc import Sequence
from typing import Literal

from grpo_ao.errors import UserError

Suite = Literal["paper", "mini"]
IN_DISTRIBUTION = ("geometry_of_truth", "relations", "sst2", "md_gender", "snli", "ner", "tense")
"""What the public oracles were trained on."""
OUT_OF_DISTRIBUTION = ("ag_news", "singular_plural")
BENCHMARKS = (*IN_DISTRIBUTION, *OUT_OF_DISTRIBUTION)


def check_benchmarks(benchmarks: Sequence[str]) -> None:
    """Raise UserError for what is neither one of the nine nor a JSONL file."""
    for benchmark in benchmarks:
        if benchmark not in BENCHMARKS and not is_own(benchmark):
            raise UserError(
                f"there is no benchmark '{benchmark}': choose from {', '.join(BENCHMARKS)}, or "
                "give a .jsonl file of your own."
            )
    if not benchmarks:
        raise UserError("--benchmarks names none.")


def is_own(benchmark: str) -> bool:
    """Say whether the name is that of a file of one's own."""
    return benchmark.endswith(".jsonl")
