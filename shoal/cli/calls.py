"""The commands that call a served model: `infer` and `chat`. `shoal.cli.app` registers them."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from shoal import show, tensors
from shoal.cli.options import DEFAULT_REPOSITORY, Json, Repository, Sampling
from shoal.cli.steps import connect, err, is_decoder, out, print_json
from shoal.errors import ShoalError, UsageError


def infer(
    model: Annotated[str, typer.Argument(help="The model to call.")],
    texts: Annotated[
        list[str] | None, typer.Argument(help="One or more texts; - reads lines from stdin.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            "-i",
            help="NAME=VALUE for each other input, or NAME=@FILE for a file's content; several of one name"
            " are one row.",
        ),
    ] = None,
    protocol: Annotated[str, typer.Option(help="grpc or http.")] = "grpc",
    url: Annotated[str | None, typer.Option(help="host:port. Default: the server of --repository.")] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Deadline in seconds.")] = 30.0,
    sampling: Sampling = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Text generation: the text as it is, without the chat template.")
    ] = False,
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Send texts, or a row of inputs, to a served model, and print its answer, whatever its task.

    Example: shoal infer minilm "Fish swim in shoals." "Birds fly in flocks."

    Example: shoal infer smollm2 "Why do fish swim in shoals?" --set max_tokens=80 --set temperature=0

    Example: shoal infer nli "Fish swim." -i candidate_labels=biology -i candidate_labels=music

    Example: shoal infer photos -i image=@photo.png

    Example: shoal infer forest, which prints a line with all inputs that a table model wants
    """
    texts = texts or []
    if texts == ["-"]:
        if sys.stdin is None:
            raise UsageError(
                "standard input is closed, which the text was to come from", hint="give the text"
            )
        texts = [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines() if line.strip()]
    from clients import Timeout

    client, address = connect(protocol, url, repository, timeout)
    with client:
        metadata = client.metadata(model)
        options = [*(["--url", url] if url else []), *(["--protocol", "http"] if protocol == "http" else [])]
        options += ["-r", str(repository)] if repository != DEFAULT_REPOSITORY else []
        if is_decoder(metadata) and not texts:
            line = shlex.join(["shoal", "infer", *options, model, "Fish swim in"])
            raise UsageError(f"{model} wants a text", hint=line)
        if is_decoder(metadata):
            try:
                answers = [
                    stream_answer(client, model, text, sampling_from(sampling), timeout, raw, quiet=as_json)
                    for text in texts
                ]
            except Timeout as error:
                raise ShoalError(
                    f"{model} gave no whole answer within {timeout:g} s",
                    hint="--timeout gives it more; a machine that does something else is slow: shoal status",
                ) from error
            if as_json:
                print_json({"model": model, "url": address, "answers": answers})
            return
        if sampling or raw:
            raise UsageError(f"{model} generates no text: --set and --raw are for models that do")
        config = client.config(model)
        arrays = tensors.arrays_of(config, metadata, texts, inputs or [], options)
        size = int(config.get("max_batch_size", 0)) or 1
        start = time.perf_counter()
        answered = [client.infer(model, part) for part in tensors.parts(arrays, size)]
        elapsed = 1e3 * (time.perf_counter() - start)
    outputs = tensors.as_rows(answered)
    outputs = {entry["name"]: outputs[entry["name"]] for entry in metadata["outputs"]}
    if as_json:
        print_json({"model": model, "url": address, "ms": elapsed, **outputs})
        return
    out.print(show.answers_table(outputs, texts))
    out.print(f"[dim]{protocol} {address}, {elapsed:.1f} ms[/]", highlight=False)


def chat(
    model: Annotated[str, typer.Argument(help="The model to talk to.")] = "smollm2",
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    protocol: Annotated[str, typer.Option(help="grpc or http.")] = "grpc",
    url: Annotated[str | None, typer.Option(help="host:port. Default: the server of --repository.")] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Deadline of an answer in seconds.")] = 120.0,
    sampling: Sampling = None,
    repository: Repository = DEFAULT_REPOSITORY,
    as_json: Json = False,
) -> None:
    """Talk to a served model; what was said before is part of every turn. An empty line ends it.

    Example: shoal chat smollm2 --set temperature=0.7 --set max_tokens=200
    """
    client, _ = connect(protocol, url, repository, timeout)
    settings = sampling_from(sampling)
    messages = [{"role": "system", "content": system}] if system else []
    with client:
        while (line := read_line("you: ")).strip():
            messages.append({"role": "user", "content": line})
            answer = stream_answer(client, model, messages, settings, timeout, raw=False, quiet=as_json)
            messages.append({"role": "assistant", "content": answer["text"]})
    if as_json:
        print_json({"model": model, "messages": messages})


def decoder_at(protocol: str, grpc_url: str | None, http_url: str | None, model: str) -> bool:
    """`is_decoder` at an address; False where that cannot be told, so that a load test shows why."""
    import clients

    kind, url = (clients.HttpClient, http_url) if protocol == "http" else (clients.GrpcClient, grpc_url)
    try:
        with kind(url or "", timeout=5.0) as client:
            return is_decoder(client.metadata(model))
    except ShoalError:
        return False


def sampling_from(pairs: Sequence[str] | None) -> dict[str, Any]:
    """`NAME=VALUE` as sampling parameters; a value that is JSON is taken as such, any other as text.

    Raises:
        UsageError: there is no `=`.
    """
    values: dict[str, Any] = {"max_tokens": 256, "temperature": 0}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {pair} is not NAME=VALUE", hint="e.g. --set temperature=0.7")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def stream_answer(
    client: Any,
    model: str,
    prompt: str | Sequence[dict[str, str]],
    sampling: dict[str, Any],
    timeout: float,
    raw: bool,
    *,
    quiet: bool,
) -> dict[str, Any]:
    """Generate, printing as text arrives; returns the answer and how long it took.

    Args:
        prompt: a text or a conversation.
        raw: send the text as it is, not as the first message of a conversation.
    """
    from clients.generation import joined

    start = time.perf_counter()
    first = None
    parts = []
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    stream = (
        client.generate(prompt, model=model, timeout=timeout, **sampling)
        if raw
        else client.chat(messages, model=model, timeout=timeout, **sampling)
    )
    for part in stream:
        first = first or time.perf_counter()
        parts.append(part)
        if not quiet:
            typer.echo(part.text, nl=False)
    answer = joined(parts)
    seconds = time.perf_counter() - start
    facts = vars(answer) | {
        "first_token_ms": 1e3 * ((first or start) - start),
        "tokens_per_second": answer.output_tokens / seconds,
    }
    if not quiet:
        typer.echo()
        err.print(
            f"[dim]{answer.output_tokens} tokens, {facts['tokens_per_second']:.0f} a second, the first after"
            f" {facts['first_token_ms']:.0f} ms; {answer.cached_tokens} of {answer.input_tokens} tokens of"
            f" the prompt were cached; ended by {answer.finish_reason}[/]",
            highlight=False,
        )
    return facts


def read_line(prompt: str) -> str:
    """A line from a person, or "" where the input has ended."""
    try:
        return input(prompt if sys.stdin.isatty() else "")
    except EOFError:
        return ""
