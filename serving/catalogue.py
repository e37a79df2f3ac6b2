"""What a server serves, for a gateway in front of it: one entry for each model that users call.

Triton's own endpoints that tell a model's config take the admin key. The catalogue needs none: it is read
from the files of the repository, and holds only what callers of a model have to know, and how the version
was proven. It changes nothing.

A manifest or a tokenizer that is missing or damaged leaves fields of its entry empty, and fails nothing: the
server may serve a model that was not exported by this project.
"""

from __future__ import annotations

import hashlib
import math
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from shoal import dialect, model_config, tasks, tools
from shoal.errors import RepositoryError
from shoal.layout import read_regular
from shoal.manifest import FILENAME, Manifest
from shoal.names import ENCODER, ESTIMATOR, part_name
from shoal.wire import FEATURES

Read = TypeVar("Read")

# Figures of the evidence that say how close a version is to the original, whatever family it is of.
EVIDENCE = (
    "size_bytes",
    "perplexity",
    "reference_perplexity",
    "metric",
    "score",
    "reference_score",
    "value",
    "reference_value",
    "min_cosine",
    "mean_cosine",
    "agreement",
    "batch_invariance",
)
TABLES = "tabular-"  # how the tasks of estimators begin
_TOKENIZER = "tokenizer.json"
# The largest tokenizers have about 35 MB. A larger file is none, and is not read into memory.
_MOST_BYTES = 128 << 20
_FINGERPRINT_DIGITS = 16
_REMEMBERED = 256  # files and configs: more than one server has


class Spec(Protocol):
    """One model as a server has loaded it; `serving.supervisor.snapshot.ModelSpec` is the real one."""

    @property
    def config(self) -> str: ...
    @property
    def versions(self) -> tuple[int, ...]: ...
    @property
    def steps(self) -> frozenset[str]: ...


class Tensor(msgspec.Struct, frozen=True):
    """An input or an output of a model.

    Attributes:
        dtype: as Triton names it without `TYPE_`, e.g. `FP32`.
        dims: of one row; -1 is any number. Where `max_batch_size` is above 0, the number of rows stands
            before these.
        optional: whether a request may leave it out; of an output always false.
    """

    dtype: str
    dims: list[int]
    optional: bool = False


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One model that users call. A number that is not known is 0, and a text that is not known is "".

    Attributes:
        name: of the model, as a request names it.
        task: what it is for, e.g. `text-generation`, `sentence-similarity` or `tabular-classification`.
        version: the number of the served version.
        precision: of the version, e.g. `fp32` or `int8`.
        sha256: the beginning of a hash over the version's number and the hashes of its files, in hexadecimal
            digits. It is the same for the same version, and changes with any file that the evidence depends
            on.
        source: what the version was made from: the name of a package or of a repository, or a folder.
        created: when the version was made, in seconds since 1970.
        max_model_len: most tokens of a prompt and its answer together; of other models, the tokens after
            which a text is cut.
        max_batch_size: most rows in one request; 0: a request has one row, without a dimension for rows.
        max_num_seqs: most requests that a decoder runs at once.
        max_queue_size: most requests that wait; a model refuses what comes after them.
        chat_template: the Jinja template that turns messages into a prompt.
        tool_format: how the model writes that it calls a tool, see `shoal.tools`; "": it has no chat
            template.
        special_tokens: name -> text of the tokens that the chat template reads.
        control_tokens: text -> id of the tokens that a decoder's tokenizer has beside its vocabulary.
        prompts: name -> text that an embedding model puts before a text.
        default_prompt: the name of that for texts without one; "": none.
        tokenizer: whether `tokenizer_of` finds its tokenizer.
        labels: of the classes, in their order, where the config holds them.
        inputs: name -> what a request sends.
        outputs: name -> what an answer has.
        columns: of a table with one input for each column: the names of these inputs, in the columns' order.
        evidence: figures of how the version was proven, by the names of `EVIDENCE`; only those that were
            measured.
    """

    name: str
    task: str = ""
    version: int = 0
    precision: str = ""
    sha256: str = ""
    source: str = ""
    created: int = 0
    max_model_len: int = 0
    max_batch_size: int = 0
    max_num_seqs: int = 0
    max_queue_size: int = 0
    chat_template: str = ""
    tool_format: str = ""
    special_tokens: dict[str, str] = msgspec.field(default_factory=dict)
    control_tokens: dict[str, int] = msgspec.field(default_factory=dict)
    prompts: dict[str, str] = msgspec.field(default_factory=dict)
    default_prompt: str = ""
    tokenizer: bool = False
    labels: list[str] = msgspec.field(default_factory=list)
    inputs: dict[str, Tensor] = msgspec.field(default_factory=dict)
    outputs: dict[str, Tensor] = msgspec.field(default_factory=dict)
    columns: list[str] = msgspec.field(default_factory=list)
    evidence: dict[str, str | int | float] = msgspec.field(default_factory=dict)

    @property
    def tag(self) -> str:
        """Which version this is: what was read of one with the same tag need not be read again."""
        return f"{self.version}-{self.sha256}"


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor's port answers at `/catalogue`.

    Attributes:
        models: one entry for each model that users call, by name.
        ready: whether each of them has answered its last question, as `/health` says.
        grpc, http: ports of the server; 0: no server runs.
    """

    models: list[Entry]
    ready: bool
    grpc: int
    http: int


