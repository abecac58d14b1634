"""Tests of rollouts in vLLM, of all that is not vLLM itself."""
