"""Publish another setting of a version: the same files with other configs, as a version of its own.

So `shoal versions` shows it, and `shoal rollback` takes it back.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from shoal import model_config
from shoal.change import write_together
from shoal.errors import RepositoryError
from shoal.layout import versions_in
from shoal.manifest import FILENAME, Manifest
from shoal.paths import link_or_copy, sync_folder, write_json
from shoal.repository import MOMENT_SECONDS, locked, served_before, served_texts, served_version


def publish(
    repository: Path,
    manifest: Manifest,
    configs: Mapping[str, str],
    tuned: Mapping[str, Any],
    beside: int,
) -> Manifest:
    """Serve a version with other configs from the next start on.

    Args:
        manifest: of the version whose files are served.
        configs: model -> `config.pbtxt`, of the same models as the manifest's.
        tuned: how the setting was measured; it is added to the evidence.
        beside: the version that it was compared with, which must still be served.

    Returns:
        The manifest of the new version. Its files are links to those of the old one.

    Raises:
        RepositoryError: a file is not the one that was measured, another version is served by now, or the
            repository cannot be written; nothing was changed.
    """
    with locked(repository, wait=MOMENT_SECONDS) as prefix:
        manifest.check_files(repository)
        if (now := served_version(repository, manifest.network)) != beside:
            raise RepositoryError(
                f"version {now} of {manifest.model} is served by now, and it was compared with {beside}",
                hint="tune again",
            )
        network = repository / manifest.network
        number = max(versions_in(network)) + 1
        made = _manifest(manifest, configs, tuned, number)
        staged = Path(tempfile.mkdtemp(prefix=f"{prefix.name}-", dir=prefix.parent))
        place = network / str(number)
        try:
            old = network / str(manifest.version)
            shutil.copytree(
                old, staged / "version", copy_function=link_or_copy, ignore=shutil.ignore_patterns(FILENAME)
            )
            write_json(staged / "version" / FILENAME, made.to_dict())
            sync_folder(staged / "version")
            before = served_before(repository, manifest.network)
            (staged / "version").rename(place)
            sync_folder(network)
            try:
                texts = served_texts(repository, manifest.network, number, before, made.configs)
                write_together(repository, texts)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    return made


def _manifest(
    manifest: Manifest, configs: Mapping[str, str], tuned: Mapping[str, Any], number: int
) -> Manifest:
    own = f"{manifest.network}/{manifest.version}/"
    files = {
        f"{manifest.network}/{number}/{name.removeprefix(own)}" if name.startswith(own) else name: value
        for name, value in manifest.files.items()
    }
    network = model_config.parse(configs[manifest.network])
    network.version_policy.specific.versions[:] = [number]
    return msgspec.structs.replace(
        manifest,
        version=number,
        files=files,
        configs={**configs, manifest.network: model_config.to_text(network)},
        evidence={**manifest.evidence, "tuned": dict(tuned)},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
