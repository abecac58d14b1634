"""Make a question set from WildChat, or from other texts: ``--help`` shows the flags."""

from grpo_ao.cli import questions_main

if __name__ == "__main__":
    questions_main()
