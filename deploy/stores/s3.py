"""A bucket of S3, or of what speaks its protocol. Who may, and where it is, is told to boto3 as always: by
`AWS_ACCESS_KEY_ID`, a profile or the machine's role, and by `AWS_ENDPOINT_URL`.

    PREFIX/blobs/SHA256                  a file
    PREFIX/versions/NAME/TAG.json        a bundle, written once
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.stores.address import Address
from deploy.stores.bundle import MOST_BYTES, File
from deploy.stores.store import Nothing, StoreError, Taken
from shoal.errors import MissingDependency, first_line

try:
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
except ModuleNotFoundError as missing:
    raise MissingDependency(str(missing.name), extra="stores") from missing

# A server that says nothing is given up within half a minute.
_CONFIG = Config(connect_timeout=5, read_timeout=12, retries={"mode": "standard", "total_max_attempts": 2})
_BLOCK = 1 << 20
_NEVER = {"404", "NoSuchKey", "NotFound"}
_TAKEN = {"412", "PreconditionFailed"}


class S3:
    """See `Store`."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._bucket = address.place
        with self._named():
            self._client: Any = boto3.client("s3", config=_CONFIG)

    def put(self, file: File, path: Path) -> bool:
        key = self._blob(file)
        with self._named():
            found = self._head(key)
            if found is not None and found["ContentLength"] == file.size:
                return False
            self._client.upload_file(str(path), self._bucket, key)
        return True

    def publish(self, tag: str, bundle: bytes, files: dict[str, File]) -> str:
        key = self._key(tag)
        with self._named():
            try:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=bundle, IfNoneMatch="*")
            except ClientError as error:
                if _code(error) not in _TAKEN:
                    raise
                if self.bundle(tag) != bundle:
                    raise Taken(f"{self._address} holds another version under {tag}") from None
        return f"sha256:{hashlib.sha256(bundle).hexdigest()}"

    def tags(self) -> list[str]:
        prefix = self._key("").removesuffix(".json")
        with self._named():
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return [key[len(prefix) :].removesuffix(".json") for key in keys]

    def bundle(self, tag: str) -> bytes:
        with self._named(f"{self._address} holds nothing under {tag}", Nothing):
            body = self._client.get_object(Bucket=self._bucket, Key=self._key(tag))["Body"]
            return bytes(body.read(MOST_BYTES + 1))

    def get(self, file: File, path: Path) -> None:
        with self._named(f"{self._address} has lost {file.sha256}"), path.open("wb") as target:
            body = self._client.get_object(Bucket=self._bucket, Key=self._blob(file))["Body"]
            came = 0
            while came <= file.size and (block := body.read(_BLOCK)):
                came += len(block)
                target.write(block)
        if came != file.size:
            raise StoreError(f"{self._address}: {file.sha256} has another size than was pushed")

    def _head(self, key: str) -> Any:
        try:
            return self._client.head_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if _code(error) in _NEVER:
                return None
            raise

    def _blob(self, file: File) -> str:
        return f"{self._address.path}blobs/{file.sha256}"

    def _key(self, tag: str) -> str:
        return f"{self._address.path}versions/{self._address.name}/{tag}.json"

    @contextmanager
    def _named(self, nothing: str = "", kind: type[StoreError] = StoreError) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            if nothing and _code(error) in _NEVER:
                raise kind(nothing, hint="shoal push puts a version there") from error
            raise StoreError(f"{self._address}: {first_line(error)}") from error
        except (Boto3Error, BotoCoreError, KeyError, ValueError) as error:
            raise StoreError(
                f"{self._address}: {first_line(error)}",
                hint="AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_PROFILE",
            ) from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
