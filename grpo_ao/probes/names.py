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
    """Raise UserError for a name that is none of the nine."""
    for benchmark in benchmarks:
        if benchmark not in BENCHMARKS:
            raise UserError(
                f"there is no benchmark '{benchmark}': choose from {', '.join(BENCHMARKS)}."
            )
    if not benchmarks:
        raise UserError("--benchmarks names none.")
