"""Smaller models out of large ones: structured pruning, then distillation from the original.

`prune` takes whole layers, attention heads and feed-forward columns out of a transformer encoder, so that
its matrices shrink and every runtime gets faster; `distill` trains what is left on plain, unlabelled text
until it answers like the original again. Both take a model as a `export.encoder.tasks.heads.Head`: a
transformer and what a task does with its output.
"""
