"""Another way to run than the default is taken where it is clearly faster, and the figures are kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import speed
from export.checkpoint.source import find_checkpoint
from export.encoder import choosing
from export.encoder import setting as settings
from export.encoder.choosing import Network, choices
from export.encoder.prepare import Source, prepare
from export.encoder.recipe import EncoderRecipe
from export.encoder.setting import Comparison, Figures, Setting, choose, instance_counts, setting_of
from export.exported import Exported, TensorSpec
from export.outcome import Outcome
from export.run import export, verify
from serving.onnxruntime.options import Options
from shoal import model_config
from shoal.evidence import serving_lines
from shoal.machine import available_cpus
from shoal.manifest import Manifest, manifests
from shoal.progress import Silent
from tests.tiny import make

GIB = 1 << 30
DEFAULT, TWO, SHORT = Setting(), Setting(2), Setting(max_run_tokens=512)


@pytest.mark.parametrize(
    ("measured", "chosen"),
    [
        ({DEFAULT: (100, 4.0)}, DEFAULT),
        ({DEFAULT: (100, 4.0), TWO: (109, 4.0)}, DEFAULT),  # within noise
        ({DEFAULT: (100, 4.0), TWO: (111, 4.9)}, TWO),
        ({DEFAULT: (100, 4.0), TWO: (200, 5.1)}, DEFAULT),  # one text would wait too long
        ({DEFAULT: (100, 4.0), TWO: (111, 4.0), SHORT: (120, 4.0)}, SHORT),
        ({DEFAULT: (100, 4.0), TWO: (130, 5.0), SHORT: (120, 4.0)}, TWO),
        ({TWO: (100, 4.0), DEFAULT: (90, 1.0)}, TWO),
    ],
)
def test_a_default_is_left_for_what_is_clearly_better(
    measured: Mapping[Setting, tuple[float, float]], chosen: Setting
) -> None:
    assert choose([Figures(setting, *figures) for setting, figures in measured.items()]) == chosen


@pytest.mark.parametrize(("others", "chosen"), [(0.0, TWO), (0.19, TWO), (0.21, DEFAULT)])
def test_nothing_is_chosen_by_figures_of_a_machine_that_is_busy_otherwise(
    others: float, chosen: Setting
) -> None:
    figures = (Figures(DEFAULT, 100, 4.0), Figures(TWO, 200, 2.0))
    assert Comparison(figures, 2, others).chosen == chosen


@pytest.mark.parametrize(
    ("cpus", "size", "memory", "counts"),
    [
        (1, 1, 64 * GIB, [1]),
        (2, 100 << 20, 8 * GIB, [1, 2]),
        (4, 100 << 20, 8 * GIB, [1, 4]),
        (16, 100 << 20, 64 * GIB, [1, 4, 16]),
        (64, 1 * GIB, 160 * GIB, [1, 16]),
        (2, 4 * GIB, 16 * GIB, [1]),  # a second copy of the weights would not fit beside the rest
    ],
)
def test_instances_fit_the_cpus_and_a_quarter_of_the_memory(
    cpus: int, size: int, memory: int, counts: list[int]
) -> None:
    assert instance_counts(cpus, size, memory) == counts


def _options(**fields: Any) -> Options:
    parameters = {key: {"string_value": value} for key, value in fields.items()}
    return Options.from_config({"parameters": parameters})


class Slow:
    """A session that notes what it ran; two of them run at once, or the first one waits for long."""

    def __init__(self, both: threading.Barrier) -> None:
        self.both, self.rows, self.shapes = both, [], []
        self.first = True

    def run(self, outputs: list[str], feed: dict[str, Any]) -> list[Any]:
        if self.first:
            self.both.wait(10)
            self.first = False
        self.rows += feed["x"][:, 0].tolist()
        self.shapes.append(feed["x"].shape)
        return [feed["x"]]


GRAPH = Exported(
    Path("none"), (TensorSpec("x", "FLOAT", (-1, -1)),), (TensorSpec("y", "FLOAT", (-1,)),), 17, 8
)


def test_every_row_is_answered_once_by_instances_that_run_at_once() -> None:
    both = threading.Barrier(2)
    sessions: Any = [Slow(both), Slow(both)]
    feeds = [{"x": np.full((1, 3 + row % 2), row, np.float32), "unread": np.zeros(1)} for row in range(200)]
    Network(GRAPH, _options(), sessions, 5).answer(feeds)
    assert sorted(sessions[0].rows + sessions[1].rows) == list(range(200))
    assert max(rows for session in sessions for rows, _ in session.shapes) <= 5


def test_what_a_session_raises_is_raised() -> None:
    class Broken:
        def run(self, outputs: list[str], feed: dict[str, Any]) -> list[Any]:
            raise RuntimeError("no such operator")

    sessions: Any = [Broken()]
    with pytest.raises(RuntimeError, match="no such operator"):
        Network(GRAPH, _options(), sessions, 64).answer([{"x": np.zeros((1, 1), np.float32)}] * 50)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    return make(folder, "BertForSequenceClassification", num_labels=3, num_hidden_layers=1)


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    """A machine of two CPUs, and little time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "available_cpus", lambda: 2)
        patch.setattr(speed, "others_seconds", lambda: 0.0)  # tests may run beside each other
        patch.setattr(choosing, "ROUNDS", 2)
        patch.setattr(choosing, "SECONDS", 0.1)
        yield


