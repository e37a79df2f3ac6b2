"""What is to be served is what was measured, and can run here: looked at before every start.

The embedded server looks by itself. Before another Triton: `python -m serving.check /models COMMAND...`
runs the command where nothing is wrong, and else says what is and exits with 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from serving.inspection import inspect
from shoal.errors import RepositoryError, ShoalError
from shoal.layout import config_of
from shoal.manifest import FILENAME, Manifest, manifests, selected_versions
from shoal.model_config import backend_of
from shoal.repository import finish_broken_change
from shoal.tensorrt import check_fits, triton_runtime

EMBEDDED = ("onnxruntime", "python")  # backends of the embedded server


def check(
    repository: Path,
    backends: Collection[str] | None = None,
    served: Mapping[str, Collection[int]] | None = None,
) -> None:
    """Compare files and partners of what is served with the manifests, inspect what has none, and ask engines
    for their GPU.

    Args:
        backends: those that the server has; None: that is left to the server to say.
        served: model -> versions to look at; None: what the configs in the repository serve.

    Raises:
        RepositoryError: there is no model, or the first thing that is wrong with what is served.
        MissingDependency: a file without a manifest cannot be inspected.
    """
    finish_broken_change(repository)
    if served is None:
        models = [path.parent for path in repository.glob("*/config.pbtxt")]
        served = {model.name: selected_versions(model) for model in models}
    if not served:
        raise RepositoryError(f"{repository} holds no models", hint="shoal export")
    found = [
        Manifest.load(path)
        for name, versions in sorted(served.items())
        for version in sorted(versions)
        if (path := repository / name / str(version) / FILENAME).exists()
    ]
    for name, versions in sorted(served.items()):
        for version in sorted(versions):
            if not (repository / name / str(version)).is_dir():
                raise RepositoryError(
                    f"{repository / name / str(version)} is missing, which {name}'s config serves",
                    hint="put it back, or shoal promote another version",
                )
        _check_backend(repository / name / "config.pbtxt", backends, repository)
    known: set[Path] = set()
    for manifest in found:
        manifest.check_files(repository)
        manifest.check_partners(served)
        known.update(repository / name for name in manifest.files)
        if manifest.engine:
            check_fits(manifest.engine, triton_runtime(), manifest.rebuild)
    for name, versions in sorted(served.items()):
        for version in sorted(versions):
            for path in sorted((repository / name / str(version)).glob("*.onnx")):
                if path not in known:  # no evidence of ours: at least it must read nothing but its own
                    inspect(path)


def _check_backend(config: Path, backends: Collection[str] | None, repository: Path) -> None:
    try:
        text = config_of(config.parent)
    except OSError as error:
        raise RepositoryError(f"{config} cannot be read: {error}", hint="export the model again") from error
    backend = backend_of(text)
    if backend and backends is not None and backend not in backends:
        every = manifests(repository)
        others = [m for m in every if m.network == config.parent.name and not m.engine]
        other = f"shoal promote {others[-1].model} {others[-1].version}" if others else ""
        raise RepositoryError(
            f"{config.parent} needs the backend {backend}, which the embedded Triton lacks",
            hint=f"serve it in the container, or {other or 'leave it out of this repository'}",
        )
    if backend == "onnxruntime" and not any(config.parent.glob("*/*.onnx")):
        raise RepositoryError(f"{config.parent} has a config but no weights", hint="run: shoal export")


def main() -> None:
    """Check, then become the command."""
    repository, command = Path(sys.argv[1]), sys.argv[2:]
    try:
        check(repository)
    except ShoalError as error:
        sys.exit(f"error: {error.message}" + (f"; {error.hint}" if error.hint else ""))
    if command:
        os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
