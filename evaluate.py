"""Evaluate calibrated activation oracles on nine benchmarks: ``python evaluate.py --help``."""

from grpo_ao.cli import evaluate_main

if __name__ == "__main__":
    evaluate_main()
