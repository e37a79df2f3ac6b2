"""Decoder language models: checkpoint -> one graph for prefill and decode -> proven precisions."""
