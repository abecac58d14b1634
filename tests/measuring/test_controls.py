"""Wrong activations: whose vectors a row gets, and that nothing else of it changes."""

from collections import Counter

import pytest
import torch

from grpo_ao.measuring.controls import (
    control_rows,
    control_table,
    donors,
    noise_like,
    only_of_their_text,
    with_wrong_activations,
)
from grpo_ao.measuring.reading import CONTROLS
from grpo_ao.oracle.sampling import Sampling
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.probe import Positions, Probe, QuestionKind
from tests.rigs import make_oracle
from tests.tiny import WIDTH


@pytest.fixture(scope="module")
def oracle():
    return make_oracle()


def table_of(oracle, rows):
    """Rows of (text, family, layer, number of vectors); every vector is another one."""
    generator = torch.Generator().manual_seed(0)
    probes = [
        Probe(text, f"Is it {n}?", "closed", (layer,), Positions.parse("all"), "Yes", family)
        for n, (text, family, layer, _) in enumerate(rows)
    ]
    vectors = [torch.randn(slots, WIDTH, generator=generator) for *_, slots in rows]
    prompts = [
        oracle.prompt(probe.layers, len(row_KD), probe.question)
        for probe, row_KD in zip(probes, vectors, strict=True)
    ]
    return ProbeTable(probes, vectors, prompts)


