"""A GRPO step over several processes: the time and memory of each.

    accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 2 \\
        -m benchmarks.processes --shape qwen3-8b

With ``fsdp.yaml`` the base is divided. ``--questions`` is the whole step's, divided over the
processes. The 8B shape has random weights; ``--shape mini`` runs on CPUs. Without a launcher the
same step is measured in one process.
"""

import argparse
from dataclasses import asdict

import torch
from rich.console import Console

from benchmarks.step import SHAPES, Work, make_oracle, make_table, measure_steps
from grpo_ao.processes import Processes, take_over_fsdp
from grpo_ao.training.passes import avoid_cudnn_attention


def main() -> None:
    parser = argparse.ArgumentParser(description="A GRPO step over several processes.")
    parser.add_argument("--shape", choices=("mini", *SHAPES), required=True)
    parser.add_argument("--questions", type=int, default=8, help="of a step, 8 completions each")
    parser.add_argument("--steps", type=int, default=3, help="whole steps that are timed")
    options = parser.parse_args()
    divided = take_over_fsdp()
    processes = Processes()
    avoid_cudnn_attention()  # As a run does.
    torch.manual_seed(0)  # Each process makes the same weights.
    oracle = make_oracle(options.shape, processes.device, divided)
    table = make_table(options.shape, oracle, max(64, options.questions))
    work = Work.of(options.shape)._replace(questions=options.questions)
    row = measure_steps(oracle, table, True, options.steps, work)
    rows = processes.gathered([asdict(row)])
    if not processes.is_main:
        return
    console = Console(width=150)
    console.print(f"{processes.count} processes, base {'divided' if divided else 'whole'}")
    for index, measured in enumerate(rows):
        peak = "" if measured["peak_gb"] is None else f", peak {measured['peak_gb']:.1f} GB"
        console.print(
            f"process {index}: {measured['seconds']:.3f} s a step ({measured['note']}){peak}"
        )


if __name__ == "__main__":
    main()
