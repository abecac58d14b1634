"""Questions about texts before it is said where the subject is read, and the probes they become."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grpo_ao.probe import Layers, Positions, Probe, QuestionKind, drawn_from


@dataclass(frozen=True)
class Item:
    """One question about one text; ``target`` is the right answer where it is known.

    That of a closed question is Yes or No or, where there are ``choices``, one of them.
    """

    family: str
    text: str
    question: str
    target: str | None
    choices: tuple[str, ...] = ()
    kind: QuestionKind = "closed"


def probes_of(
    items: Iterable[Item],
    layers: Sequence[Layers],
    positions: Sequence[Positions],
    one_layer: bool = True,
) -> list[Probe]:
    """Make the probes of each item: at each of ``positions``, at one of ``layers`` or at each.

    The one is drawn by a hash of text and question.
    """
    probes = []
    for item in items:
        drawn = drawn_from(layers, "layer", item.text, item.question)
        for where in positions:
            for read in [drawn] if one_layer else layers:
                of_item = (item.text, item.question, item.kind, read, where)
                probes.append(Probe(*of_item, item.target, item.family, item.choices))
    return probes
