"""Smaller models out of large ones: structured pruning, then distillation from the original.

`prune` takes whole layers, attention heads and feed-forward columns out of a transformer encoder, so that
its matrices shrink and every runtime gets faster; `distill` trains what is left on plain, unlabelled text
until it answers like the original again. Both know a model as a `torch.nn.Module` that has the
transformer as `backbone`, takes int64 `input_ids` and `attention_mask`, and gives a dict of tensors.
"""
