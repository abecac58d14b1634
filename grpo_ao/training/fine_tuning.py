"""Fine-tune an oracle on targets, held to what it was where it is not to change.

Cross-entropy teaches the tokens of a target by their weights. Beside it, answers are *anchored*:
behind the tag they stay distributed as the starting oracle distributed them, by the divergence of
the two in each of their tokens. The number is learned through weights that the answers share, and a
few thousand sampled answers say too little of where those were; the starting oracle knows. At the
start the divergence and its gradient are zero, whatever was sampled.
"""

import math
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, islice

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from grpo_ao.errors import UserError
from grpo_ao.oracle.activations import evaluating
from grpo_ao.oracle.batches import batched, moved
from grpo_ao.oracle.layers import decoder_of, input_device
from grpo_ao.oracle.memory import if_memory_suffices
from grpo_ao.oracle.merging import merged_if_possible
from grpo_ao.oracle.oracle import Oracle
from grpo_ao.oracle.probabilities import completion_logits
from grpo_ao.oracle.sharding import is_sharded
from grpo_ao.oracle.table import ProbeTable
from grpo_ao.processes import Processes
from grpo_ao.training.anchor import space_partners
from grpo_ao.training.passes import FastPasses, autocast

# Of the divergence from the starting oracle, beside those of the tokens in `warm_start`.
ANCHOR_WEIGHT = 4.0
# Tokens of one pass: on a CPU, and the least and the most on a GPU.
_TOKENS, MOST_TOKENS = 1024, 32768
# What a token takes in a pass for each layer and dimension of the residual stream, and a learned
# one for each vocabulary entry: by the peaks that `benchmarks.step` prints.
_BYTES_OF_WIDTH, _BYTES_OF_LOGIT = 40, 24


@dataclass(frozen=True)
class Target:
    """A completion to learn.

    ``token_ids`` include the end token, and each has its weight. ``origin_ids`` is the same answer
    as the starting oracle wrote it, with a tag or without; the last ``kept`` tokens of both are
    the same (the first of them up to its leading space), and are anchored; 0 anchors nothing.
    """

    row: int
    token_ids: list[int]
    weights: list[float]
    origin_ids: list[int]
    kept: int


def fine_tune(
    processes: Processes,
    oracle: Oracle,
    start: "Start",
    table: ProbeTable,
    targets: Sequence[Target],
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[int], None],
) -> list[float]:
    """Fine-tune the adapter on random batches of targets, dropout off; return the losses.

    What targets keep is anchored to ``start``. A loss is in nats a token. The learning rate rises
    over ten steps and falls along a cosine to zero. Where GPU memory is short, passes become
    smaller, with a warning; UserError where one target does not fit. A batch is divided over the
    processes, which sum their gradients: the update is that of one process.
    """
    losses = []
    most, trained = tokens_of_a_pass(oracle, _most_learned(table, targets)), start.trained
    fused = input_device(oracle.model).type == "cuda"
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0, fused=fused)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1, (step + 1) / 10),
    )
    rng = random.Random(f"fine tune {seed}")
    fast = FastPasses(oracle, captured=True)
    with fast, evaluating(oracle.model), torch.enable_grad():
        for batch in islice(batches(targets, batch_size, rng), steps):
            loss, most = _backward_in_memory(processes, oracle, start, table, batch, most)
            processes.sum_gradients(trained)
            if not nn.utils.clip_grad_norm_(trained, 1.0).isfinite():
                raise UserError(
                    f"the gradient of the warm start is not finite at step {len(losses) + 1}: "
                    "lower --warm_start_lr."
                )
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(sum(processes.gathered([loss])))
            progress(1)
    oracle.hook.clear()
    return losses


def batches(targets: Sequence[Target], size: int, rng: random.Random) -> Iterator[list[Target]]:
    """Go through the targets in random order, again and again."""
    left: list[Target] = []
    while True:
        while len(left) < size:
            left += rng.sample(targets, len(targets))
        yield left[:size]
        left = left[size:]


