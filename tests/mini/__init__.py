"""Tests of the mini world: messages, questions, corpus, tokenizer, weights."""
