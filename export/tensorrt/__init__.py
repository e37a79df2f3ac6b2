"""TensorRT engines out of the plain ONNX graph, before its fusions for ONNX Runtime.

shapes       -> which batch sizes and lengths an engine is built for
prepare      -> the graph in fp16, or without the strings that TensorRT does not know
build        -> the engine, and what it was built with and for
fingerprint  -> what it needs of the GPU and the TensorRT that are to run it
engine       -> all of that as the network of a version, in the place of an ONNX file
run          -> the engine in this process, for its evidence
config       -> the engine, or ONNX Runtime's TensorRT, in a Triton config

Tried here: building for a GPU that is not there, by TensorRT-RTX 1.7.1. Untried: `tensorrt` itself (it
comes with the official container and needs a GPU to build), running an engine, Triton serving one.
"""

# Precisions: TensorRT's own engines, and a graph that ONNX Runtime runs through TensorRT.
ENGINES = ("tensorrt-fp32", "tensorrt-fp16")
ACCELERATED = "ort-tensorrt-fp16"
