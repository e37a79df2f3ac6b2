from serving.models.tokenizer import TritonPythonModel  # noqa: F401
