"""Train a calibrated activation oracle: ``python train.py --help``."""

import sys

from grpo_ao.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
