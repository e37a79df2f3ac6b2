"""Files of a repository that change together: all of them or none, also where the process is killed.

A version is served by several configs, and a rename puts one file in place. So what all of them will hold is
first written to a journal at the repository's top, where Triton ignores files. From then on the change holds:
whoever next locks the repository finishes what the journal says. Before, nothing of it is to be seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from shoal.errors import RepositoryError
from shoal.layout import read_regular
from shoal.paths import TEMPORARY, sync_folder, to_json, write_atomic, write_beside

JOURNAL = ".shoal-change.json"


def write_together(repository: Path, texts: Mapping[Path, str]) -> None:
    """Write files of a repository that is locked, all or none of them.

    Args:
        texts: path in the repository -> what it holds from now on; its folder is there.

    Raises:
        OSError: the disk is full, or a file cannot be written; then nothing was changed.
    """
    before = {name: _read(repository / name) for name in texts}
    texts = {name: text for name, text in texts.items() if before[name] != text.encode()}
    journal = repository / JOURNAL
    prepared: dict[Path, Path] = {}
    kept: dict[Path, Path] = {}
    replaced: list[Path] = []
    try:
        for name, text in texts.items():  # all that takes room on the disk, before any of it counts
            prepared[name] = write_beside(repository / name, text)
            if (old := before[name]) is not None:
                kept[name] = write_beside(repository / name, old, ".old")
        if len(texts) > 1:
            write_atomic(journal, to_json({str(name): text for name, text in texts.items()}))
        for name, temporary in prepared.items():
            temporary.replace(repository / name)
            replaced.append(name)
        for folder in sorted({(repository / name).parent for name in texts}):
            sync_folder(folder)
        journal.unlink(missing_ok=True)
        _remove(kept.values())
    except BaseException:
        # Killed in here, the journal still holds, and what was changed back is changed once more.
        for name in replaced:
            if name in kept:
                kept[name].replace(repository / name)
            else:
                (repository / name).unlink()
        journal.unlink(missing_ok=True)
        _remove([*prepared.values(), *kept.values()])
        raise


def finish_change(repository: Path) -> None:
    """Finish what a process that was killed had begun, in a repository that is locked; and clear up after it.

    Raises:
        OSError: it cannot be written.
        RepositoryError: the journal is damaged.
    """
    journal = repository / JOURNAL
    for place in ("", "*/", "*/*/"):
        for path in repository.glob(f"{place}.*.[0-9]*{TEMPORARY}"):
            with suppress(OSError):
                path.unlink()
    if (text := _read(journal)) is None:
        return
    try:
        texts = {Path(name): str(value) for name, value in json.loads(text).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        hint = "remove it, then promote the version that is to be served"
        raise RepositoryError(f"{journal} cannot be read: {error}", hint=hint) from error
    for name, value in texts.items():
        path = repository / name
        if path.parent.is_dir() and _read(path) != value.encode():
            write_atomic(path, value)
    journal.unlink()


def _read(path: Path) -> bytes | None:
    """Content of a file, which may be no text: what is damaged is replaced, too."""
    try:
        return read_regular(path)
    except FileNotFoundError:
        return None


def _remove(temporary: Iterable[Path]) -> None:
    """What stays is removed by the next."""
    for path in temporary:
        with suppress(OSError):
            path.unlink(missing_ok=True)
