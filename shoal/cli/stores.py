"""The commands `push` and `pull`. `shoal.cli.app` registers them."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cli.options import DEFAULT_REPOSITORY, Json, Repository
from shoal.cli.steps import err, out, print_json
from shoal.progress import Bars

_Store = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="s3://BUCKET/PREFIX/NAME:TAG or oci://REGISTRY/PATH/NAME:TAG. Without TAG: a push takes the"
        " version's number, and a pull the highest number.",
    ),
]


def push(
    name: Annotated[str, typer.Argument(help="The model, as users call it.")],
    url: _Store,
    version: Annotated[
        int | None, typer.Option(min=1, help="A version of it. Default: the one that is served.")
    ] = None,
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Put a proven version into an S3 bucket or an OCI registry. Files that are there are not sent again.

    A tag that names another version already is refused, also where two push at once to S3. Keys come from
    where boto3 (AWS_ENDPOINT_URL, AWS_PROFILE) and docker login keep them.

    Example: shoal push minilm s3://models/prod/minilm

    Example: shoal push minilm oci://registry.example:5000/models/minilm:3 --version 3
    """
    from deploy.stores.address import Address
    from deploy.stores.transfer import push as to_store

    moved = to_store(repository, name, version, Address.parse(url), Bars(err))
    if as_json:
        print_json(vars(moved))
        return
    said = f"{moved.address}: {name} {moved.version}, {moved.sent_files} of {moved.files} files sent"
    out.print(f"{said} ({moved.sent_bytes >> 20} MiB)", highlight=False, markup=False, soft_wrap=True)
    if moved.digest:
        out.print(f"digest {moved.digest}", highlight=False, markup=False, soft_wrap=True)


def pull(
    url: _Store,
    promote: Annotated[
        bool, typer.Option("--promote", help="Serve it, where another version of the model is served.")
    ] = False,
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Bring a version with its evidence from an S3 bucket or an OCI registry into the model repository.

    Every byte is compared with what was pushed, and nothing that is code comes along. It keeps its number; a
    model that the repository has not had is served, another one only with --promote or by shoal promote.

    Exit code: 3 if the store holds no such version.

    Example: shoal pull s3://models/prod/minilm --promote

    Example: shoal pull oci://registry.example:5000/models/minilm:3
    """
    from deploy.stores.address import Address
    from deploy.stores.transfer import pull as from_store

    moved = from_store(Address.parse(url), repository, serve=promote, progress=Bars(err))
    if as_json:
        print_json(vars(moved))
        return
    said = f"{moved.model} {moved.version} from {moved.address}: {moved.sent_files} of {moved.files} files"
    out.print(f"{said} ({moved.sent_bytes >> 20} MiB)", highlight=False, markup=False, soft_wrap=True)
    if not moved.served:
        said = f"it is not served: shoal promote {moved.model} {moved.version} -r {repository}"
        out.print(said, highlight=False, markup=False, soft_wrap=True)
