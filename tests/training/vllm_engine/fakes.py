"""A decoder as vLLM builds them: fused linear layers, (hidden, residual) between layers."""

from typing import ClassVar

import torch
from torch import Tensor, nn


class FusedLinear(nn.Module):
    """Several linear layers on one input, as one weight."""

    def __init__(self, inputs: int, output_sizes: list[int]) -> None:
        super().__init__()
        self.output_sizes = output_sizes
        self.weight = nn.Parameter(torch.randn(sum(output_sizes), inputs), requires_grad=False)


class Linear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs), requires_grad=False)


class FakeLayer(nn.Module):
    """The names of a Qwen3 layer; its forward is a linear map of the residual stream."""

    def __init__(self, width: int, hidden: int, kv: int, intermediate: int) -> None:
        super().__init__()
        self.self_attn = nn.Module()
        self.self_attn.qkv_proj = FusedLinear(width, [hidden, kv, kv])
        self.self_attn.o_proj = Linear(hidden, width)
        self.mlp = nn.Module()
        self.mlp.gate_up_proj = FusedLinear(width, [intermediate, intermediate])
        self.mlp.down_proj = Linear(intermediate, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(
        self, positions: Tensor, hidden: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        stream = hidden if residual is None else hidden + residual
        attn = self.self_attn
        return self.norm(stream) @ attn.o_proj.weight[:, : stream.shape[1]].T, stream


class FakeDecoder(nn.Module):
    """Token ids (N,) to the residual stream (N, D), through every layer."""

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(FakeLayer(width, 32, 16, 48) for _ in range(layers))

    @torch.no_grad()
    def forward(self, ids_N: Tensor, stop: int | None = None) -> Tensor:
        hidden, residual = self.embed_tokens(ids_N), None
        for layer in self.layers[:stop]:
            hidden, residual = layer(torch.arange(len(ids_N)), hidden, residual)
        assert residual is not None
        return hidden + residual
