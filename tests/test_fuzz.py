"""Whatever a stranger can hand to a parser ends in an answer or in that parser's own error, soon.

Valid examples are damaged: bits turned, slices cut, doubled and swapped, tokens put in that hurt. A short run
is part of `make test`; `make fuzz` takes `SHOAL_FUZZ_EXAMPLES` of each.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from export.tensorrt.shapes import read_traffic
from serving.check import check
from serving.generation.params import BadRequest, SamplingParams
from serving.generation.structure import grammar_of
from serving.models.images import BadImage, Processor, decode
from serving.models.rows import BadRow, Check, Reader
from serving.models.terms import Terms, TooManyTerms
from serving.supervisor.rollout import Rollout
from serving.supervisor.snapshot import Snapshot, specs_in
from shoal.errors import RepositoryError, ShoalError, UsageError
from shoal.manifest import history, served_manifests
from tests import versions

EXAMPLES = int(os.environ.get("SHOAL_FUZZ_EXAMPLES", "60"))
# What hurts: ends, depths, numbers that are none or too many, zeros, half characters, other digits.
HURTS = [
    *(b"", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", "²".encode(), "١".encode(), b"\n", b'"', b"\\", b"\\u0000"),
    *(b"{", b"}", b"[", b"]", b"[" * 3000, b'{"a":' * 3000, b"null", b"true", b"NaN", b"-Infinity", b"1e999"),
    *(
        b"9" * 5000,
        b"-1",
        b"0",
        b"18446744073709551616",
        b"1.5",
        b"../../etc/passwd",
        b"(" * 500,
        b"a{1,9999}",
    ),
]
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=timedelta(seconds=20),  # it hangs
    derandomize=EXAMPLES <= 60,
    suppress_health_check=list(HealthCheck),
)


@st.composite
def damaged(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds, with up to six edits."""
    made = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(made)))
        to = draw(st.integers(at, min(len(made), at + draw(st.sampled_from([1, 4, 64, 1 << 20])))))
        edit = draw(st.sampled_from(["cut", "double", "hurt", "bits", "end"]))
        if edit == "cut":
            del made[at:to]
        elif edit == "double":
            made[at:at] = made[at:to]
        elif edit == "hurt":
            made[at:to] = draw(st.sampled_from(HURTS))
        elif edit == "bits" and at < len(made):
            made[at] ^= draw(st.integers(1, 255))
        elif edit == "end":
            del made[at:]
    return bytes(made)


def as_text(content: bytes) -> str:
    return content.decode("utf-8", errors="surrogateescape")


CONFIG = versions.CONFIG.format(name="net", version=1).encode()
ENSEMBLE = b'name: "m"\nplatform: "ensemble"\nensemble_scheduling { step { model_name: "net" } }\n'


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("versions")
    versions.add(folder, "net", 1)
    return (folder / "net" / "1" / "manifest.json").read_bytes()


