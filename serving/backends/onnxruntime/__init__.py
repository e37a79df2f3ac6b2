"""A Python-based backend named `onnxruntime`, for a Triton that lacks the C++ one.

The same `config.pbtxt` loads on both. `settings` reads it, `model` answers Triton's calls.
"""
