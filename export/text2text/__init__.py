"""Encoder-decoder models (T5, BART, Marian): a text to another text. The same steps as for other models."""
