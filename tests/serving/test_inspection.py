"""An ONNX file of a stranger reads nothing but its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from serving import embedded
from serving.inspection import inspect
from shoal.errors import RepositoryError


def model_with(location: str, *, length: int = 16, nested: str = "") -> onnx.ModelProto:
    """A graph that adds a weight of four floats, kept in another file."""
    weight = numpy_helper.from_array(np.ones(4, np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        weight.external_data.add(key=key, value=value)
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    if nested == "constant":
        nodes = [
            helper.make_node("Constant", [], ["w"], value=weight),
            helper.make_node("Add", ["x", "w"], ["y"]),
        ]
        return helper.make_model(helper.make_graph(nodes, "g", [value], [output]), ir_version=8)
    if nested == "branch":
        inner = helper.make_graph(
            [helper.make_node("Identity", ["w"], ["out"])],
            "inner",
            [],
            [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [4])],
            [weight],
        )
        flag = numpy_helper.from_array(np.array(True), "flag")
        node = helper.make_node("If", ["flag"], ["y"], then_branch=inner, else_branch=inner)
        return helper.make_model(helper.make_graph([node], "g", [value], [output], [flag]), ir_version=8)
    node = helper.make_node("Add", ["x", "w"], ["y"])
    return helper.make_model(helper.make_graph([node], "g", [value], [output], [weight]), ir_version=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    version = tmp_path / "model_repository" / "strange" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text('backend: "onnxruntime"\n')
    (version / "weights.bin").write_bytes(np.ones(4, np.float32).tobytes())
    (tmp_path / "secret").write_bytes(b"0" * 64)
    return version


def save(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("nested", ["", "constant", "branch"])
def test_weights_beside_the_file_are_fine(folder: Path, nested: str) -> None:
    inspect(save(folder, model_with("weights.bin", nested=nested)))


@pytest.mark.parametrize("nested", ["", "constant", "branch"])
@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../../../secret", "x/../../../../secret", "C:\\secret", "..\\secret"]
)
def test_nothing_outside_its_folder_is_read(folder: Path, location: str, nested: str) -> None:
    path = save(folder, model_with(location, nested=nested))
    with pytest.raises(RepositoryError, match="which is outside its folder"):
        inspect(path)
    with pytest.raises(RepositoryError, match="which is outside its folder"):
        embedded.start(folder.parent.parent)


def _symbolic(link: Path, target: Path) -> None:
    link.symlink_to(target)


@pytest.mark.parametrize(("make", "kind"), [(_symbolic, "a symbolic link"), (os.link, "a hard link")])
@pytest.mark.parametrize("which", ["weights.bin", "model.onnx"])
def test_links_are_refused(
    folder: Path, make: Callable[..., None], kind: str, which: str, tmp_path: Path
) -> None:
    path = save(folder, model_with("weights.bin"))
    away = (folder / which).rename(tmp_path / which)
    if kind == "a hard link":
        make(away, folder / which)
    else:
        make(folder / which, away)
    # Where a link leads is looked at before that it is one.
    outside = which == "weights.bin" and kind == "a symbolic link"
    with pytest.raises(RepositoryError, match="outside its folder" if outside else kind):
        inspect(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it has no graph"),
        (b"\x08\x08", "it has no graph"),
        (b"not an onnx file at all", "is not an ONNX file"),
        (model_with("missing.bin").SerializeToString(), "keeps weights in missing.bin, which is missing"),
        (model_with("weights.bin", length=17).SerializeToString(), "reads past the end of weights.bin"),
    ],
)
def test_what_is_broken_is_named(folder: Path, content: bytes, said: str) -> None:
    path = folder / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(RepositoryError, match=said):
        inspect(path)
