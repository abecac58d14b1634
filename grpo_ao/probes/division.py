"""Which questions are asked when: the warm start and GRPO each have texts of their own.

Confidence that is learned on questions whose answers were taught before follows the accuracy on
known questions, which is higher than that on new ones. So no text serves twice, and where a set is
too small for that, a warning says so.
"""

from collections.abc import Sequence

from grpo_ao.probe import FEW_TEXTS, Probe, unit_draw


def divide(probes: Sequence[Probe], warm_start: int, grpo: int) -> tuple[list[int], list[int]]:
    """Divide rows by their texts between the warm start and GRPO, by how many each asks for.

    Texts come in the order of a draw of their own: neither a seed nor the order of the rows
    enters. The warm start takes as many as it needs, but of fewer questions than both need only
    its share. Returns the rows of each, in order; one of them gets all where the other needs none.
    """
    needed = min(warm_start, len(probes) * warm_start // max(1, warm_start + grpo))
    if not grpo:
        needed = len(probes)
    keys = [probe.text_key for probe in probes]
    first: list[int] = []
    taken: set[str] = set()
    for row in sorted(range(len(probes)), key=lambda row: (unit_draw("stage", keys[row]), row)):
        if len(first) < needed or keys[row] in taken:
            first.append(row)
            taken.add(keys[row])
    return sorted(first), [row for row, key in enumerate(keys) if key not in taken]


def shortage(needed: int, found: int) -> str | None:
    """Return a warning where GRPO asks more questions than it has; None where they suffice."""
    if needed <= found:
        return None
    return (
        f"GRPO asks {needed} questions but has texts for {found}, so that each is asked "
        f"{needed / max(1, found):.1f} times: confidence then follows the accuracy on known "
        "questions, which is higher than that on new ones. Give a larger question set, or ask less."
    )


def few_lessons(needed: int, found: int) -> str | None:
    """Return a warning where the warm start, which asks each question once, has too few."""
    if needed <= found:
        return None
    return (
        f"the warm start has texts for {found} of the {needed} questions that it is to ask "
        "(--warm_start_probes): it asks and teaches these alone, each once. Give a larger question "
        "set, or lower --warm_start_probes."
    )


def few_texts(heldout: Sequence[Probe]) -> str | None:
    """Return a warning where intervals would be over too few held-out texts."""
    texts = len({probe.text_key for probe in heldout})
    if texts >= FEW_TEXTS:
        return None
    return (
        f"only {texts} texts are held out, so that the intervals of what is measured say little: "
        "give a larger question set, or texts of your own by --heldout."
    )
