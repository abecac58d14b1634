"""Rollouts in vLLM, with activations injected inside its models."""