@dataclass(frozen=True)
class _Config:
    """What a config says; nothing where it cannot be read.

    Attributes:
        max_batch_size: most rows in one request.
        decoupled: whether a request may have several answers, or none.
        parameters: texts by name.
    """

    max_batch_size: int = 0
    decoupled: bool = False
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)


def catalogue(repository: Path, served: Mapping[str, Spec]) -> list[Entry]:
    """Describe what a server serves.

    Args:
        repository: the model repository.
        served: name -> what the server has loaded, with the steps of ensembles.

    Returns:
        One entry for each model that is no step of an ensemble, by name.
    """
    return [_entry(repository, name, served) for name in sorted(_called(served))]


def tokenizer_of(repository: Path, name: str, served: Mapping[str, Spec]) -> tuple[bytes, str] | None:
    """`tokenizer.json` of the served version of a model, which lies beside it or beside a step of it.

    Args:
        repository, served: as for `catalogue`.
        name: of a model that users call; it may come from anybody, and is only looked up.

    Returns:
        The content of the file and `Entry.tag` of the version; None: there is none.
    """
    path = _tokenizer_path(repository, name, served) if name in _called(served) else None
    try:
        return None if path is None else (read_regular(path), _entry(repository, name, served).tag)
    except OSError:
        return None


def _called(served: Mapping[str, Spec]) -> set[str]:
    """Names of the models that users call: those that are no step of another one."""
    return served.keys() - {step for model in served.values() for step in model.steps}


def _with_steps(name: str, served: Mapping[str, Spec]) -> list[str]:
    return [name, *sorted(served[name].steps & served.keys())]


def _tokenizer_path(repository: Path, name: str, served: Mapping[str, Spec]) -> Path | None:
    for each in _with_steps(name, served):
        path = repository / each / str(max(served[each].versions, default=0)) / _TOKENIZER
        try:
            found = path.stat()
        except OSError:
            continue
        if stat.S_ISREG(found.st_mode) and found.st_size <= _MOST_BYTES:
            return path
    return None


def _entry(repository: Path, name: str, served: Mapping[str, Spec]) -> Entry:
    names = _with_steps(name, served)
    own, *others = (_config(served[each].config) for each in names)
    # Limits of an ensemble are parameters of its steps.
    parameters = {key: text for config in (*reversed(others), own) for key, text in config.parameters.items()}
    version, manifest = _version(repository, name, names, served)
    task, template = _task(own), own.parameters.get("chat_template", "")
    tokens: dict[str, int] | None = None
    if task == tasks.GENERATION:
        tokens = _read(_added_tokens, repository / name / str(version) / _TOKENIZER)
    entry = Entry(
        name=name,
        task=task,
        version=version,
        max_model_len=_number(parameters.get("max_model_len") or parameters.get("max_length")),
        max_batch_size=own.max_batch_size,
        max_num_seqs=_number(parameters.get("max_num_seqs")),
        max_queue_size=_number(parameters.get("max_queue_size")),
        chat_template=template,
        tool_format=tools.format_of(template).name if template else "",
        special_tokens=_from_json(own.parameters.get("special_tokens"), dict[str, str]) or {},
        control_tokens=tokens or {},
        prompts=_from_json(own.parameters.get("prompts"), dict[str, str]) or {},
        default_prompt=parameters.get("default_prompt", ""),
        tokenizer=_tokenizer_path(repository, name, served) is not None,
        labels=_from_json(parameters.get("labels"), list[str]) or [],
        inputs=own.inputs,
        outputs=own.outputs,
        columns=[each for each in own.inputs if each != FEATURES] if task.startswith(TABLES) else [],
    )
    return entry if manifest is None else msgspec.structs.replace(entry, **_proven(manifest))


