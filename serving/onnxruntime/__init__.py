"""ONNX Runtime as every room of this project opens it: the only place that makes sessions and their options.

`options` reads what a Triton model config asks of a session; `sessions` opens a graph on the CPU or on a GPU.
"""
