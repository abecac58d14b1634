"""Evaluate calibrated activation oracles on nine benchmarks: ``python evaluate.py --help``."""

import sys

from grpo_ao.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
