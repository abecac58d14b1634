"""How the shipped mini weights were made: corpus, tokenizer, base, oracle."""
