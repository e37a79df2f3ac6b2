"""Starts Triton, and the code that runs inside it.

`embedded` runs the real tritonserver from a Python wheel; `backends` and `models` are what that server,
or the one of the official container, loads. Nothing here imports torch or transformers.
"""
