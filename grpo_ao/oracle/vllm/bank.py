"""A bank of vectors inside a vLLM model, added to the residual stream where token ids say so.

A placeholder of a prompt is written as a *virtual* token id, ``first_id + r``, beyond the model's
vocabulary: "the placeholder's embedding here, and row r of the bank at the output of layer
``layer``". The ids are all that a request carries, so that everything vLLM does with token ids
(continuous batching, chunked prefill, several samples of a prompt, CUDA graphs, preemption) does
the right thing with the vectors; and two prompts with different vectors differ in their ids, so
that prefix caching cannot take one for the other.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

CONFIG_KEY = "activation_injection"


@dataclass(frozen=True)
class BankSettings:
    """What an injecting model has to know when it is built.

    ``first_id`` is the virtual id of row 0: the size of the model's vocabulary.
    """

    layer: int
    coefficient: float
    placeholder_id: int
    first_id: int
    rows: int

    def to_config(self) -> dict[str, dict[str, Any]]:
        """Return the settings as vLLM's ``additional_config``."""
        return {CONFIG_KEY: dataclasses.asdict(self)}


def settings_from(additional_config: Mapping[str, Any]) -> BankSettings:
    """Read back ``BankSettings.to_config``; ValueError where an engine was started without."""
    if CONFIG_KEY not in additional_config:
        raise ValueError(
            f"an injecting model needs additional_config={{'{CONFIG_KEY}': ...}} of vLLM's engine."
        )
    return BankSettings(**additional_config[CONFIG_KEY])


class VectorBank:
    """Unit vectors by row, and the two hooks that add them to a decoder of vLLM.

    Both hooks work on tensors of fixed addresses alone, so that they can be captured in CUDA
    graphs. The embedding's hook writes each token's row into a buffer and the layer's reads it,
    since vLLM embeds the tokens of some models outside of the graph.
    """

    def __init__(
        self, settings: BankSettings, width: int, max_tokens: int, device: torch.device | str
    ) -> None:
        self.settings = settings
        self._unit_RD = torch.zeros(settings.rows, width, dtype=torch.float32, device=device)
        self._row_N = torch.full((max_tokens,), -1, dtype=torch.int64, device=device)

    def attach(self, embedding: nn.Module, layers: nn.ModuleList) -> "VectorBank":
        """Hook the embedding, and the output of the layer that is injected at."""
        if not 0 <= self.settings.layer < len(layers):
            raise ValueError(
                f"cannot inject at layer {self.settings.layer}: the model has {len(layers)}."
            )
        embedding.register_forward_pre_hook(self._read_ids)
        layers[self.settings.layer].register_forward_hook(self._inject)
        return self

    @torch.no_grad()
    def fill(self, vectors_ND: Float[Tensor, "rows width"]) -> None:
        """Write the directions of these vectors into the first rows, in place.

        Raises ValueError where there are more vectors than rows, their width is another one, or
        one has no direction (zero or not finite).
        """
        rows, width = self._unit_RD.shape
        if len(vectors_ND) > rows or vectors_ND.shape[1] != width:
            raise ValueError(
                f"the bank has {rows} rows of width {width}: vectors of shape "
                f"{tuple(vectors_ND.shape)} do not fit."
            )
        # In two steps: torch would convert on the CPU, and copy the larger result.
        v_ND = vectors_ND.to(self._unit_RD.device).float()
        norm_N1 = v_ND.norm(dim=-1, keepdim=True)
        if not bool((norm_N1.isfinite() & (norm_N1 > 0)).all()):
            raise ValueError("a vector to inject is zero or not finite, and so has no direction.")
        self._unit_RD[: len(v_ND)] = v_ND / norm_N1

    def _read_ids(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids_N, *rest = inputs
        row_N = ids_N - self.settings.first_id
        self._row_N[: len(ids_N)].copy_(row_N)
        return (torch.where(row_N >= 0, self.settings.placeholder_id, ids_N), *rest)

    def _inject(
        self, _module: nn.Module, _inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the layer's output with h + coefficient * ||h|| * v/||v|| at virtual tokens.

        vLLM's layers return two terms whose sum is the residual stream h, and the next layer's
        norm adds them. At a virtual token the first becomes the injected stream and the second
        zero; at all others both stay what they are. Norms and the scaling are float32, the
        addition in the model's dtype, as in ``oracle.injection.inject``.
        """
        hidden_ND, residual_ND = output
        row_N = self._row_N[: len(hidden_ND)]
        virtual_N1 = (row_N >= 0)[:, None]
        unit_ND = self._unit_RD[row_N.clamp(0, len(self._unit_RD) - 1)]
        h_ND = hidden_ND + residual_ND
        norm_N1 = h_ND.float().norm(dim=-1, keepdim=True)
        delta_ND = self.settings.coefficient * norm_N1 * unit_ND
        injected_ND = h_ND + delta_ND.to(h_ND.dtype)
        hidden_ND = torch.where(virtual_N1, injected_ND, hidden_ND)
        return hidden_ND, residual_ND.masked_fill(virtual_N1, 0)


def virtual_ids(
    input_ids: Sequence[int], positions: Sequence[int], first_row: int, settings: BankSettings
) -> list[int]:
    """Return a prompt's ids with rows ``first_row, first_row + 1, ...`` at its placeholders."""
    ids = list(input_ids)
    for row, position in enumerate(positions, start=first_row):
        if ids[position] != settings.placeholder_id:
            raise ValueError(
                f"token {position} of a prompt is {ids[position]}, not the placeholder "
                f"{settings.placeholder_id}: the engine was started for another tokenizer or spec."
            )
        ids[position] = settings.first_id + row
    return ids


def chunks_that_fit(counts: Sequence[int], rows: int) -> list[range]:
    """Cut prompts with ``counts`` vectors into runs, each with at most ``rows`` vectors in all.

    Raises ValueError for a prompt that does not fit alone.
    """
    chunks: list[range] = []
    first = used = 0
    for i, count in enumerate(counts):
        if count > rows:
            raise ValueError(f"a prompt has {count} vectors; the bank of the engine holds {rows}.")
        if used + count > rows:
            chunks.append(range(first, i))
            first, used = i, 0
        used += count
    if first < len(counts):
        chunks.append(range(first, len(counts)))
    return chunks
