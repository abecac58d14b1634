"""Wrong activations: what an oracle says when it reads another text, noise, or nothing at all.

Questions and right answers stay those of a probe's own text. An oracle that reads its activations
can only guess then, and one whose confidence is calibrated says so; a number that stays as high as
on the true activations is read from the question alone. Everything is drawn by hashes of the
probes: the same in every run and process.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from grpo_ao.measuring.reading import Control
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probe import Probe, stable_hash, unit_draw
from grpo_ao.wording import all_words


def control_rows(table: ProbeTable, count: int) -> list[int]:
    """Return ``count`` rows, drawn by hashes of their ids, or all where there are fewer."""
    draws = [stable_hash("control", probe.id) for probe in table.probes]
    return sorted(sorted(range(len(draws)), key=draws.__getitem__)[:count])


def control_table(
    table: ProbeTable, control: Control, rows: Sequence[int]
) -> tuple[list[int], ProbeTable]:
    """Return the rows that the control can be made of, and a table of them with its activations.

    A row is left out where no other text of the table was read at the same layers and at as many
    positions.
    """
    donor_of: dict[int, int] = {}
    if control in ("same_family", "other_family"):
        donor_of = donors(table, same_family=control == "same_family")
        rows = [row for row in rows if row in donor_of]
    part = table.part(rows)
    if control == "question_alone":
        part.prompts = [replace(prompt, positions=[]) for prompt in part.prompts]
        part.vectors = [row_KD[:0] for row_KD in part.vectors]
    elif control == "noise":
        pairs = zip(part.vectors, part.probes, strict=True)
        part.vectors = [noise_like(row_KD, probe.id) for row_KD, probe in pairs]
    else:
        part.vectors = [_of_donor(table, donor_of[row], row) for row in rows]
    return list(rows), part


def only_of_their_text(probes: Sequence[Probe]) -> set[str]:
    """Return the ids of the open questions to which no other text of these probes has an answer.

    Such a question names something that its own text alone mentions: "What is to be done with the
    dog?" where no other text has a dog.
    """
    mentioned_by: dict[str, set[str]] = defaultdict(set)
    for probe in probes:
        for word in all_words(probe.text):
            mentioned_by[word].add(probe.text_key)
    return {
        probe.id
        for probe in probes
        if probe.kind == "open"
        if any(mentioned_by.get(word) == {probe.text_key} for word in all_words(probe.question))
    }


def is_asked_wrongly(probe: Probe, share: float) -> bool:
    """Return whether a training question is one of the ``share`` asked on wrong activations."""
    return unit_draw("wrong activations", probe.id) < share


def with_wrong_activations(table: ProbeTable, share: float) -> tuple[set[int], ProbeTable]:
    """Return the table with other activations in a share of its rows, and which rows these are.

    A third of them read another text of the same family, a third one of another family (noise,
    where there is none to be read), a third noise.
    """
    drawn = {
        row: int(3 * unit_draw("wrong sort", probe.id))
        for row, probe in enumerate(table.probes)
        if is_asked_wrongly(probe, share)
    }
    of_sort = [donors(table, same_family=True), donors(table, same_family=False), {}]
    vectors = list(table.vectors)
    for row, sort in drawn.items():
        donor = of_sort[sort].get(row)
        own_KD = table.vectors[row]
        vectors[row] = (
            noise_like(own_KD, table.probes[row].id)
            if donor is None
            else _of_donor(table, donor, row)
        )
    return set(drawn), ProbeTable(table.probes, vectors, table.prompts)


def donors(table: ProbeTable, same_family: bool) -> dict[int, int]:
    """Return for each row a row of another text, read from the same subject at the same places.

    Rows for which there is none are left out.
    """
    read_alike: dict[tuple, list[int]] = defaultdict(list)
    for row, probe in enumerate(table.probes):
        read_alike[_read_at(probe, same_family)].append(row)
    found = {}
    for row, probe in enumerate(table.probes):
        rows = read_alike[_read_at(probe, same_family)]
        fitting = (
            other
            for other in _from_somewhere(rows, unit_draw("donor", probe.id))
            if table.probes[other].text_key != probe.text_key
            if same_family or table.probes[other].family != probe.family
            if len(table.vectors[other]) >= len(table.vectors[row])
        )
        donor = next(fitting, None)
        if donor is not None:
            found[row] = donor
    return found


def _read_at(probe: Probe, same_family: bool) -> tuple:
    where = (probe.subject, probe.layers, str(probe.positions))
    return (*where, probe.family) if same_family else where


def _from_somewhere(rows: Sequence[int], draw: float) -> Iterator[int]:
    start = int(draw * len(rows))
    yield from rows[start:]
    yield from rows[:start]


def _of_donor(table: ProbeTable, donor: int, row: int) -> Float[Tensor, "K D"]:
    # Positions count from the end: a longer run is cut at its start, in every layer.
    layers = len(table.probes[row].layers)
    donor_NKD = table.vectors[donor].unflatten(0, (layers, -1))
    return donor_NKD[:, -(len(table.vectors[row]) // layers) :].flatten(0, 1)


def noise_like(vectors_KD: Float[Tensor, "K D"], seed: str) -> Float[Tensor, "K D"]:
    """Return vectors of random direction, each as long as the one in its place."""
    generator = torch.Generator().manual_seed(int(stable_hash("noise", seed)[:12], 16))
    noise_KD = torch.randn(vectors_KD.shape, generator=generator)
    norm_K1 = vectors_KD.float().norm(dim=-1, keepdim=True)
    scaled_KD = noise_KD * norm_K1 / noise_KD.norm(dim=-1, keepdim=True)
    return scaled_KD.to(vectors_KD.dtype)
