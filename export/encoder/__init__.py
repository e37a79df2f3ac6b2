"""Encoders: a tokenizer or a preprocessor of pictures, a network, and what makes its numbers an answer."""
