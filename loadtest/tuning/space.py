"""What can be set of a version, and how a setting is written into its configs.

Accuracy is no knob: a setting changes when and where a network runs, and not which answer it gives. Another
version answers otherwise, so others take part only where the caller gives a bound on their evidence. The
number of rows in a request, and lengths that texts are padded to, are part of what was proven, and stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.placement import on_gpu
from shoal import model_config
from shoal.errors import UsageError
from shoal.machine import available_cpus
from shoal.manifest import Manifest
from shoal.names import TOKENIZER, part_name

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

Setting = dict[str, Any]  # value by knob
Configs = dict[str, "ModelConfig"]
VERSION = "version"
_RUN_TOKENS = (512, 1024, 4096)
_ON_GPU = 4  # instances at most: each has its own copy of the weights
_GPU = "GPU"
_DELAYS = (0, 500, 2000, 5000)
_DELAY, _ALONE = "waits for others, us", "never"


@dataclass(frozen=True)
class Knob:
    """One thing that can be set.

    Attributes:
        name: as users read it.
        model: whose config it stands in; "": it is no part of a config.
        values: in their order; the first is not always the default.
        default: what the config says now.
        write: puts a value into the config of `model`.
    """

    name: str
    model: str
    values: tuple[Any, ...]
    default: Any
    write: Callable[[Any, Any], None]


@dataclass(frozen=True)
class Space:
    """All settings of a model.

    Attributes:
        model: what users call.
        manifests: of the versions that take part, by number; the first is served now.
        knobs: `version` among them.
    """

    model: str
    manifests: Mapping[int, Manifest]
    knobs: tuple[Knob, ...]

    @property
    def served(self) -> int:
        """The number of the version that is served now."""
        return next(iter(self.manifests))

    @property
    def default(self) -> Setting:
        """What is served now."""
        return {knob.name: knob.default for knob in self.knobs}

    @property
    def size(self) -> int:
        """How many settings there are."""
        return math.prod(len(knob.values) for knob in self.knobs)

    def corners(self, first: Sequence[str] = ()) -> list[Setting]:
        """The default with one knob at another value, for each knob and its outermost values.

        Args:
            first: models whose knobs come first: those in front of which requests wait longest.
        """

        def place(knob: Knob) -> int:
            return first.index(knob.model) if knob.model in first else len(first)

        found = []
        for knob in sorted(self.knobs, key=place):
            for value in dict.fromkeys((knob.values[0], knob.values[-1])):
                if value != knob.default:
                    found.append({**self.default, knob.name: value})
        return found

    def neighbours(self, setting: Setting) -> list[Setting]:
        """The setting with one knob at the next lower or higher value, for each knob."""
        found = []
        for knob in self.knobs:
            at = knob.values.index(setting[knob.name])
            found += [{**setting, knob.name: value} for value in knob.values[max(0, at - 1) : at + 2]]
        return [each for each in found if each != setting]

    def configs(self, setting: Setting) -> dict[str, str]:
        """`config.pbtxt` by model, for a setting.

        Raises:
            UsageError: a knob is unknown.
        """
        manifest = self.manifests[setting.get(VERSION, self.served)]
        made: Configs = {model: model_config.parse(text) for model, text in manifest.configs.items()}
        known = {knob.name: knob for knob in self.knobs}
        for name, value in setting.items():
            if name not in known:
                raise UsageError(f"unknown knob {name}", hint=f"known: {', '.join(known)}")
            knob = known[name]
            if knob.model:
                knob.write(made[knob.model], value)
        return {model: model_config.to_text(config) for model, config in made.items()}

    def text(self, setting: Setting) -> str:
        """What a setting changes, in one line."""
        changed = [f"{name} {value}" for name, value in setting.items() if value != self.default[name]]
        return ", ".join(changed) or "what is served now"


def space_of(model: str, served: Manifest, others: Sequence[Manifest], cpus: int | None = None) -> Space:
    """What can be set of a model on this machine.

    Args:
        served: the version that is served now.
        others: further versions that may be served.
        cpus: of the machine; None: those that may be used.

    Raises:
        UsageError: nothing can be set of such a model.
    """
    cpus = cpus or available_cpus()
    manifests = {served.version: served}
    seen = {_content(served)}
    for each in sorted(others, key=lambda manifest: manifest.version):
        # Versions made by other exporters have other configs, and their knobs would not mean the same.
        # Another setting of the same files is not another version.
        if each.configs.keys() == served.configs.keys() and _content(each) not in seen:
            manifests[each.version] = each
            seen.add(_content(each))
    configs = {name: model_config.parse(text) for name, text in served.configs.items()}
    network = configs[served.network]
    knobs = [Knob(VERSION, "", tuple(sorted(manifests)), served.version, _nothing)]
    if "max_num_seqs" in network.parameters:
        knobs += _of_decoder(served.network, network)
    elif network.backend == "onnxruntime":
        knobs += _of_network(served.network, network, cpus)
        tokenizer = part_name(model, TOKENIZER)
        if tokenizer in configs:
            knobs.append(_instances("tokenizer instances", tokenizer, configs[tokenizer], 2 * cpus))
    else:
        raise UsageError(f"{model} cannot be tuned: its backend is {network.backend or network.platform}")
    return Space(model, manifests, tuple(knob for knob in knobs if len(knob.values) > 1))


def _content(manifest: Manifest) -> frozenset[tuple[str, str]]:
    """What a version's files hold, whatever its number."""
    return frozenset((Path(name).name, value) for name, value in manifest.files.items())


