"""A Python-based backend named `onnxruntime`, for a Triton that lacks the C++ one.

The same `config.pbtxt` loads on both. `model` answers Triton's calls; `serving.onnxruntime` reads the config.
"""