class Start:
    """The weights that an oracle's adapter has now, to be asked again while it is trained."""

    def __init__(self, oracle: Oracle) -> None:
        self.trained = [p for p in oracle.model.parameters() if p.requires_grad]
        self._weights = [parameter.detach().clone() for parameter in self.trained]

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Inside the block the oracle is as it was at the start, without gradients.

        Weights change places, which takes no time; switching between two adapters goes through
        all of a model's modules.
        """
        self._change_places()
        try:
            with torch.no_grad():
                yield
        finally:
            self._change_places()

    def _change_places(self) -> None:
        for row, parameter in enumerate(self.trained):
            parameter.data, self._weights[row] = self._weights[row], parameter.data


def _backward_in_memory(
    processes: Processes,
    oracle: Oracle,
    start: Start,
    table: ProbeTable,
    batch: Sequence[Target],
    most: int,
) -> tuple[float, int]:
    """Do as ``_backward`` does, in passes of half as many tokens where memory does not suffice.

    Also return how many tokens a pass may hold from here on. Processes that share a sharded model
    make the same passes, so that one of them cannot begin anew.
    """
    loss = if_memory_suffices(lambda: _backward(processes, oracle, start, table, batch, most))
    if loss is not None:
        return loss, most
    passes = passes_of(table, processes.share(batch), most)
    if is_sharded(oracle.model) or max(map(len, passes)) == 1:
        raise UserError(
            "GPU memory does not suffice for the warm start: free some, or use --load_in_4bit."
        )
    for parameter in start.trained:
        parameter.grad = None  # What is half done must not count.
    tokens = max(len(targets) * _length(table, targets[-1]) for targets in passes)
    warnings.warn(
        f"GPU memory is short: {tokens} tokens in a pass of the warm start do not fit, going on "
        "with half.",
        stacklevel=3,
    )
    return _backward_in_memory(processes, oracle, start, table, batch, tokens // 2)


def _backward(
    processes: Processes,
    oracle: Oracle,
    start: Start,
    table: ProbeTable,
    batch: Sequence[Target],
    most: int,
) -> float:
    """Add the gradient of this process's part of the mean over tokens; return that part."""
    tokens = sum(len(target.token_ids) for target in batch)
    total = 0.0
    passes = passes_of(table, processes.share(batch), most)
    count = len(passes)
    if is_sharded(oracle.model):
        # All processes gather the weights for each pass of the one that makes the most.
        count = max(processes.gathered([count]))
    for targets in passes:
        loss = loss_of(oracle, start, table, targets) / tokens
        loss.backward()
        total += loss.item()
    for _ in range(count - len(passes)):
        (0.0 * loss_of(oracle, start, table, batch[:1])).backward()
    return total


def _most_learned(table: ProbeTable, targets: Sequence[Target]) -> float:
    """Return the largest share of a row that is learned, of any target."""
    lengths = [(len(t.token_ids), len(table.prompts[t.row].input_ids)) for t in targets]
    return max(written / (written + prompt) for written, prompt in lengths)