def _in_repository(look: Callable[[Path], Any], files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "model_repository"
        versions.add(repository, "net", 1)
        for name, content in files.items():
            path = repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        look(repository)


def _shown(repository: Path) -> None:
    """All that a supervisor does with a repository before Triton reads it."""
    view = Snapshot(repository)
    place = repository.parent / "view"
    place.mkdir()
    view.open(place, specs_in(repository))


@fuzz
@given(damaged([CONFIG, ENSEMBLE]))
@example("version_policy { specific { versions: ² } }".encode())
@example(b"version_policy { specific { versions: " + b"9" * 5000 + b" } }")
@example(b"\xff\xfe")
def test_configs(content: bytes) -> None:
    for look in (_shown, check, lambda path: list(served_manifests(path))):
        try:
            _in_repository(look, {"net/config.pbtxt": content})
        except ShoalError:
            continue


@pytest.mark.parametrize("name", ["²", "١", "9" * 200, "1 ", "-1", "+1", "1_0"])
def test_names_of_folders(name: str) -> None:
    def look(repository: Path) -> None:
        _shown(repository)
        assert specs_in(repository)["net"].versions == (1,)
        list(history(repository))

    _in_repository(look, {f"net/{name}/manifest.json": b"{}"})


def test_manifests(manifest: bytes) -> None:
    @fuzz
    @given(damaged([manifest]))
    @example(manifest.replace(b'"net"', b'["net"]'))
    @example(b"[" * 100_000)
    def run(content: bytes) -> None:
        for look in (check, lambda path: [str(found) for found in history(path)]):
            try:
                _in_repository(look, {"net/1/manifest.json": content})
            except RepositoryError:
                continue

    run()


STATE = json.dumps(
    {
        "schema": 1,
        "desired": {"net": {"config": CONFIG.decode(), "versions": [1]}},
        "served": {"net": {"config": CONFIG.decode(), "versions": [1]}},
        "good": {"net": {"config": CONFIG.decode(), "versions": [1]}},
        "trying": None,
        "refused": [{"models": ["net"], "target": {}, "reason": "it is damaged"}],
        "draining": {"net": [1]},
    }
).encode()


@fuzz
@given(damaged([STATE]))
@example(b"[" * 100_000)
def test_states_of_rollouts(content: bytes) -> None:
    """A state that cannot be read is none: nothing is known then, and nothing fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.json"
        path.write_bytes(content)
        Rollout.load(path, lambda: 0.0).see({})


SAMPLING = [
    b'{"max_tokens": 16, "temperature": 0.8, "top_p": 0.9, "stop": ["a", "b"], "seed": 1, "logprobs": 3}',
    b'{"logit_bias": {"7": -1.5}, "allowed_token_ids": [1, 2], "bad_words": ["no"], "ignore_eos": true}',
    b'{"structured_outputs": {"json": {"type": "object", "properties": {"a": {"type": "integer"}}}}}',
    b'{"structured_outputs": {"regex": "[a-z]+(b|c){2,5}"}}',
    b'{"structured_outputs": {"choice": ["yes", "no"]}}',
    b'{"structured_outputs": {"grammar": "start: /[a-z]+/ \\"!\\""}}',
]


@fuzz
@given(damaged(SAMPLING))
def test_sampling_parameters_and_structures(content: bytes) -> None:
    try:
        params = SamplingParams.from_json(as_text(content))
        params.check_tokens(100)
    except BadRequest:
        return
    if params.structured_outputs:
        try:
            grammar_of(*params.structured_outputs)
        except ValueError:
            return


SCHEMA = [
    b'{"type": "object", "properties": {"a": {"$ref": "#/$defs/b"}}, "required": ["a"],'
    b' "$defs": {"b": {"enum": [1]}}}',
    b'{"anyOf": [{"type": "string", "pattern": "^[a-z]+$", "minLength": 2},'
    b' {"type": "number", "multipleOf": 0.5}]}',
    b'{"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9},'
    b' "prefixItems": [{"const": null}]}',
]


@fuzz
@given(damaged(SCHEMA))
def test_schemas(content: bytes) -> None:
    try:
        given_ = {"structured_outputs": {"json": as_text(content)}}
        params = SamplingParams.from_json(json.dumps(given_))
        assert params.structured_outputs is not None
        grammar_of(*params.structured_outputs)
    except ValueError:  # BadRequest is one
        return


def _picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (9, 5), 3).save(file, kind, **options)
    return file.getvalue()


PICTURES = [
    _picture("PNG"),
    _picture("PNG", "P", transparency=1),
    _picture("PNG", "I;16"),
    _picture("PNG", "LA"),
    _picture("JPEG", quality=50, exif=Image.Exif()),
    _picture("JPEG", "CMYK", progressive=True),
]
PROCESSOR = Processor(size=(8,), resample=3, crop=(8, 8), scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3)


@fuzz
@given(damaged(PICTURES))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pictures(content: bytes) -> None:
    try:
        image = decode(content, "picture 1", max_bytes=1 << 20, max_pixels=1 << 16)
        pixels = PROCESSOR.pixels(image)
    except BadImage:
        return
    assert pixels.shape == (3, 8, 8) and np.isfinite(pixels).all()


READER = Reader(
    (Check("city", "city", 0, known=("Rome", "Lima")), Check("age", "age", 0, least=0.0, most=120.0)),
    (Terms("text", "word", True, "", r"\w+", (1, 2), (), ("a", "good"), 1, False, False),),
)


@fuzz
@given(
    damaged([b"Rome", b"Lima", b""]),
    damaged([b"a good fish " * 9]),
    st.floats(width=32, allow_nan=True, allow_infinity=True),
)
def test_rows(city: bytes, text: bytes, age: float) -> None:
    table = {
        "city": np.array([[b"Rome"], [city]], object),
        "text": np.array([[b"good"], [text]], object),
        "age": np.array([[1.0], [age]], np.float32),
    }
    try:
        READER.read(table, max_text_bytes=4096, max_request_terms=1000)
    except (BadRow, TooManyTerms):
        return


@fuzz
@given(damaged([b'{"batch": 4, "tokens": 32}\n{"batch": 1, "tokens": 8, "count": 100}\n']))
@example(b"[" * 100_000)
@example(b'{"batch": ' + b"9" * 5000 + b', "tokens": 1}')
def test_traffic_files(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traffic.jsonl"
        path.write_bytes(content)
        try:
            read_traffic(path)
        except UsageError as error:
            assert re.search("traffic", str(error))
