"""Drift: is what a model reads and answers today like what it was exported with?

`statistics` describes rows and is used at the export and live, `sampler` sends a share of the live rows from
the tokenizer's process, `monitor` receives them, compares, and exports metrics. See docs/drift.md.
"""
