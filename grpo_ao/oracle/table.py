"""Probes with their prompts and activations, addressed by row number."""

from collections.abc import Sequence
from functools import cache

from torch import Tensor

from grpo_ao.oracle.injection import Injection
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.prompt import OraclePrompt
from grpo_ao.oracle.store import ActivationStore
from grpo_ao.probe import Probe


class ProbeTable:
    """What every forward pass of the oracle needs to know of a set of probes.

    Raises UserError if a probe's placeholders and its activations differ in number.
    """

    def __init__(
        self, probes: list[Probe], vectors: list[Tensor], prompts: list[OraclePrompt]
    ) -> None:
        self.probes = probes
        self.vectors = vectors
        self.prompts = prompts

    @classmethod
    def build(cls, oracle: Oracle, probes: Sequence[Probe], store: ActivationStore) -> "ProbeTable":
        """Look up each probe's activations and write its prompt."""
        return cls.of_vectors(oracle, probes, [store.vectors(probe.id) for probe in probes])

    @classmethod
    def of_vectors(
        cls, oracle: Oracle, probes: Sequence[Probe], vectors: list[Tensor]
    ) -> "ProbeTable":
        """Write the oracle's prompt for each probe and its activations."""
        written = cache(oracle.prompt)  # many texts are asked the same
        prompts = [
            written(probe.layers, len(vectors_KD), probe.question)
            for probe, vectors_KD in zip(probes, vectors, strict=True)
        ]
        return cls(list(probes), vectors, prompts)

    def part(self, rows: Sequence[int]) -> "ProbeTable":
        """Return a table of some of the rows."""
        return ProbeTable(
            [self.probes[row] for row in rows],
            [self.vectors[row] for row in rows],
            [self.prompts[row] for row in rows],
        )

    def __len__(self) -> int:
        return len(self.probes)

    def injection(self, rows: Sequence[int], padded_length: int | None = None) -> Injection:
        """Return what to inject into these rows' prompts.

        They start in column 0, or are left-padded to ``padded_length``.
        """
        part = self.part(rows)
        return Injection.of(part.prompts, part.vectors, padded_length)
