"""Tests of training: configuration, credit, monitor, the folder of a run."""
