"""Push a version to a store, and pull one into a model repository."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from deploy.stores.address import Address
from deploy.stores.bundle import MOST_BYTES, Bundle, bundle_of, check_content, check_manifest
from deploy.stores.store import Nothing, Store
from shoal import repository as versions
from shoal.errors import RepositoryError
from shoal.hashes import sha256
from shoal.manifest import Manifest
from shoal.placing import put_in_place, staging
from shoal.progress import Silent


@dataclass(frozen=True)
class Moved:
    """What was pushed or pulled.

    Attributes:
        address: with its tag.
        model, version: what it is.
        digest: of what a push published; "": it was a pull.
        sent: files and bytes that crossed the network; the others were there.
        served: whether the repository serves it now.
    """

    address: str
    model: str
    version: int
    digest: str
    files: int
    sent_files: int
    sent_bytes: int
    served: bool


def _open(address: Address) -> Store:
    """The store of an address.

    Raises:
        MissingDependency: its library is not installed.
    """
    if address.scheme == "s3":
        from deploy.stores.s3 import S3  # noqa: PLC0415 - boto3 takes a second

        return S3(address)
    from deploy.stores.oci import Oci  # noqa: PLC0415 - and so does oras

    return Oci(address)


def push(
    repository: Path, name: str, version: int | None, address: Address, progress: Silent | None = None
) -> Moved:
    """Put a version into a store, files first, and what names them last.

    Args:
        version: None: the one that is served.

    Raises:
        RepositoryError: there is no such version, or its files are not those that were measured.
        StoreError: the store cannot be reached, or holds another version under this tag.
    """
    progress = progress or Silent()
    if version is None:
        found = versions.versions_of(repository, name)
        version = versions.served_version(repository, versions.network_of(repository, name, found))
        if version is None:
            raise RepositoryError(f"{repository} serves no version of {name}", hint="shoal push --version N")
    manifest = versions.version_of(repository, name, version)
    bundle = bundle_of(repository, manifest)
    check_manifest(manifest, bundle)
    tag = address.tag or str(version)
    store = _open(address)
    sent = [
        file.size
        for path, file in progress.each(f"push {name} {version}", list(bundle.files.items()))
        if store.put(file, repository / path)
    ]
    digest = store.publish(tag, bundle.encode(), bundle.files)
    place = f"{str(address).removesuffix(f':{address.tag}')}:{tag}"
    return Moved(place, name, version, digest, len(bundle.files), len(sent), sum(sent), served=False)


def pull(address: Address, repository: Path, *, serve: bool = False, progress: Silent | None = None) -> Moved:
    """Bring a version into a repository, with its number and its evidence; every byte is checked on arrival.

    A model that the repository has not had is served at once.

    Args:
        serve: serve it also where another version of the model is served now.

    Raises:
        RepositoryError: it is not what was pushed, or the repository holds another version of this number;
            nothing was changed.
        StoreError: the store cannot be reached, or holds nothing there.
    """
    progress = progress or Silent()
    store = _open(address)
    tag = address.tag or _newest(store, address)
    where = f"{str(address).removesuffix(f':{address.tag}')}:{tag}"
    text = store.bundle(tag)
    if len(text) > MOST_BYTES:
        raise RepositoryError(f"{where} does not hold a version of Shoal's: its list is larger than 4 MiB")
    bundle = Bundle.decode(text, where)
    with versions.disk_errors_named(repository), staging(repository) as work:
        lacking = _lacking(repository, bundle)
        _check_room(repository, bundle, lacking)
        staged = work / "pulled"
        for path in progress.each(f"pull {bundle.model} {bundle.version}", lacking):
            (staged / path).parent.mkdir(parents=True, exist_ok=True)
            store.get(bundle.files[path], staged / path)
            if sha256(staged / path) != bundle.files[path].sha256:
                raise RepositoryError(f"{path} of {where} is not what was pushed: its SHA-256 differs")
            check_content(path, staged / path)
        manifest = Manifest.load((staged if bundle.manifest in lacking else repository) / bundle.manifest)
        check_manifest(manifest, bundle)
        for folder in bundle.folders:
            if not (repository / folder).is_dir():
                (staged / folder).mkdir(parents=True)
                (staged / folder / ".gitkeep").touch()
        put_in_place(repository, staged, _order(bundle), _texts(repository, manifest))
    if serve:
        versions.promote(repository, bundle.model, bundle.version)
    served = versions.served_version(repository, bundle.network) == bundle.version
    sent = sum(bundle.files[path].size for path in lacking)
    return Moved(
        where, bundle.model, bundle.version, "", len(bundle.files), len(lacking), sent, served=served
    )


def _newest(store: Store, address: Address) -> str:
    numbers = [tag for tag in store.tags() if tag.isascii() and tag.isdigit()]
    if not numbers:
        raise Nothing(f"{address} holds no version", hint="shoal push puts one there")
    return max(numbers, key=int)


def _lacking(repository: Path, bundle: Bundle) -> list[str]:
    """The files that the repository lacks.

    Raises:
        RepositoryError: it has others in their place.
    """
    lacking = []
    for path, file in bundle.files.items():
        here = repository / path
        if any((repository / part).is_symlink() for part in Path(path).parents):
            raise RepositoryError(f"{here.parent} is a link, through which nothing is pulled")
        if here.is_symlink() or (here.exists() and not here.is_file()):
            raise RepositoryError(f"{here} is no regular file")
        if not here.exists():
            lacking.append(path)
        elif here.stat().st_size != file.size or sha256(here) != file.sha256:
            raise RepositoryError(
                f"{repository} holds another {path} than {bundle.model} {bundle.version} has",
                hint="pull into another --repository, or remove the version that is in the way: shoal prune",
            )
    return lacking


def _check_room(repository: Path, bundle: Bundle, lacking: list[str]) -> None:
    needed = sum(bundle.files[path].size for path in lacking)
    free = shutil.disk_usage(repository).free
    if needed > free:
        raise RepositoryError(
            f"{bundle.model} {bundle.version} takes {needed >> 20} MiB, and {free >> 20} are free;"
            " nothing was changed",
            hint="make room, or choose another --repository",
        )


def _texts(repository: Path, manifest: Manifest) -> dict[Path, str]:
    """What must appear with the version's folders: no folder may be without a config, or no server starts."""
    if not (repository / manifest.network).exists():
        return versions.served_texts(repository, manifest.network, manifest.version, [], manifest.configs)
    return {
        Path(model) / "config.pbtxt": config
        for model, config in manifest.configs.items()
        if not (repository / model / "config.pbtxt").exists()
    }


def _order(bundle: Bundle) -> list[str]:
    """Models, each after those that it needs."""
    models = {path.split("/")[0] for path in [*bundle.files, *bundle.folders]}
    ensembles = {folder.split("/")[0] for folder in bundle.folders}
    return sorted(models, key=lambda model: (model in ensembles, model == bundle.network))