def versions_that_keep(
    manifests: Sequence[Manifest], *, min_cosine: float | None, max_rise: float | None
) -> list[Manifest]:
    """The proven versions whose evidence is within bounds.

    Args:
        manifests: of one model.
        min_cosine: least cosine to the original's vectors; None: any that was proven.
        max_rise: most by which perplexity may rise, as a share; None: any that was proven.
    """
    return [
        manifest
        for manifest in manifests
        if manifest.evidence.get("proven")
        and (min_cosine is None or manifest.evidence.get("min_cosine", -1.0) >= min_cosine)
        and (max_rise is None or manifest.evidence.get("perplexity_rise", float("inf")) <= max_rise)
    ]


def _of_network(name: str, config: ModelConfig, cpus: int) -> list[Knob]:
    """A network on ONNX Runtime; on CPUs no more threads run than there are CPUs."""
    if on_gpu(config):
        placed = [_kind(name), _instances("instances", name, config, _ON_GPU)]
    else:
        placed = [_shares(name, config, cpus)]
    knobs = [*placed, _waiting(name, config)]
    if any(entry.name == "attention_mask" for entry in config.input):
        knobs.append(_parameter("run tokens", name, config, "max_run_tokens", _RUN_TOKENS, 1024))
    return knobs


def _waiting(name: str, config: ModelConfig) -> Knob:
    """How long a request waits for others, or that each runs by itself (which any number of rows may)."""
    delay = config.dynamic_batching.max_queue_delay_microseconds
    default = delay if config.HasField("dynamic_batching") else _ALONE

    def write(config: ModelConfig, value: int | str) -> None:
        if value == _ALONE:
            config.ClearField("dynamic_batching")
        else:
            config.dynamic_batching.max_queue_delay_microseconds = int(value)

    values = [_ALONE, *sorted({*_DELAYS, delay})]
    return Knob(_DELAY, name, tuple(values), default, write)


def _kind(name: str) -> Knob:
    """A network that a GPU runs, there or on the CPUs."""

    def write(config: ModelConfig, value: str) -> None:
        if value == _GPU:  # as it is
            return
        if not config.instance_group:
            config.instance_group.add()
        for group in config.instance_group:
            group.kind = group.KIND_CPU
            del group.gpus[:]

    return Knob("runs on", name, (_GPU, "CPUs"), _GPU, write)


def _shares(name: str, config: ModelConfig, cpus: int) -> Knob:
    """How many instances share the CPUs, and how many threads each has."""
    key = "intra_op_thread_count"

    def said(config: ModelConfig) -> str:
        given = config.parameters[key].string_value if key in config.parameters else ""
        now = _count(config)
        return f"{now} x {int(given) if given.isdecimal() and int(given) else max(1, cpus // now)}"

    default = said(config)
    counts = [count for count in (1, 2, 4, 8, 16) if count <= cpus]
    values = [f"{count} x {cpus // count}" for count in counts]

    def write(config: ModelConfig, value: str) -> None:
        if value == said(config):  # as it is: what was written by hand stays
            return
        count, threads = (int(part) for part in value.split(" x "))
        if not config.instance_group:
            config.instance_group.add()
        config.instance_group[0].count = count
        config.parameters.pop(key, None)
        if count > 1:  # one instance has all CPUs
            config.parameters[key].string_value = str(threads)

    return Knob("instances x threads", name, _with(values, default), default, write)


def _of_decoder(name: str, config: ModelConfig) -> list[Knob]:
    most = int(config.parameters["max_num_seqs"].string_value)
    seqs = [count for count in (4, 8, 16, 32, 64) if count <= 2 * most]
    return [
        _parameter("sequences at once", name, config, "max_num_seqs", seqs, most),
        _parameter("prompt tokens a step", name, config, "max_num_batched_tokens", (128, 256, 512), 256),
        _parameter("prefix cache, tokens", name, config, "prefix_cache_tokens", (0, 8192, 32768), 0),
    ]


def _parameter(
    knob: str, model: str, config: ModelConfig, key: str, values: Sequence[int], usual: int
) -> Knob:
    given = config.parameters[key].string_value if key in config.parameters else ""
    default = int(given) if given else usual

    def write(config: ModelConfig, value: int) -> None:
        config.parameters[key].string_value = str(value)

    return Knob(knob, model, _with(values, default), default, write)


def _instances(knob: str, model: str, config: ModelConfig, most: int) -> Knob:
    default = _count(config)

    def write(config: ModelConfig, value: int) -> None:
        if not config.instance_group:
            config.instance_group.add()
        config.instance_group[0].count = value

    values = [count for count in (1, 2, 4) if count <= most]
    return Knob(knob, model, _with(values, default), default, write)


def _count(config: ModelConfig) -> int:
    """Instances of a model; Triton's default is one on CPUs."""
    return max(1, config.instance_group[0].count) if config.instance_group else 1


def _nothing(config: ModelConfig, value: Any) -> None:
    """The version is written by whoever serves it."""


def _with(values: Sequence[Any], default: Any) -> tuple[Any, ...]:
    """The values and the default, in their order."""
    found = list(dict.fromkeys([*values, default]))
    return tuple(sorted(found) if all(isinstance(value, int) for value in found) else found)
