"""The shapes an engine is built for: TensorRT picks its kernels for one shape and allows a range around it.

Profiles made here never overlap in tokens. Triton's TensorRT backend takes, of the profiles that allow a
request, the one whose best shape is nearest, but leaves the length out of that distance (`opt_dims.d[idx] -
input_shape_vec[idx - 1]` in `EvaluateTensorRTContext`, instance_state.cc). Where only one profile allows a
length, there is nothing to mistake.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from export.exported import TensorSpec
from shoal.errors import ExportError, UsageError


class Shape(NamedTuple):
    """Texts in a batch, tokens in each."""

    batch: int
    tokens: int


Dims = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """What TensorRT calls an optimization profile, for all inputs of an encoder at once.

    Attributes:
        min: smallest shape that is allowed.
        opt: the shape the kernels are chosen for.
        max: largest shape that is allowed; memory is set aside for it.
    """

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        for axis, low, best, high in zip(Shape._fields, self.min, self.opt, self.max, strict=True):
            if not 1 <= low <= best <= high:
                raise UsageError(
                    f"profile with {axis} {low}, {best}, {high} cannot be built",
                    hint="smallest, best and largest rise from 1",
                )

    def of(self, spec: TensorSpec) -> tuple[Dims, Dims, Dims]:
        """The dims of one input: smallest, best, largest.

        Raises:
            ExportError: the input's batch size is fixed, or more than its batch size and length is free.
        """
        if not spec.dims or spec.dims[0] != -1 or spec.dims.count(-1) > 2:
            raise ExportError(
                f"input {spec.name} has the dims {list(spec.dims)}: no profile can be made for them",
                hint="a free batch size, and at most one more free dimension",
            )
        fixed = spec.dims[1:]
        smallest, best, largest = (
            (shape.batch, *(shape.tokens if dim == -1 else dim for dim in fixed))
            for shape in (self.min, self.opt, self.max)
        )
        return smallest, best, largest


def from_buckets(
    max_batch_size: int, buckets: Sequence[int], *, best_batch: int = 8, most: int = 4
) -> tuple[Profile, ...]:
    """Profiles from a recipe alone, without having seen a request.

    The tokenizer pads to `buckets`, so these are the lengths that arrive, and each profile is at its best at
    its longest. Every profile costs build time and, in each model instance, memory for its largest shape;
    with more buckets than `most`, neighbours share one.

    Args:
        max_batch_size: largest batch that is allowed.
        buckets: rising lengths in tokens; the last is the longest that is allowed.
        best_batch: batch size the kernels are chosen for, where it is no larger than `max_batch_size`. 8
            stands for a moderate load; `from_traffic` knows better.
        most: how many profiles at most.
    """
    if not buckets or list(buckets) != sorted(set(buckets)):
        raise UsageError("length buckets must be rising numbers of tokens", hint="e.g. 16,32,64,128")
    if most < 1:
        raise UsageError(f"{most} profiles cannot be built", hint="at least one")
    count = min(most, len(buckets))
    # The last bucket of each group, the groups as equal as can be.
    ends = [buckets[(index + 1) * len(buckets) // count - 1] for index in range(count)]
    best = min(best_batch, max_batch_size)
    return tuple(
        Profile(Shape(1, below + 1), Shape(best, end), Shape(max_batch_size, end))
        for below, end in zip((0, *ends), ends, strict=False)
    )


def read_traffic(path: Path) -> Counter[Shape]:
    """How often each shape ran, from JSON lines of `{"batch": 4, "tokens": 32}`, or with a `"count"` each.

    Raises:
        UsageError: the file cannot be read, is empty, or a line is something else; it is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"traffic {path} cannot be read: {error}") from error
    traffic: Counter[Shape] = Counter()
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entry = json.loads(line)
                batch, tokens, count = entry["batch"], entry["tokens"], entry.get("count", 1)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                batch = tokens = count = None
            if not all(type(value) is int and value > 0 for value in (batch, tokens, count)):
                raise UsageError(
                    f"traffic {path}, line {number} is not a shape: {line.strip()[:60]}",
                    hint='each line is like {"batch": 4, "tokens": 32, "count": 100}',
                )
            traffic[Shape(batch, tokens)] += count
    if not traffic:
        raise UsageError(f"traffic {path} is empty")
    return traffic


def from_traffic(
    traffic: Mapping[Shape, int], max_batch_size: int, max_tokens: int, *, most: int = 4
) -> tuple[Profile, ...]:
    """Profiles from measured traffic, each with about as much of it.

    Lengths are cut where another 1/`most` of the batches lies below. Inside a cut the best shape is the one
    that ran most often, of two equals the larger. The outermost profiles reach to 1 and to `max_tokens`, so
    that a shape nobody has sent yet is still answered.

    Args:
        traffic: how often each shape ran.
        max_batch_size: largest batch that is allowed.
        max_tokens: longest input that is allowed.

    Raises:
        UsageError: traffic is empty or a shape in it is larger than what is allowed.
    """
    if not traffic:
        raise UsageError("there is no traffic to make profiles from")
    for shape in traffic:
        if shape.batch > max_batch_size or shape.tokens > max_tokens:
            raise UsageError(
                f"traffic has a batch of {shape.batch} × {shape.tokens} tokens, "
                f"more than the {max_batch_size} × {max_tokens} that are allowed"
            )
    ends = [*_quantiles(traffic, most)[:-1], max_tokens]
    profiles = []
    for below, end in zip((0, *ends), ends, strict=False):
        inside = {shape: count for shape, count in traffic.items() if below < shape.tokens <= end}
        best = max(inside, key=lambda shape: (inside[shape], shape))
        profiles.append(Profile(Shape(1, below + 1), best, Shape(max_batch_size, end)))
    return tuple(profiles)


def _quantiles(traffic: Mapping[Shape, int], parts: int) -> list[int]:
    """The lengths at which 1/parts, 2/parts ... of the batches are no longer, each once, rising."""
    by_length: Counter[int] = Counter()
    for shape, count in traffic.items():
        by_length[shape.tokens] += count
    total, below, ends = sum(by_length.values()), 0, []
    for tokens in sorted(by_length):
        before, below = below, below + by_length[tokens]
        if below * parts // total > before * parts // total:
            ends.append(tokens)
    return ends


def whole(profiles: Iterable[Profile]) -> Profile:
    """One profile that allows what all of them allow, at its best where the last is."""
    parts = list(profiles)
    return Profile(
        Shape(*(min(axis) for axis in zip(*(part.min for part in parts), strict=True))),
        parts[-1].opt,
        Shape(*(max(axis) for axis in zip(*(part.max for part in parts), strict=True))),
    )
