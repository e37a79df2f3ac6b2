"""Weights and activations in fewer bits; each method once, for every family."""
