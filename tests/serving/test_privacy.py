"""Nothing of a request is on a disk, in a log or in a metric; `docs/privacy.md` says so."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from openai import APIStatusError, OpenAI

from clients import ClientError, GrpcClient, HttpClient
from serving import service
from serving.ports import Ports
from serving.service import Service

SHARED_MEMORY = Path("/dev/shm")
BLOCK, LONGEST_MARK = 1 << 20, 64


def _holds(path: Path, mark: bytes) -> bool:
    with suppress(OSError), path.open("rb") as file:  # it may go meanwhile
        before = b""
        while block := file.read(BLOCK):
            if mark in before + block:
                return True
            before = block[-LONGEST_MARK:]
    return False


def _found(folders: list[Path], mark: str, since: float) -> list[Path]:
    """Regular files below the folders that were written since, and hold the mark."""
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= since
        if _holds(path, mark.encode())
    ]


def _ask(made: Service, mark: str) -> None:
    """By every way in, also where it is refused."""
    text = f"A shoal of {mark} swims north."
    for kind, url in ((GrpcClient, made.grpc), (HttpClient, made.http)):
        with kind(url) as client:
            client.embed([text])
            assert sum(part.tokens for part in client.generate(text, model="tiny", max_tokens=4)) > 0
            for model, asked in (("minilm", f"{mark} " * 400_000), ("nothing", text)):
                with suppress(ClientError):
                    client.embed([asked], model=model)
            with suppress(ClientError):
                list(client.generate(f"{mark} " * 100_000, model="tiny", max_tokens=4))
    openai = OpenAI(base_url=f"{made.gateway}/v1", api_key="none", max_retries=0)
    openai.embeddings.create(model="minilm", input=text)
    openai.completions.create(model="tiny", prompt=text, max_tokens=4)
    assert list(openai.completions.create(model="tiny", prompt=text, max_tokens=4, stream=True))
    for wrong in ({"logprobs": 10**6}, {"stop": [mark] * 10_000}, {"n": -1}):
        with pytest.raises(APIStatusError):
            openai.completions.create(model="tiny", prompt=text, extra_body=wrong)
    with pytest.raises(APIStatusError):
        openai.embeddings.create(model="minilm", input=f"{mark} " * 400_000)


@pytest.fixture
def made(own_repository: Path, tiny_repository: Path) -> Iterator[Service]:
    shutil.copytree(tiny_repository / "tiny", own_repository / "tiny")
    started = service.start(own_repository, Ports(0, 0, 0), gateway_port=0)
    yield started
    service.stop(started)


def test_a_text_leaves_no_trace(made: Service, tmp_path: Path) -> None:
    mark, begun = f"xyl{secrets.token_hex(12)}", time.time() - 1
    folders = [made.folder, made.repository, Path(os.environ["SHOAL_CACHE"]), Path(tempfile.gettempdir())]
    _ask(made, mark)
    assert _found(folders, mark, begun) == []
    assert mark not in made.log.read_text(errors="replace")
    base = made.health.rpartition("/")[0]
    triton = f"http://127.0.0.1:{made.record.ports.metrics}/metrics"
    for url in (triton, f"{base}/metrics", f"{base}/catalogue", f"http://{made.http}/v2"):
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert mark.encode() not in answer.read()
    control = tmp_path / "control"
    control.write_bytes(b"-" * (BLOCK - 5) + mark.encode() + b"-")  # across the end of a block
    assert _found([tmp_path], mark, begun) == [control]
    control.unlink()
    service.stop(made)
    assert _found([SHARED_MEMORY], mark, 0.0) == []
    assert _found(folders, mark, begun) == []
