"""Make a question set from WildChat, or from other texts: ``--help`` shows the flags."""

import sys

from grpo_ao.cli import main

if __name__ == "__main__":
    main(["questions", *sys.argv[1:]])
