"""Look at an ONNX file before it is trusted: what it would make a runtime read must lie beside it.

A graph may keep its weights in other files and names them by path. A file from a stranger can so name any
file of this machine, and a link can stand for one. Versions with a manifest were made here and are compared
by hash instead; this is for files that somebody else put into a repository.

The rules are those that ONNX itself came to (advisories CVE-2022-25882, CVE-2024-27318, CVE-2024-5187):
external data has a relative path inside the folder of the file, and is a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from shoal.errors import MissingDependency, RepositoryError, first_line


def inspect(path: Path) -> None:
    """Refuse a file that is not what it seems.

    Args:
        path: of the ONNX file, in its version's folder.

    Raises:
        RepositoryError: it is a link, no ONNX, or reads other files than its own.
        MissingDependency: `onnx` is not installed.
    """
    try:
        import onnx  # noqa: PLC0415 - only where a file has no manifest
    except ModuleNotFoundError as error:
        raise MissingDependency("onnx", extra="serve") from error
    _check_own(path, path)
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors share no base but this
        raise RepositoryError(f"{path} is not an ONNX file: {first_line(error)}") from error
    if not model.graph.node:
        raise RepositoryError(f"{path} is not an ONNX file: it has no graph")
    for location, offset, length in _external(model):
        _check_location(path, location)
        data = path.parent / location
        if not data.is_file():
            raise RepositoryError(f"{path} keeps weights in {location}, which is missing")
        _check_own(data, path)
        if offset < 0 or length < 0 or offset + length > data.stat().st_size:
            raise RepositoryError(f"{path} reads past the end of {location}", hint="get the file again")


def _check_own(file: Path, path: Path) -> None:
    """A link can be another file tomorrow, and can be one of this machine's own today."""
    kind = "a symbolic link" if file.is_symlink() else "a hard link" if file.stat().st_nlink > 1 else ""
    if kind:
        what = "" if file == path else f", which {path} reads,"
        raise RepositoryError(f"{file}{what} is {kind}", hint="put a copy of the file in its place")


def _check_location(path: Path, location: str) -> None:
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
    outside = ".." in (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
    folder = path.parent.resolve()
    if absolute or outside or not (folder / location).resolve().is_relative_to(folder):
        raise RepositoryError(
            f"{path} would read {location}, which is outside its folder", hint="do not serve this file"
        )


def _external(model: Any) -> Iterator[tuple[str, int, int]]:
    """Location, offset and length (bytes) of each tensor that is kept in another file."""
    for tensor in _tensors(model):
        if tensor.data_location == tensor.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            try:
                yield entry.get("location", ""), int(entry.get("offset", 0)), int(entry.get("length", 0))
            except ValueError:
                yield entry.get("location", ""), -1, 0


def _tensors(model: Any) -> Iterator[Any]:
    for function in model.functions:
        yield from _of_nodes(function.node)
    for training in model.training_info:
        yield from _of_graph(training.initialization)
        yield from _of_graph(training.algorithm)
    yield from _of_graph(model.graph)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                yield from _of_graph(attribute.g)
            for graph in attribute.graphs:
                yield from _of_graph(graph)
