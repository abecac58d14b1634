"""Tests of probes and of the loaders of question sets."""