@pytest.fixture(scope="module")
def made(
    checkpoint: Path, two_cpus: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Manifest, Outcome]:
    repository = tmp_path_factory.mktemp("chosen") / "repository"
    outcome = export(EncoderRecipe(str(checkpoint), name="tiny", precisions=("fp32",)), repository)
    return repository, next(manifests(repository, "tiny")), outcome


def _group(manifest: Manifest) -> Any:
    config = model_config.parse(manifest.configs["tiny_encoder"])
    (group,) = config.instance_group
    threads = {
        key: value.string_value for key, value in config.parameters.items() if key == "intra_op_thread_count"
    }
    several = {"intra_op_thread_count": str(max(1, available_cpus() // group.count))}
    assert threads == (several if group.count > 1 else {})
    return group


def test_an_export_notes_what_it_measured_and_serves_what_it_chose(
    made: tuple[Path, Manifest, Outcome],
) -> None:
    _, manifest, outcome = made
    serving = manifest.evidence["serving"]
    assert (serving["because"], serving["cpus"], serving["callers"]) == ("measured", 2, 32)
    instances = serving["compared"][0]["figures"]
    assert [(entry["instances"], entry["threads"]) for entry in instances] == [(1, 2), (2, 1)]
    assert all(entry["rows_per_second"] > 0 < entry["single_ms"] for entry in instances)
    assert _group(manifest).count == serving["instances"] and not _group(manifest).kind
    (row,) = outcome.to_dict()["evidence"]
    assert row["serving"] == serving
    assert serving_lines([row])[0].startswith(f"fp32: {serving['instances']} instance")


def test_another_choice_is_another_config_of_the_same_version(
    made: tuple[Path, Manifest, Outcome], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, before, _ = made

    def last(figures: Sequence[Figures]) -> Setting:
        return figures[-1].setting

    monkeypatch.setattr(settings, "choose", last)
    again = export(EncoderRecipe(str(checkpoint), name="tiny", precisions=("fp32",)), repository)
    assert [(entry.version, entry.new) for entry in again.published] == [(1, False)]
    (after,) = manifests(repository, "tiny")
    assert after.files == before.files
    assert setting_of(after.evidence["serving"]).instances == 2 == _group(after).count
    assert f"count: {_group(after).count}" in (repository / "tiny_encoder" / "config.pbtxt").read_text()
    (measured,) = verify("tiny", repository).evidence  # keeps what was chosen when it was exported
    assert measured.to_dict()["serving"] == after.evidence["serving"]


def _choice(checkpoint: Path, repository: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    recipe = EncoderRecipe(str(checkpoint), name="tiny", precisions=("fp32",), **settings)
    source: Source = prepare(recipe, find_checkpoint(str(checkpoint)), folder)
    graph = Exported.read(repository / "tiny_encoder" / "1" / "model.onnx")
    return choices(source, {"fp32": graph}, Silent())["fp32"].to_dict()


@pytest.mark.parametrize(
    ("cpus", "given", "because", "setting"),
    [
        (2, {"instances": 2}, "recipe", Setting(2)),
        (2, {"max_run_tokens": 256, "max_run_padding": 8}, "recipe", Setting(1, 256, 8)),
        (1, {}, "one CPU", DEFAULT),
        (1, {"instances": 2}, "recipe", Setting(2)),
    ],
)
def test_nothing_is_measured_where_a_recipe_says_it_or_one_cpu_leaves_no_choice(
    made: tuple[Path, Manifest, Outcome],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpus: int,
    given: dict[str, int],
    because: str,
    setting: Setting,
) -> None:
    monkeypatch.setattr(choosing, "available_cpus", lambda: cpus)
    monkeypatch.setattr(choosing, "median_seconds", None)
    serving = _choice(checkpoint, made[0], tmp_path, **given)
    assert (serving["because"], serving["compared"]) == (because, [])
    assert setting_of(serving) == setting
    (line,) = serving_lines([{"precision": "fp32", "serving": serving}])
    assert ("as the recipe says" if given else "with one CPU there is nothing to choose") in line


def test_a_version_of_before_has_the_default() -> None:
    assert setting_of(None) == Setting() and serving_lines([{"precision": "fp32"}]) == []