def many(oracle, count=120):
    """Texts of two questions each, of three families, read at two layers in one to four places.

    The text of the second question has white space that the first's has not.
    """
    texts = [f"text {n // 2}" + " " * (n % 2) for n in range(count)]
    rows = [(text, "abc"[n % 3], 1 + n // 2 % 2, 1 + n % 4) for n, text in enumerate(texts)]
    return table_of(oracle, rows)


def source(table, vectors_KD):
    """The row whose vectors these are the last of."""
    (row,) = [
        row
        for row, own_KD in enumerate(table.vectors)
        if len(own_KD) >= len(vectors_KD) and torch.equal(own_KD[-len(vectors_KD) :], vectors_KD)
    ]
    return row


@pytest.mark.parametrize("control", ["same_family", "other_family"])
def test_a_row_reads_another_text_at_its_own_layer_in_as_many_places(oracle, control):
    table = many(oracle)
    rows, swapped = control_table(table, control, range(len(table)))
    assert len(rows) > 100
    for row, probe, vectors_KD in zip(rows, swapped.probes, swapped.vectors, strict=True):
        assert probe == table.probes[row]
        assert vectors_KD.shape == table.vectors[row].shape
        donor = table.probes[source(table, vectors_KD)]
        assert donor.text_key != probe.text_key
        assert donor.layers == probe.layers
        assert (donor.family == probe.family) == (control == "same_family")


def test_a_longer_run_is_cut_at_its_start_in_every_layer(oracle):
    generator = torch.Generator().manual_seed(0)
    probes = [
        Probe(text, "Is it?", "closed", (1, 2), Positions.parse("all"), "Yes", "a")
        for text in ("short", "long")
    ]
    short_KD, long_KD = (torch.randn(count, WIDTH, generator=generator) for count in (4, 6))
    table = ProbeTable.of_vectors(oracle, probes, [short_KD, long_KD])
    rows, swapped = control_table(table, "same_family", [0])
    assert rows == [0]
    assert torch.equal(swapped.vectors[0], long_KD[[1, 2, 4, 5]])


def test_donors_are_many(oracle):
    table = many(oracle)
    counts = Counter(donors(table, same_family=False).values())
    assert len(counts) > 40
    assert max(counts.values()) < 12


def test_rows_that_no_other_text_fits_are_left_out(oracle):
    table = table_of(
        oracle,
        [
            ("long", "a", 1, 3),  # nothing else has three vectors
            ("short", "a", 1, 2),  # reads the end of "long"
            ("short", "a", 2, 2),  # alone at its layer
            ("other", "b", 1, 2),
        ],
    )
    assert donors(table, same_family=True) == {1: 0}
    rows, swapped = control_table(table, "same_family", range(4))
    assert rows == [1]
    assert torch.equal(swapped.vectors[0], table.vectors[0][1:])


def test_the_rows_that_are_asked_do_not_depend_on_the_others_and_read_any_text_of_the_table(oracle):
    table = many(oracle)
    chosen = control_rows(table, 30)
    assert len(chosen) == 30
    kept = {table.probes[row].id for row in chosen}
    part = table.part(range(60))
    assert {part.probes[row].id for row in control_rows(part, 30)} >= {
        probe.id for probe in part.probes if probe.id in kept
    }
    rows, swapped = control_table(table, "other_family", chosen)
    assert set(rows) <= set(chosen)
    assert not {source(table, vectors_KD) for vectors_KD in swapped.vectors} <= set(chosen)
    assert control_rows(table, 500) == list(range(120))


def test_noise_has_the_norms_of_what_it_stands_for_and_no_direction_in_common(oracle):
    vectors_KD = torch.randn(50, 512).bfloat16() * torch.arange(1, 51)[:, None]
    noise_KD = noise_like(vectors_KD, "seed")
    assert noise_KD.dtype == vectors_KD.dtype
    torch.testing.assert_close(
        noise_KD.float().norm(dim=-1), vectors_KD.float().norm(dim=-1), rtol=1e-2, atol=0
    )
    cosines = torch.cosine_similarity(noise_KD.float(), vectors_KD.float())
    assert cosines.abs().max() < 0.25
    assert torch.equal(noise_KD, noise_like(vectors_KD, "seed"))
    assert not torch.equal(noise_KD, noise_like(vectors_KD, "another"))


def test_the_question_alone_is_answered_as_if_nothing_were_injected(oracle):
    table = many(oracle, 12)
    rows, alone = control_table(table, "question_alone", range(12))
    assert rows == list(range(12))
    short = Sampling(1, 0.0, max_new_tokens=5)
    found = oracle.complete(alone.prompts, alone.vectors, short)
    assert found != oracle.complete(table.prompts, table.vectors, short)
    coefficient, oracle.hook.coefficient = oracle.hook.coefficient, 0.0
    try:
        assert found == oracle.complete(table.prompts, table.vectors, short)
    finally:
        oracle.hook.coefficient = coefficient


def test_every_control_keeps_the_table_it_is_made_of(oracle):
    table = many(oracle, 24)
    before = [row_KD.clone() for row_KD in table.vectors]
    for control in CONTROLS:
        rows, other = control_table(table, control, range(len(table)))
        assert [probe.id for probe in other.probes] == [table.probes[row].id for row in rows]
    assert all(map(torch.equal, before, table.vectors))


def test_a_question_that_only_its_own_text_can_answer_names_what_no_other_text_mentions():
    asked: list[tuple[str, str, QuestionKind]] = [
        ("I walk the dog.", "What is done with the dog?", "open"),
        ("I walk  the dog.", "Where is the dog?", "open"),  # the same text
        ("I wash the car.", "What is done with the car?", "open"),
        ("I wash the bus.", "Is the bus clean?", "closed"),
        ("I sell the car.", "What is the topic?", "open"),
        ("I sell my hat.", "What is said of the moon?", "open"),
    ]
    probes = [
        Probe(text, question, kind, (2,), Positions(3), "Yes", "a")
        for text, question, kind in asked
    ]
    assert only_of_their_text(probes) == {probes[0].id, probes[1].id}


def test_a_share_of_the_rows_is_asked_on_wrong_activations_of_three_sorts(oracle):
    table = many(oracle, 600)
    wrong, mixed = with_wrong_activations(table, 0.2)
    assert mixed.probes == table.probes
    changed = [not torch.equal(mixed.vectors[row], table.vectors[row]) for row in range(600)]
    assert wrong == {row for row in range(600) if changed[row]}
    assert 90 < len(wrong) < 150
    known = {tuple(vector_D.tolist()) for row_KD in table.vectors for vector_D in row_KD}
    sorts = Counter(
        "noise"
        if tuple(mixed.vectors[row][0].tolist()) not in known
        else table.probes[source(table, mixed.vectors[row])].family == table.probes[row].family
        for row in wrong
    )
    assert set(sorts) == {"noise", True, False}
    assert min(sorts.values()) > 20
    # Which ones they are does not depend on the others.
    some, _ = with_wrong_activations(table.part(range(300)), 0.2)
    assert some == {row for row in wrong if row < 300}


def test_no_share_changes_nothing(oracle):
    table = many(oracle, 50)
    wrong, same = with_wrong_activations(table, 0.0)
    assert not wrong
    assert all(map(torch.equal, same.vectors, table.vectors))
