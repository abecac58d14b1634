"""Questions about texts, whatever they come from, and the probes that are made of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grpo_ao.probe import Layers, Positions, Probe, QuestionKind, drawn_from


@dataclass(frozen=True)
class Item:
    """A question about a text, without the layers and positions that a probe reads.

    ``target`` is the right answer where it is known: of a closed question Yes or No or, where there
    are ``choices``, one of them.
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
    """Make the probes of each item: at each of ``positions``, and at each of ``layers``.

    ``one_layer``: at one of ``layers`` alone, drawn by a hash of text and question.
    """
    probes = []
    for item in items:
        drawn = drawn_from(layers, "layer", item.text, item.question)
        for where in positions:
            for read in [drawn] if one_layer else layers:
                of_item = (item.text, item.question, item.kind, read, where)
                probes.append(Probe(*of_item, item.target, item.family, item.choices))
    return probes
