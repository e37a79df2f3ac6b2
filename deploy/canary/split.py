"""The files by which Envoy is told where requests go, and in which it says what became of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.canary.guards import Answered
from deploy.replica import Replica
from deploy.templates import render
from serving.ports import LOOPBACK
from shoal.errors import UsageError
from shoal.paths import write_atomic

KINDS = ("grpc", "http")
MOST_SHARE = 0.5
FLUSH = "--file-flush-interval-msec 200"  # of Envoy, which else keeps its log of requests for 10 s
_KEY = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_UNARY = re.compile(
    r"/inference\.GRPCInferenceService/ModelInfer|/v2/models/(?P<model>[^/]+)/(infer|generate)"
)
_STREAM = re.compile(
    r"/inference\.GRPCInferenceService/ModelStreamInfer|/v2/models/(?P<model>[^/]+)/generate_stream"
)
# By which Envoy says that an answer was not sent to its end: the caller left, or the server did.
_CUT = {"DC", "DR", "UC", "UR", "UT", "SI", "DT", "LR", "UPE", "DPE"}
_LARGE = 64 << 20  # bytes; the file of requests is emptied when it is larger and was read


@dataclass(frozen=True)
class Split:
    """A share of the requests that goes to the canary.

    Attributes:
        rollout: its id.
        model: only its inference over HTTP is split; of gRPC, whose paths name no model, that of all.
        share: from 0.0001 to 0.5; 0.0 where callers get none of its answers, and `copies` is not 0.
        key: name of a header; requests with the same value of it go to the same version. "": each by chance.
        copies: the share of requests of which a copy goes to `deploy.canary.mirror`, up to 0.5.
    """

    rollout: str
    model: str
    share: float
    key: str = ""
    copies: float = 0.0

    def __post_init__(self) -> None:
        for share in {self.share, self.copies} - {0.0} or {0.0}:
            if not 0.0001 <= share <= MOST_SHARE:
                raise UsageError("the share must be from 0.01 % to 50 %")
        if self.key and not _KEY.fullmatch(self.key):
            raise UsageError(f"{self.key!r} is no name of a header", hint="such as x-user")

    @property
    def weight(self) -> int:
        """Its share of 10,000."""
        return round(self.share * 10_000)

    @property
    def copied(self) -> int:
        """Copies of 10,000 requests."""
        return round(self.copies * 10_000)

    def paths(self, kind: str) -> list[str]:
        """What is split of the requests of a kind, see `KINDS`: inference, and nothing else."""
        if kind == "grpc":
            return [f"/inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "ModelStreamInfer")]
        return [f"/v2/models/{self.model}/{name}" for name in ("infer", "generate", "generate_stream")]


@dataclass(frozen=True)
class Folder:
    """Through which `shoal canary` steers an Envoy.

    Attributes:
        folder: absolute.
        grpc, http: ports on loopback of the canary's Triton, which runs beside Envoy.
        probe_seconds: after which Envoy looks again whether it serves.
        mirror: port on loopback to which copies of requests go, see `deploy.canary.mirror`.
        servers: host:port of the gRPC endpoint of each server of the version that is served.
    """

    folder: Path
    grpc: int = 8011
    http: int = 8010
    probe_seconds: float = 1.0
    mirror: int = 8012
    servers: Sequence[str] = ()

    @property
    def server(self) -> Replica:
        """The canary, whose own Triton says whether it is ready."""
        return Replica(LOOPBACK, self.grpc, self.http, self.http)

    @property
    def header(self) -> str:
        """Its value is the rollout and the version that a request was sent to."""
        return "x-shoal-rollout"

    def routes(self, kind: str) -> Path:
        """The file that says where requests of a kind go."""
        return self.folder / "routes" / f"{kind}.yaml"  # alone there: Envoy reads it when anything is renamed

    @property
    def log(self) -> Path:
        """A line of JSON for each request, while there is a canary."""
        return self.folder / "requests.jsonl"

    @property
    def _addresses(self) -> tuple[str, str]:
        """As Envoy writes them."""
        return f"{LOOPBACK}:{self.grpc}", f"{LOOPBACK}:{self.http}"

    def send(self, split: Split | None) -> None:
        """Tell Envoy where requests go. It takes this up at once, and what runs goes on where it is.

        Raises:
            OSError: a file cannot be written.
        """
        for kind in KINDS:
            self.routes(kind).parent.mkdir(exist_ok=True)
            try:
                write_atomic(self.routes(kind), render("split.yaml.j2", name=kind, split=split))
            except OSError:
                if split is not None:
                    raise
                self._link_none(kind)

    def prepare(self) -> None:
        """Write the routes without a canary, so that they can be had again on a disk that is full.

        Raises:
            OSError: a file cannot be written.
        """
        self._none("").parent.mkdir(exist_ok=True)
        for kind in KINDS:
            write_atomic(self._none(kind), render("split.yaml.j2", name=kind, split=None))

    def _none(self, kind: str) -> Path:
        return self.folder / "none" / f"{kind}.yaml"

    def _link_none(self, kind: str) -> None:
        link = self.routes(kind).with_suffix(".none")
        link.unlink(missing_ok=True)
        os.link(self._none(kind), link)
        link.replace(self.routes(kind))
        link.unlink(missing_ok=True)  # where both were the same file already

    @property
    def end(self) -> int:
        """Where the log ends now."""
        return self.log.stat().st_size if self.log.exists() else 0

    def answered(self, rollout: str, model: str, position: int) -> tuple[list[Answered], int]:
        """The requests that have ended since `position` in the log, and the position behind them."""
        try:
            with self.log.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(position if position <= size else 0)
                text = file.read()
                end = text.rfind(b"\n") + 1
                position = file.tell() - len(text) + end
        except FileNotFoundError:
            return [], 0
        if position > _LARGE and end == len(text):
            with suppress(OSError):  # Envoy may run as another user
                os.truncate(self.log, 0)  # what it writes in this moment is lost, and counts for no version
                position = 0
        return list(self._requests(text[:end], rollout, model)), position

    def _requests(self, lines: bytes, rollout: str, model: str) -> Iterator[Answered]:
        for line in lines.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and (request := self._request(entry, rollout, model)):
                yield request

    def _request(self, entry: dict[str, Any], rollout: str, model: str) -> Answered | None:
        """None: it is of another rollout, of another model, or no inference."""
        of, _, version = str(entry.get("of")).partition(" ")
        path = str(entry.get("path")).partition("?")[0]
        unary, stream = _UNARY.fullmatch(path), _STREAM.fullmatch(path)
        found = unary or stream
        if of != rollout or version not in ("old", "new") or not found or found["model"] not in (None, model):
            return None
        new = version == "new"
        failed = (
            entry.get("status") != 200
            or (path.startswith("/inference.") and entry.get("grpc") != 0)
            or bool(_CUT & set(str(entry.get("flags") or "").split(",")))
            or (new and entry.get("host") not in self._addresses)  # another server had to answer
        )
        if stream and not failed:
            return None  # its errors are inside of it, so that nothing says that it was good
        took = entry.get("us")  # microseconds
        seconds = took / 1e6 if unary and isinstance(took, (int, float)) and took > 0 else None
        return Answered(new, failed, seconds)