def _version(
    repository: Path, name: str, names: list[str], served: Mapping[str, Spec]
) -> tuple[int, Manifest | None]:
    """Find the version that users call, which is that of the network, and its manifest where it can be read.

    Args:
        names: of the model and its steps.
    """
    versions = {each: max(served[each].versions, default=0) for each in names}
    for each, version in versions.items():
        if manifest := _read(_manifest, repository / each / str(version) / FILENAME):
            return version, manifest
    networks = (part_name(name, part) for part in (ENCODER, ESTIMATOR))
    return next((versions[each] for each in networks if each in versions), versions[name]), None


def _proven(manifest: Manifest) -> dict[str, Any]:
    """Fields of an entry that only the manifest holds."""
    return {
        "precision": manifest.precision,
        "sha256": _fingerprint(manifest),
        "source": str(manifest.source.get("id") or ""),
        "created": _seconds(manifest.created),
        "evidence": {key: value for key in EVIDENCE if _is_figure(value := manifest.evidence.get(key))},
    }


def _fingerprint(manifest: Manifest) -> str:
    lines = [f"{manifest.network}/{manifest.version}"]
    lines += [f"{path} {sha256}" for path, sha256 in sorted(manifest.files.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_FINGERPRINT_DIGITS]


def _seconds(created: str) -> int:
    """Seconds since 1970 of a time in ISO 8601, which is UTC where it names no zone; 0: it is no time."""
    try:
        made = datetime.fromisoformat(created)
    except ValueError:
        return 0
    return int((made if made.tzinfo else made.replace(tzinfo=timezone.utc)).timestamp())


def _is_figure(value: Any) -> bool:
    """Whether a value of the evidence was measured, and JSON can hold it."""
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _task(config: _Config) -> str:
    """What a model is for. A decoder's config does not name its task; its outputs are those of Triton's vLLM
    backend."""
    decoder = config.decoupled and dialect.TEXT_OUTPUT in config.outputs
    return config.parameters.get("task") or (tasks.GENERATION if decoder else "")


def _number(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        return 0


def _from_json(text: str | None, kind: type[Read]) -> Read | None:
    """A parameter that holds JSON; None: there is none, or it holds something else."""
    try:
        return msgspec.json.decode(text, type=kind) if text else None
    except (msgspec.DecodeError, RecursionError):
        return None


@lru_cache(maxsize=_REMEMBERED)
def _config(text: str) -> _Config:
    try:
        config = model_config.parse(text)
    except text_format.ParseError:  # Triton says what is wrong with it
        return _Config()
    return _Config(
        max_batch_size=config.max_batch_size,
        decoupled=config.model_transaction_policy.decoupled,
        inputs={each.name: Tensor(_dtype(each), list(each.dims), each.optional) for each in config.input},
        outputs={each.name: Tensor(_dtype(each), list(each.dims)) for each in config.output},
        parameters={key: value.string_value for key, value in config.parameters.items()},
    )


def _dtype(tensor: Any) -> str:
    return str(model_config_pb2.DataType.Name(tensor.data_type)).removeprefix("TYPE_")


def _read(read: Callable[[Path, int, int], Read], path: Path) -> Read | None:
    """What a file holds, read again only when it has changed; None: it is missing or damaged.

    Args:
        read: is given the path, the time of the last change in nanoseconds and the size in bytes, by which it
            remembers what it has read. It remembers no error, which may pass without a change of the file.
    """
    try:
        found = path.stat()
        return read(path, found.st_mtime_ns, found.st_size) if found.st_size <= _MOST_BYTES else None
    except (OSError, ValueError, OverflowError, RecursionError, RepositoryError):
        return None


@lru_cache(maxsize=_REMEMBERED)
def _manifest(path: Path, changed: int, size: int) -> Manifest:
    manifest = Manifest.load(path)
    msgspec.json.encode(manifest)  # a text or a number that JSON cannot carry would fail the whole catalogue
    return manifest


class _Added(msgspec.Struct):
    content: str
    id: int


class _Tokenizer(msgspec.Struct):
    """The part of `tokenizer.json` that is needed: msgspec passes over the vocabulary without keeping it."""

    added_tokens: list[_Added] = []


@lru_cache(maxsize=_REMEMBERED)
def _added_tokens(path: Path, changed: int, size: int) -> dict[str, int]:
    found = msgspec.json.decode(read_regular(path), type=_Tokenizer)
    return {token.content: token.id for token in found.added_tokens}
