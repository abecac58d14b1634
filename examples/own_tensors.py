"""Own tensors: ask an oracle about directions of the residual stream instead of a text.

Here they are means of activations, and a difference of two means; a steering vector or a feature of
a sparse autoencoder is asked about alike.

    python examples/own_tensors.py
"""

import torch
from torch import Tensor

from grpo_ao import Oracle, Positions
from grpo_ao.oracle.activations import extract_activations

LAYER = 4
TEXT = "My name is {} and I live in {}. How do I fix the {}? I am in a hurry, please answer."
PEOPLE = [(name, city) for name in ("Anna", "Ben", "Clara") for city in ("Rome", "Oslo")]


def mean_activation(oracle: Oracle, texts: list[str]) -> Tensor:
    """Return the mean over texts of what is read at each of their last 20 tokens: (20, D)."""
    where = Positions.parse("last:20")
    read = extract_activations(oracle.model, oracle.tokenizer, texts, [LAYER], where)
    return torch.stack([by_layer[LAYER] for by_layer in read]).mean(dim=0)


def main() -> None:
    """Ask what the means are about, and what is left of one without the other."""
    oracle = Oracle.mini()
    pipe_KD, cake_KD = (
        mean_activation(oracle, [TEXT.format(*person, thing) for person in PEOPLE])
        for thing in ("pipe", "cake")
    )
    directions = {"pipe": pipe_KD, "cake": cake_KD, "pipe less cake": pipe_KD - cake_KD}
    for name, vectors_KD in directions.items():
        (answer,) = oracle.ask(vectors=[vectors_KD], questions=["What is the topic?"], layers=LAYER)
        print(f"{name:15} {answer.answer:12} its probability: {answer.answer_probability:.2f}")


if __name__ == "__main__":
    main()
