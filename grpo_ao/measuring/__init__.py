"""Measuring an oracle: answers to probes, other confidences in them, metrics."""
