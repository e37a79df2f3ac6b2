"""The smallest requests that would take the most memory, sent to a real server, whose processes stay small.

The bounds are those of docs/security.md. Every model here is the first of an ensemble, by itself: what a
request becomes is made there.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, normalizers
from tritonclient.grpc import model_config_pb2 as triton

from clients import BadInput, GrpcClient
from export.encoder.config import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS
from export.encoder.tasks.images import smallest_image
from serving.embedded import Server, running
from serving.models.images import Processor
from serving.models.rows import Reader
from serving.models.terms import Terms
from shoal.model_config import to_text
from tests import tiny
from tests.memory import narrow, peak, stub_of
from tests.serving.models.test_images import exif_bomb, jpeg_with

MIB = 1 << 20
BOUNDS = {"pictures": 640 * MIB, "texts": 512 * MIB, "windows": 512 * MIB, "table": 640 * MIB}
CLIP = Processor(size=(224,), resample=3, crop=(224, 224), scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3)
CHARACTERS = Terms("text", "char", True, "", "", (1, 10), (), ("a",), 1, False, False)
HASHED = Terms("words", "word", True, "", r"\w+", (1, 1), (), (), 1 << 20, False, False)
TEXTS = {"max_length": "256", "length_buckets": "16,256", "max_text_bytes": "32768", "pad_id": "0"}
STRING, FLOAT, INTEGER = (triton.DataType.Value(f"TYPE_{name}") for name in ("STRING", "FP32", "INT64"))

# Of each model what the config says: module, most rows, inputs, outputs, parameters.
MODELS: dict[str, tuple[str, int, dict[str, int], dict[str, tuple[int, list[int]]], dict[str, str]]] = {
    "pictures": (
        "images",
        32,
        {"image": 1},
        {"pixel_values": (FLOAT, [3, -1, -1])},
        {
            "processor": CLIP.to_json(),
            "max_image_bytes": str(MAX_IMAGE_BYTES),
            "max_image_pixels": str(MAX_IMAGE_PIXELS),
            "sample": json.dumps(
                {"image": [base64.b64encode(smallest_image()).decode()], "encoding": "base64"}
            ),
        },
    ),
    "texts": (
        "tokenizer",
        64,
        {"text": -1},
        {"input_ids": (INTEGER, [-1])},
        TEXTS | {"layout": "text", "max_sequences": "64"},
    ),
    "windows": (
        "tokenizer",
        8,
        {"question": 1, "context": 1},
        {"input_ids": (INTEGER, [-1, -1])},
        TEXTS | {"layout": "windows", "max_sequences": "64", "stride": "128"},
    ),
    "table": (
        "rows",
        256,
        {"text": 1, "words": 1},
        {
            name: (kind, [-1])
            for number in (0, 1)
            for name, kind in ((f"terms:{number}", INTEGER), (f"counts:{number}", FLOAT))
        },
        {},
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("memory") / "model_repository"
    tokenizer = Tokenizer.from_str(tiny.wordpiece())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.BertNormalizer()])
    for name, (module, rows, inputs, outputs, parameters) in MODELS.items():
        config = triton.ModelConfig(name=name, backend="python", max_batch_size=rows)
        for key, width in inputs.items():
            config.input.add(name=key, data_type=STRING, dims=[width])
        for key, (kind, dims) in outputs.items():
            config.output.add(name=key, data_type=kind, dims=dims)
        for key, value in parameters.items():
            config.parameters[key].string_value = value
        folder = repository / name / "1"
        folder.mkdir(parents=True)
        (folder.parent / "config.pbtxt").write_text(to_text(config))
        (folder / "model.py").write_text(f"from serving.models.{module} import TritonPythonModel\n")
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "rows.json").write_text(Reader((), (CHARACTERS, HASHED)).to_json())
    with running(repository) as started:
        yield started


def _large(width: int, height: int) -> bytes:
    """A PNG in RGBA that is to be turned: it is in memory twice."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0),
        b"eXIf": b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 6, 0),
        b"IDAT": zlib.compress(bytes((1 + 4 * width) * height), 1),
        b"IEND": b"",
    }
    written = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def _small() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


def _column(values: Any) -> np.ndarray[Any, Any]:
    encoded = [[value if isinstance(value, bytes) else value.encode()] for value in values]
    return np.array(encoded, object)


# By what it would become: the model, the request, and the error; None: it is answered.
CASES: dict[str, tuple[str, Mapping[str, Any], str | None]] = {
    "a strip that is resized": ("pictures", {"image": [narrow(60_000)]}, "to resize it to 224 x 13440000"),
    "32 strips": ("pictures", {"image": [narrow(60_000)] * 32}, "image 0 has 1 x 60000 pixels"),
    "EXIF entries": ("pictures", {"image": [jpeg_with(exif_bomb(1 << 20))]}, "bytes of EXIF data"),
    "pictures as large as may be": (
        "pictures",
        {"image": [_large(7071, 7071), *[_small()] * 2, _large(7071, 7071)]},
        None,
    ),
    "texts that grow": ("texts", {"text": ["\ufdfa" * 10_922] * 64}, "text 0 becomes 196596 characters"),
    "texts as long as may be": ("texts", {"text": ["a " * 16_384] * 64}, None),
    "windows one token apart": (
        "windows",
        {"question": ["a " * 124] * 8, "context": ["a " * 16_384] * 8},
        "makes 130048 sequences of tokens, at most 64",
    ),
    "runs of 1 to 10 characters": (
        "table",
        {"text": ["a" * 250_000], "words": ["a"]},
        "column 'text': the texts have too many terms",
    ),
    "as many terms as may be": (
        "table",
        {"text": ["a" * 209_000, *["a"] * 63], "words": [" ".join(map(str, range(20_000))), *["a"] * 63]},
        None,
    ),
    "rows that are filled up": (
        "table",
        {"text": ["a"] * 256, "words": [" ".join(map(str, range(9_000))), *["a"] * 255]},
        "256 rows take 16384 terms each",
    ),
}
GOOD: dict[str, Mapping[str, Any]] = {
    "pictures": {"image": [_small()]},
    "texts": {"text": ["fine"]},
    "windows": {"question": ["who"], "context": ["fine"]},
    "table": {"text": ["a"], "words": ["fine"]},
}


@pytest.mark.parametrize("case", CASES)
def test_the_process_stays_small_and_goes_on(server: Server, case: str) -> None:
    model, request, said = CASES[case]
    process = stub_of(model)
    with GrpcClient(server.grpc, timeout=300.0) as client:
        arrays = {name: _column(values) for name, values in request.items()}
        if said is None:
            assert client.infer(model, arrays)
        else:
            with pytest.raises(BadInput, match=said):
                client.infer(model, arrays)
        assert peak(process) < BOUNDS[model], f"{peak(process) >> 20} MiB"
        assert client.infer(model, {name: _column(values) for name, values in GOOD[model].items()})
