"""Where a model runs whose config does not say so, on a machine with a GPU."""

from __future__ import annotations

import pytest

from serving import placement
from shoal.model_config import parse

CONFIG = 'name: "m" backend: "onnxruntime" max_batch_size: 8'
ENSEMBLE = 'name: "m" platform: "ensemble"'


@pytest.fixture
def gpu_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "gpus", lambda: ["a GPU"])
    monkeypatch.setattr(placement, "_has_cuda", lambda: False)


@pytest.mark.usefixtures("gpu_without_cuda")
@pytest.mark.parametrize(
    ("groups", "placed"),
    [
        ("", [("KIND_CPU", 0)]),
        ("instance_group { count: 3 }", [("KIND_CPU", 3)]),
        ("instance_group { kind: KIND_GPU count: 1 }", [("KIND_GPU", 1)]),
        (
            "instance_group { count: 1 } instance_group { kind: KIND_MODEL }",
            [("KIND_CPU", 1), ("KIND_MODEL", 0)],
        ),
    ],
)
def test_what_names_no_kind_is_placed_on_the_cpu(groups: str, placed: list[tuple[str, int]]) -> None:
    config = parse(placement.on_cpu_without_cuda(f"{CONFIG} {groups}"))
    kinds = config.instance_group[0].Kind.Name
    assert [(kinds(group.kind), group.count) for group in config.instance_group] == placed


@pytest.mark.usefixtures("gpu_without_cuda")
@pytest.mark.parametrize("config", [ENSEMBLE, "instance_group {", CONFIG.replace("backend", "bakcend")])
def test_ensembles_and_what_triton_refuses_stay_as_they_are(config: str) -> None:
    assert placement.on_cpu_without_cuda(config) == config


@pytest.mark.parametrize(("found", "cuda"), [([], False), (["a GPU"], True)])
def test_triton_chooses_where_it_can(monkeypatch: pytest.MonkeyPatch, found: list[str], cuda: bool) -> None:
    monkeypatch.setattr(placement, "gpus", lambda: found)
    monkeypatch.setattr(placement, "_has_cuda", lambda: cuda)
    assert placement.on_cpu_without_cuda(CONFIG) == CONFIG


@pytest.mark.parametrize(
    ("groups", "cuda", "expected"),
    [
        ("", True, True),
        ("", False, False),
        ("instance_group { count: 2 }", True, True),
        ("instance_group { kind: KIND_CPU }", True, False),
        ("instance_group { kind: KIND_GPU }", False, True),
    ],
)
def test_what_runs_on_the_gpu(
    monkeypatch: pytest.MonkeyPatch, groups: str, cuda: bool, expected: bool
) -> None:
    """As was seen on one: Triton gave it to every group without a kind."""
    monkeypatch.setattr(placement, "gpus", lambda: ["a GPU"])
    monkeypatch.setattr(placement, "_has_cuda", lambda: cuda)
    assert placement.on_gpu(parse(f"{CONFIG} {groups}")) is expected
    monkeypatch.setattr(placement, "gpus", list)
    assert placement.on_gpu(parse(f"{CONFIG} {groups}")) is ("KIND_GPU" in groups)
