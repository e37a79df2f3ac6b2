"""An OCI registry, as ORAS lays it out: the bundle is the config, each file a layer with its path as title.

https://github.com/opencontainers/image-spec/blob/v1.1.0/manifest.md
Who may is what `docker login` or `oras login` has stored. A registry on this machine is asked over HTTP, any
other over HTTPS.
"""

from __future__ import annotations

import hashlib
import ipaddress
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.stores.address import Address
from deploy.stores.bundle import MOST_BYTES, File
from deploy.stores.store import Nothing, StoreError, Taken
from shoal.errors import MissingDependency, first_line

try:
    import requests
    from oras.provider import Registry
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry
except ModuleNotFoundError as missing:
    raise MissingDependency(str(missing.name), extra="stores") from missing

BUNDLE_TYPE = "application/vnd.shoal.bundle.v1+json"
FILE_TYPE = "application/octet-stream"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_TITLE = "org.opencontainers.image.title"
_BLOCK = 1 << 20
_CHUNKED = 64 << 20  # bytes; what is larger does not go through memory at once
# Of a request: seconds to connect in, and between two parts of an answer.
_CONNECT_SECONDS, _READ_SECONDS = 5, 25


class _Registry(Registry):
    """With retries of its own for two minutes oras would keep whoever has mistyped a host's name waiting."""

    do_request = Registry.do_request.__wrapped__


class _Adapter(HTTPAdapter):
    """A server that does not answer is given up, and one that is overloaded asked again, three times."""

    def __init__(self) -> None:
        super().__init__(
            max_retries=Retry(3, connect=1, read=0, backoff_factor=0.3, status_forcelist=[502, 503, 504])
        )

    def send(self, request: Any, **options: Any) -> Any:
        options["timeout"] = (_CONNECT_SECONDS, _READ_SECONDS)
        return super().send(request, **options)


class Oci:
    """See `Store`."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._registry: Any = _Registry(
            hostname=address.place, insecure=_is_here(address.place), auth_backend="token"
        )
        for scheme in ("http://", "https://"):
            self._registry.session.mount(scheme, _Adapter())
        self._name = f"{address.place}/{address.path}{address.name}"
        with self._named():
            self._registry.auth.load_configs(self._at("any"))

    def put(self, file: File, path: Path) -> bool:
        layer = _layer(file, FILE_TYPE)
        with self._named():
            if self._registry.blob_exists(layer, self._at("any")):
                return False
            self._upload(layer, path)
        return True

    def publish(self, tag: str, bundle: bytes, files: dict[str, File]) -> str:
        own = File(len(bundle), hashlib.sha256(bundle).hexdigest())
        found = self._manifest(tag)
        if found is not None and found.get("config", {}).get("digest") != _digest(own):
            raise Taken(f"{self._address} holds another version under {tag}")
        layers = [
            _layer(file, FILE_TYPE) | {"annotations": {_TITLE: path}} for path, file in sorted(files.items())
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": BUNDLE_TYPE,
            "config": _layer(own, BUNDLE_TYPE),
            "layers": layers,
        }
        with self._named(), tempfile.NamedTemporaryFile() as made:
            made.write(bundle)
            made.flush()
            if not self._registry.blob_exists(_layer(own, BUNDLE_TYPE), self._at(tag)):
                self._upload(_layer(own, BUNDLE_TYPE), Path(made.name))
            answer = self._registry.upload_manifest(manifest, self._at(tag))
            _check(answer)
        return str(answer.headers.get("Docker-Content-Digest", ""))

    def tags(self) -> list[str]:
        with self._named():
            answer = self._registry.do_request(
                f"{self._registry.prefix}://{self._at('any').tags_url()}", "GET", headers={}
            )
            if answer.status_code == requests.codes.not_found:
                return []
            _check(answer)
            return list(self._registry.get_tags(self._at("any")))

    def bundle(self, tag: str) -> bytes:
        found = self._manifest(tag)
        if found is None:
            raise Nothing(
                f"{self._address} holds nothing under {tag}", hint="shoal push puts a version there"
            )
        config = found.get("config", {})
        if config.get("mediaType") != BUNDLE_TYPE:
            raise StoreError(f"{self._address} holds something else than a version of Shoal's under {tag}")
        digest = str(config.get("digest"))
        with self._named(), self._registry.get_blob(self._at(tag), digest, stream=True) as answer:
            _check(answer)
            text = b"".join(_limited(answer, MOST_BYTES))
        if digest != f"sha256:{hashlib.sha256(text).hexdigest()}":
            raise StoreError(f"{self._address} holds another list of files than was pushed")
        return text

    def get(self, file: File, path: Path) -> None:
        with (
            self._named(),
            self._registry.get_blob(self._at("any"), _digest(file), stream=True) as answer,
            path.open("wb") as target,
        ):
            _check(answer)
            for block in _limited(answer, file.size):
                target.write(block)
        if path.stat().st_size != file.size:
            raise StoreError(f"{self._address}: {file.sha256} has another size than was pushed")

    def _at(self, tag: str) -> Any:
        return self._registry.get_container(f"{self._name}:{tag}")

    def _manifest(self, tag: str) -> Any:
        """None: nothing has this tag."""
        with self._named():
            answer = self._registry.do_request(
                f"{self._registry.prefix}://{self._at(tag).manifest_url()}",
                "GET",
                headers={"Accept": MANIFEST_TYPE},
            )
            if answer.status_code == requests.codes.not_found:
                return None
            _check(answer)
            if not isinstance(found := answer.json(), dict):
                raise ValueError("the registry answered with no manifest")
            return found

    def _upload(self, layer: dict[str, Any], path: Path) -> None:
        large = layer["size"] > _CHUNKED
        _check(self._registry.upload_blob(str(path), self._at("any"), layer, do_chunked=large))

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (requests.RequestException, ValueError) as error:
            raise StoreError(
                f"{self._address}: {first_line(error)}", hint="is the registry there? docker login REGISTRY"
            ) from error


def _is_here(place: str) -> bool:
    host = place.partition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(file: File) -> str:
    return f"sha256:{file.sha256}"


def _layer(file: File, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "size": file.size, "digest": _digest(file)}


def _check(answer: Any) -> None:
    if answer.status_code not in (200, 201, 202):
        raise ValueError(f"the registry answered {answer.status_code} {answer.reason}")


def _limited(answer: Any, most: int) -> Iterator[bytes]:
    """The body in blocks, and at most one block more than `most` bytes."""
    came = 0
    for block in answer.iter_content(_BLOCK):
        yield block
        came += len(block)
        if came > most:
            return