def tokens_of_a_pass(oracle: Oracle, learned: float) -> int:
    """Return how many tokens one pass may hold, padding included, of which a share is ``learned``.

    On a GPU, as many as fit into half of the memory that is free: of a token are kept the inputs of
    every layer's linear maps, and of a learned one its logits, several times. On a CPU larger
    passes are no faster.
    """
    device, config = input_device(oracle.model), decoder_of(oracle.model).config
    vocabulary = oracle.model.get_output_embeddings().weight.shape[0]
    if device.type != "cuda":
        return min(_TOKENS, 2**28 // vocabulary)
    torch.cuda.empty_cache()  # What sampling has left counts as taken until it is handed back.
    layers = config.num_hidden_layers * config.hidden_size * _BYTES_OF_WIDTH
    free, _ = torch.cuda.mem_get_info(device)
    fitting = free / 2 / (layers + learned * vocabulary * _BYTES_OF_LOGIT)
    return min(max(int(fitting), _TOKENS), MOST_TOKENS)


def passes_of(table: ProbeTable, share: Sequence[Target], most: int) -> list[list[Target]]:
    """Divide targets into passes of like length, of ``most`` tokens if that holds one at all."""

    order = sorted(range(len(share)), key=lambda n: _length(table, share[n]))
    passes = batched(order, lambda rows: len(rows) * _length(table, share[rows[-1]]) <= most)
    return [[share[n] for n in rows] for rows in passes]


def _length(table: ProbeTable, target: Target) -> int:
    return len(table.prompts[target.row].input_ids) + len(target.token_ids)


def loss_of(
    oracle: Oracle, start: Start, table: ProbeTable, targets: Sequence[Target]
) -> Float[Tensor, ""]:
    """Return the loss of some targets (nats), summed.

    The weighted cross-entropy, and ``ANCHOR_WEIGHT`` times the divergence from the oracle at its
    ``start`` in the tokens that are kept, KL(start || now). Where the two write an answer's first
    token differently, the tokens that differ by a leading space change places (``anchor``).
    """
    # Float32 weights are merged without a loss, so that the divergence begins at zero all the same.
    exact = decoder_of(oracle.model).dtype == torch.float32
    device = input_device(oracle.model)
    # One at least, since processes that share a sharded model make the same passes.
    held = [target for target in targets if target.kept] or targets[:1]
    with start.put_back(), merged_if_possible(oracle.model) if exact else nullcontext():
        tails = _tails(accumulate(len(target.origin_ids) for target in held), held, device)
        origins = [target.origin_ids for target in held]
        start_KV = _carried_over(oracle, _log_probs(oracle, table, held, origins)[tails], held)
    # Here and in what moves to the GPU nothing waits for the pass under way.
    ids_N = moved(torch.tensor([i for t in targets for i in t.token_ids]), device)
    weight_N = moved(torch.tensor([w for t in targets for w in t.weights]), device)
    tails = _tails(accumulate(len(target.token_ids) for target in targets), targets, device)
    log_probs_NV = _log_probs(oracle, table, targets, [t.token_ids for t in targets])
    cross_N = -log_probs_NV.gather(1, ids_N[:, None])[:, 0]
    now_KV = log_probs_NV[tails]
    divergence_K = (start_KV.exp() * (start_KV - now_KV)).sum(dim=-1)
    return (cross_N * weight_N).sum() + ANCHOR_WEIGHT * divergence_K.sum()


def _carried_over(
    oracle: Oracle, start_KV: Float[Tensor, "kept vocab"], targets: Sequence[Target]
) -> Float[Tensor, "kept vocab"]:
    """Return the starting oracle's log-probabilities, as those of the tokens that stand there."""
    ends = accumulate(target.kept for target in targets)
    rows = [
        end - target.kept
        for end, target in zip(ends, targets, strict=True)
        if target.kept and target.token_ids[-target.kept] != target.origin_ids[-target.kept]
    ]
    if not rows:
        return start_KV
    partner_V = moved(space_partners(oracle.tokenizer, start_KV.shape[1]), start_KV.device)
    rows_R = moved(torch.tensor(rows), start_KV.device)
    start_KV[rows_R] = start_KV[rows_R][:, partner_V]
    return start_KV


def _tails(
    ends: Iterable[int], targets: Sequence[Target], device: torch.device
) -> Int64[Tensor, " kept"]:
    """Return the rows of the tokens that are kept, of completions that end before ``ends``."""
    pairs = zip(ends, targets, strict=True)
    rows = [row for end, target in pairs for row in range(end - target.kept, end)]
    return moved(torch.tensor(rows, dtype=torch.int64), device)


def _log_probs(
    oracle: Oracle, table: ProbeTable, targets: Sequence[Target], completions: Sequence[list[int]]
) -> Float[Tensor, "tokens vocab"]:
    """Return the log-probabilities from which the tokens of completions are drawn."""
    part = table.part([target.row for target in targets])
    with autocast(input_device(oracle.model)):
        logits_NV = completion_logits(
            oracle.model, oracle.hook, part.prompts, part.vectors, completions
        )
    return logits_NV.log_softmax(dim=-1, dtype=torch.float32)
