"""A model in, a proven version in a Triton model repository out.

`Recipe` -> `to_onnx` -> `optimize` / `quantize` -> `verify` -> `repository.write`; `pipeline.export`
runs them in this order. `Exported` is what travels between the stages.
"""
