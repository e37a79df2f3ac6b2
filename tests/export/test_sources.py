"""Whatever a checkpoint, a library or a file throws: one line that says what failed, and the exit code."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from export.encoder import config, prepare
from shoal.cli import app as cli
from tests import tiny
from tests.broken import CASES
from tests.broken.damage import CONFIG, WEIGHTS, cut, write


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints with nothing wrong, to be damaged in copies."""
    folder = tmp_path_factory.mktemp("sound")
    tiny.make(folder / "bert", "BertModel")
    tiny.make(folder / "classes", "BertForSequenceClassification", num_labels=3)
    tiny.make_vit(folder / "vit", num_labels=3)
    tiny.make_decoder(folder / "decoder", "LlamaForCausalLM")
    tiny.make_encoder_decoder(folder / "writer", "T5ForConditionalGeneration")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def shoal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """`shoal export SOURCE ...` in this process: its exit code and what it says."""

    def call(source: Any, *flags: str) -> tuple[int, str]:
        arguments = [
            "shoal",
            "export",
            str(source),
            "-r",
            str(tmp_path / "repository"),
            "--name",
            "x",
            *flags,
        ]
        monkeypatch.setattr(sys, "argv", arguments)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert not [path for path in (tmp_path / "repository").glob("*") if path.is_dir()]
        assert "\x1b[" not in said.err
        return int(ended.value.code or 0), said.err

    return call


@pytest.mark.parametrize("name", CASES)
def test_a_source_that_cannot_be_exported(
    name: str, sound: dict[str, Path], tmp_path: Path, shoal: Callable[..., tuple[int, str]]
) -> None:
    base, damage, flags, code, line = CASES[name]
    folder = Path(shutil.copytree(sound[base], tmp_path / base))
    damage(folder)
    ended, said = shoal(folder, *flags)
    (error,) = [text for text in said.splitlines() if text.startswith("error: ")]
    assert re.search(line, error), error
    assert ended == code, said
    assert "defect" not in error and "Traceback" not in said


@pytest.mark.parametrize(
    ("source", "code", "line"),
    [
        ("/does/not/exist", 2, "no checkpoint at /does/not/exist"),
        ("no-such-package-here", 2, "not an installed package, and could not be had from the hub"),
        ("no/such-model-here", 2, "could not be had from the hub"),
        ("..", 1, "has no config.json"),
        ("a b", 2, "no checkpoint at a b"),
        ("nowhere.gguf", 2, "there is no file nowhere.gguf"),
        ("typing", 2, "could not be had from the hub"),
    ],
)
def test_a_source_that_is_not_there(
    source: str, code: int, line: str, shoal: Callable[..., tuple[int, str]]
) -> None:
    ended, said = shoal(source)
    assert re.search(line, said) and ended == code, said


def test_a_gguf_file_that_is_cut_off(tmp_path: Path, shoal: Callable[..., tuple[int, str]]) -> None:
    write(tmp_path / "half.gguf", b"GGUF\x03\x00\x00\x00\x10")
    ended, said = shoal(tmp_path / "half.gguf")
    assert (
        ended == 1 and "transformers cannot read half.gguf: " in said and "is the download complete?" in said
    )


def test_a_file_is_not_a_folder(sound: dict[str, Path], shoal: Callable[..., tuple[int, str]]) -> None:
    ended, said = shoal(sound["bert"] / CONFIG)
    assert ended in (1, 2) and "config.json" in said


def test_what_a_library_raises_is_kept_in_a_log(
    sound: dict[str, Path], tmp_path: Path, shoal: Callable[..., tuple[int, str]]
) -> None:
    folder = Path(shutil.copytree(sound["bert"], tmp_path / "bert"))
    cut(folder / WEIGHTS)
    _, said = shoal(folder)
    log = Path(re.search(r"traceback: (\S+?)\)?$", said.strip())[1])  # type: ignore[index]
    assert "safetensors" in log.read_text() and "Traceback" in log.read_text()


def test_what_is_ours_stays_a_defect(
    sound: dict[str, Path], shoal: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "network_inputs", lambda *_: config.buckets_of(None, 8))
    ended, said = shoal(sound["classes"], "--precision", "fp32")
    assert ended == 1
    assert re.search(r"error: AttributeError: .* \(this is a defect of Shoal's own; traceback: ", said), said
