"""A decoder as vLLM builds them: fused linear layers, (hidden, residual) between layers."""

from typing import ClassVar

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """One linear layer's weight, or several layers' that read the same input, fused."""

    def __init__(self, inputs: int, output_sizes: list[int]) -> None:
        super().__init__()
        self.output_sizes = output_sizes
        self.weight = nn.Parameter(torch.randn(sum(output_sizes), inputs), requires_grad=False)


class FakeAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv_proj = Linear(width, [32, 16, 16])
        self.o_proj = Linear(32, [width])


class FakeMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(width, [48, 48])
        self.down_proj = Linear(48, [width])


class FakeLayer(nn.Module):
    """The weights of a layer; its forward maps each token's residual stream by one of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = FakeAttention(width)
        self.mlp = FakeMLP(width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(
        self, positions: Tensor, hidden: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        stream = hidden if residual is None else hidden + residual
        weight = self.self_attn.o_proj.weight[:, : stream.shape[1]]
        return self.norm(stream) @ weight.T, stream


class FakeDecoder(nn.Module):
    """Token ids (N,) to the residual stream (N, D), through every layer."""

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(FakeLayer(width) for _ in range(layers))

    def attention(self, layer: int) -> FakeAttention:
        attention = self.layers[layer].self_attn
        assert isinstance(attention, FakeAttention)
        return attention

    @torch.no_grad()
    def forward(self, ids_N: Tensor, stop: int | None = None) -> Tensor:
        hidden, residual = self.embed_tokens(ids_N), None
        for layer in list(self.layers)[:stop]:
            hidden, residual = layer(torch.arange(len(ids_N)), hidden, residual)
        assert residual is not None
        return hidden + residual
