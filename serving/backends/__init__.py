"""Python-based Triton backends, each a package with a `model.py` that Triton loads by the backend's name."""
