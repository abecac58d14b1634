"""How many of our items the public oracles were trained on: ``python -m benchmarks.seen_items``.

The public oracles learned from 6000 contexts of each of seven sets, the first of a permutation of
the whole set, twice: once with one position read, once with windows. The two permutations differ
(the number of questions a context moves the random generator, which is seeded with 42 before), and
no list of the contexts is published, so that what can be told of an item is a chance. Printed for
each benchmark: the contexts of the public loader, the share of them in one of the two trainings and
in either, and the items of ours that are expected to be among these.
"""

import sys

_TRAINED = 6000
# Of the loader of Activation Oracles; md_gender has as many men as there are women in funpedia, ner
# is estimated from the first 8,300 of its 47,959 sentences.
_CONTEXTS = {
    "geometry_of_truth": 7_010,
    "relations": 8_236,
    "sst2": 68_221,
    "md_gender": 8_906,
    "ner": 40_900,
    "tense": 6_748,
}
# Ours come from SNLI's test split, the public ones from the train split; two are asked only.
_UNSEEN = ("snli", "ag_news", "singular_plural")


def seen_shares(contexts: int) -> tuple[float, float]:
    """Return the share of a set in one training, and in either of two independent ones."""
    once = min(1.0, _TRAINED / contexts)
    return once, 1 - (1 - once) ** 2


def main() -> None:
    """Print the table for as many items a benchmark as are asked for (250)."""
    items = int(sys.argv[1]) if len(sys.argv) > 1 else 250
    print(f"| benchmark | contexts | in one training | in either | of our {items} items |")
    print("|---|---|---|---|---|")
    for benchmark, contexts in _CONTEXTS.items():
        once, either = seen_shares(contexts)
        seen = round(either * items)
        print(f"| {benchmark} | {contexts:,} | {once:.0%} | {either:.0%} | {seen} |")
    for benchmark in _UNSEEN:
        print(f"| {benchmark} | | 0% | 0% | 0 |")


if __name__ == "__main__":
    main()
