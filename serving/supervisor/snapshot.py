"""What Triton is shown of a repository: the served versions, as links, changed while it runs.

Told to load a model anew, Triton loads it beside what it serves, sends new requests there once that is
ready, and lets the old go when its last request has ended: nobody is refused. It is shown links and not the
repository itself, so that with an ensemble no step is loaded that stays the same.

Source: Model Control Mode EXPLICIT in Triton's model_management.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shoal import model_config
from shoal.layout import config_of, versions_in

_BYTECODE = "__pycache__"


@dataclass(frozen=True)
class ModelSpec:
    """One model as a repository shows it.

    Attributes:
        config: text of its `config.pbtxt`.
        versions: those that its config selects, or all; of an ensemble that selects none, none.
        asked: when its config was written, in seconds since 1970; specs are compared without it.
    """

    config: str
    versions: tuple[int, ...]
    asked: float = field(default=0.0, compare=False)

    @property
    def steps(self) -> frozenset[str]:
        """Models that an ensemble passes its requests through; of others, none."""
        return model_config.steps_of(self.config)


def specs_in(
    repository: Path,
    known: Mapping[str, ModelSpec] | None = None,
    unreadable: Callable[[str, OSError], None] = lambda name, error: None,
) -> dict[str, ModelSpec]:
    """Model -> what is shown of it.

    Args:
        known: stays of a model whose config cannot be read; without it such a model is left out.
        unreadable: is told of each such model.
    """
    found = {}
    for path in sorted(repository.glob("*/config.pbtxt")):
        name = path.parent.name
        try:
            config = config_of(path.parent)
            ensemble = model_config.is_ensemble(config)
            selected = model_config.selected_versions(config)
            versions = selected or (set() if ensemble else versions_in(path.parent))
            found[name] = ModelSpec(config, tuple(sorted(versions)), path.stat().st_mtime)
        except OSError as error:
            unreadable(name, error)
            if known is not None and name in known:
                found[name] = known[name]
    return found


class Snapshot:
    """Links to a repository, in a folder of their own.

    Args:
        repository: the model repository.
        shown: the text of a model's config as the server's backend needs it, see `Distribution.shown`.
    """

    def __init__(
        self,
        repository: Path,
        shown: Callable[[str, Mapping[str, str]], str] = lambda name, configs: configs[name],
    ) -> None:
        self._repository = repository.resolve()
        self._shown = shown
        self.shown: dict[str, ModelSpec] = {}
        self._numbers: dict[str, int] = {}

    def open(self, folder: Path, found: Mapping[str, ModelSpec] | None = None) -> Path:
        """Begin anew in an empty folder, with what was found, or all there is; the path for Triton."""
        self._models, self._made = folder / "models", folder / "shown"
        self._models.mkdir()
        self._made.mkdir()
        self.shown, self._numbers = {}, {}
        self.show(specs_in(self._repository) if found is None else found)
        return self._models

    def changed(self, found: Mapping[str, ModelSpec]) -> set[str]:
        """Models that would be loaded, loaded again, or let go: those that differ, and ensembles of them."""
        differ = {name for name in {*found, *self.shown} if found.get(name) != self.shown.get(name)}
        return differ | {name for name, model in found.items() if differ & model.steps}

    def show(self, found: Mapping[str, ModelSpec]) -> None:
        """Let the snapshot be what was found, each model in one rename.

        An ensemble that names no version gets the next number, or else answers of the old steps would come
        out of the response cache, whose keys are model, version and inputs.
        """
        configs = {name: model.config for name, model in found.items()}
        for name in sorted(self.changed(found)):
            if name not in found:
                (self._models / name).unlink()
                continue
            model = found[name]
            number = self._numbers[name] = self._numbers.get(name, 0) + 1
            made = self._made / f"{name}.{number}"
            made.mkdir()
            (made / "config.pbtxt").write_text(self._shown(name, configs), encoding="utf-8")
            for version in model.versions:
                _link(self._repository / name / str(version), made / str(version))
            if not model.versions:
                (made / str(number)).mkdir()
            link = self._made / "link"
            link.symlink_to(made)
            link.replace(self._models / name)
        self.shown = dict(found)


def _link(version: Path, place: Path) -> None:
    """One version.

    Beside the code of a Python model Triton's stub writes bytecode, which Triton takes for a change: it
    would load the model again with its ensemble. In a folder of links the stub finds no place for it: where
    it would make a folder is a file.
    """
    if not (version / "model.py").exists():
        place.symlink_to(version)
        return
    place.mkdir()
    (place / _BYTECODE).touch()
    for path in version.iterdir():
        if path.name != _BYTECODE:
            (place / path.name).symlink_to(path)
