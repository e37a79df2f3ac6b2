"""The TritonPythonModel classes behind each `1/model.py`. A model file in the repository is one import."""
