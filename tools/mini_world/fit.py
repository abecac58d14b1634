"""Training loops over fixed-shape batches: the mini model, and LoRA on its activations.

On CUDA a whole step (forward, backward, update) is captured as one graph: at this size the GPU
would otherwise wait for Python.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Log = Callable[[dict], None]


@dataclass(frozen=True)
class Schedule:
    """Steps, batch size and the peak of a cosine learning rate with a linear warm-up."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int

    def rate(self, step: int) -> float:
        """Return the learning rate of ``step`` (from 0): linear up, then cosine to zero."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def weighted_cross_entropy(
    logits_BLV: Float[Tensor, "batch seq vocab"],
    ids_BL: Int[Tensor, "batch seq"],
    weight_BL: Float[Tensor, "batch seq"],
) -> Float[Tensor, ""]:
    """Mean next-token cross-entropy (nats), each token weighted by its own weight."""
    losses = nn.functional.cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1).float(), ids_BL[:, 1:].flatten(), reduction="none"
    )
    weight = weight_BL[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum().clamp(min=1.0)


def fit(
    loss_of: Callable[[Mapping[str, Tensor]], Tensor],
    parameters: Iterable[nn.Parameter],
    batches: Callable[[int], Mapping[str, Tensor]],
    schedule: Schedule,
    log: Log,
    weight_decay: float = 0.01,
) -> None:
    """Minimise ``loss_of(batch)`` over ``schedule.steps`` batches ``batches(step)``."""
    trained = [p for p in parameters if p.requires_grad]
    static = {name: tensor.clone() for name, tensor in batches(0).items()}
    device = trained[0].device
    on_cuda = device.type == "cuda"
    rate = torch.tensor(schedule.rate(0), device=device)
    optimizer = torch.optim.AdamW(
        trained, lr=rate, betas=(0.9, 0.98), weight_decay=weight_decay, capturable=on_cuda
    )

    def step() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=on_cuda, cache_enabled=False):
            loss = loss_of(static)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    run = _captured(step, trained, optimizer) if on_cuda else step
    _loop(run, static, batches, rate, schedule, log)


def _loop(run, static, batches, rate, schedule: Schedule, log: Log) -> None:
    started = time.perf_counter()
    every = max(1, schedule.steps // 40)
    for index in range(schedule.steps):
        for name, tensor in batches(index).items():
            static[name].copy_(tensor, non_blocking=True)
        rate.fill_(schedule.rate(index))
        loss = run()
        if index % every == 0 or index == schedule.steps - 1:
            seconds = round(time.perf_counter() - started, 1)
            log({"step": index, "loss": round(loss.item(), 4), "seconds": seconds})


def _captured(step: Callable[[], Tensor], trained, optimizer) -> Callable[[], Tensor]:
    """Capture ``step`` as a CUDA graph, leaving weights and optimizer as they were before."""
    weights = [p.detach().clone() for p in trained]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.no_grad():
        for parameter, weight in zip(trained, weights, strict=True):
            parameter.copy_(weight)
        for state in optimizer.state.values():
            for value in state.values():
                value.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay
