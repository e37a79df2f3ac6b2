"""The command `shoal gateway`: the API that every tool speaks, in front of a served repository."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from shoal.cli.options import DEFAULT_REPOSITORY, Json, Repository
from shoal.cli.steps import find_service, out, print_json
from shoal.errors import MissingDependency


def gateway(
    repository: Repository = DEFAULT_REPOSITORY,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0: any free one.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but loopback needs --keys.")
    ] = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Without --keys: a name of this host for its callers, beside loopback."),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="File of API keys, see `shoal keys`. Without it there are none.")
    ] = None,
    storage: Annotated[
        str,
        typer.Option(help="Where quotas are counted: memory://, or redis://HOST:PORT for several gateways."),
    ] = "memory://",
    triton: Annotated[
        list[str] | None,
        typer.Option(
            help="host:port of Triton's gRPC; repeat for several. Default: the server of --repository."
        ),
    ] = None,
    catalogue: Annotated[
        list[str] | None, typer.Option(help="With each --triton: URL of its supervisor's /catalogue.")
    ] = None,
    triton_ca: Annotated[
        Path | None,
        typer.Option(help="PEM file: ask Triton over TLS, and trust the certificates of this authority."),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Keep answers that are the same each time: memory:64MB, or redis://HOST:PORT."),
    ] = None,
    cache_scope: Annotated[
        Literal["key", "shared"],
        typer.Option(help="Who is given a kept answer: the `key` it was made for, or all (`shared`)."),
    ] = "key",
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file: serve HTTPS. Needs --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file.")] = None,
    token_ids: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=cl100k",
            help="Token ids in /v1/embeddings are those of OpenAI's tokenizer, for this model, as"
            " langchain-openai sends them. They are refused otherwise. May be given several times.",
        ),
    ] = None,
    cl100k: Annotated[
        Path | None, typer.Option(help="OpenAI's file cl100k_base.tiktoken, for --token-ids.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65_535, help="Where Prometheus reads /metrics, without a key. Default: nowhere."
        ),
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address that --metrics-port listens on.")] = "127.0.0.1",
    traces: Annotated[
        str, typer.Option(help="URL of an OpenTelemetry collector, such as http://otel:4318/v1/traces.")
    ] = "",
    audit: Annotated[
        str, typer.Option(metavar="FILE", help="Write a line for each request, without its text; -: stdout.")
    ] = "",
    audit_text: Annotated[
        bool, typer.Option("--audit-text", help="With the texts of requests and answers, redacted.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve the OpenAI API, and the others of docs/gateway.md, in front of a served repository, until Ctrl-C.

    Example: shoal gateway --port 8080

    Example: shoal gateway --host 0.0.0.0 --keys keys.json, after shoal keys add me --store keys.json
    """
    try:
        from serving.gateway.app import application
        from serving.gateway.run import listening, serve
        from serving.gateway.settings import GatewaySettings, token_ids_of
    except ModuleNotFoundError as error:
        raise MissingDependency(str(error.name), extra="gateway") from error
    if not triton and not catalogue:
        service = find_service(repository)
        triton, catalogue = [service.grpc], [service.health.replace("/health", "/catalogue")]
    settings = GatewaySettings(
        triton or [],
        catalogue or [],
        triton_authority=triton_ca,
        host=host,
        port=port,
        allowed_hosts=allowed_host or [],
        keys=keys,
        storage=storage,
        cache=cache,
        cache_scope=cache_scope,
        certificate=tls_cert,
        private_key=tls_key,
        token_ids=token_ids_of(token_ids or ()),
        cl100k=cl100k,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        traces=traces,
        audit=audit,
        audit_text=audit_text,
    )
    app = application(settings)
    with listening(settings) as listener:
        number = listener.getsockname()[1]
        name = "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 - which no client can call
        url = f"{'https' if tls_cert else 'http'}://{name}:{number}/v1"
        if as_json:
            print_json({"url": url, "triton": triton, "keys": str(keys) if keys else None})
        else:
            out.print(f"serving {', '.join(settings.triton)} at {url}", highlight=False, soft_wrap=True)
            key = "KEY" if keys else "none"
            out.print(
                f'OpenAI(base_url="{url}", api_key="{key}")  # from openai import OpenAI',
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            if keys is None:
                out.print("there are no API keys: anybody on this machine may call it", highlight=False)
            elif not tls_cert and not settings.is_loopback:
                out.print("keys and texts cross the network unencrypted: --tls-cert", style="yellow")
        with suppress(KeyboardInterrupt):  # uvicorn has ended in order, and raises it again
            serve(app, settings, listener)
