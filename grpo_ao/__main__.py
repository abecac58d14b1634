"""``python -m grpo_ao`` is ``grpo-ao``, for launchers that start a module."""

from grpo_ao.cli import main

if __name__ == "__main__":
    main()
