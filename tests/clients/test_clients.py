"""The clients as a library: typed errors, TLS, asyncio, light dependencies."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import trustme
from grpc import _channel
from tritonclient.utils import InferenceServerException

import clients
from clients import AsyncGrpcClient, GrpcClient, HttpClient, Timeout, Tls, Unavailable
from clients.errors import from_triton
from clients.generation import part_of, sampling_text
from serving.embedded import Server, running
from shoal.chat import ChatTemplate
from shoal.errors import ShoalError
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("StatusCode.UNAVAILABLE", "Exceeds maximum queue size", clients.Overloaded),
        ("StatusCode.UNAVAILABLE", "[request id: 7] Exceeds maximum queue size", clients.Overloaded),
        ("503", "Exceeds maximum queue size", clients.Overloaded),
        ("429", "slow down", clients.Overloaded),
        (
            "StatusCode.UNAVAILABLE",
            "Server is stopping, scheduler for model has stopped",
            clients.Unavailable,
        ),
        (
            "StatusCode.NOT_FOUND",
            "Request for unknown model: 'x' has no available versions",  # as the server stops
            clients.Unavailable,
        ),
        ("StatusCode.NOT_FOUND", "Request for unknown model: 'x' is not found", clients.UnknownModel),
        ("StatusCode.CANCELLED", "CANCELLED", clients.Unavailable),
        ("StatusCode.INTERNAL", "Stub process 'x' is not healthy.", clients.Unavailable),
        ("StatusCode.INTERNAL", "Internal error from Core", clients.Unavailable),
        # A stream whose server is gone: Envoy, HAProxy and gRPC itself.
        ("StatusCode.INTERNAL", "Received RST_STREAM with error code 2", clients.Unavailable),
        ("StatusCode.CANCELLED", "Received RST_STREAM with error code 8", clients.Unavailable),
        ("StatusCode.UNKNOWN", "Stream removed", clients.Unavailable),
        ("StatusCode.INVALID_ARGUMENT", "unexpected shape", clients.BadInput),
        ("400", "Request for unknown model: 'x' is not found", clients.UnknownModel),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", clients.Timeout),
        ("StatusCode.INTERNAL", "something broke", clients.ServerFault),
        ("500", "something broke", clients.ServerFault),
        (None, "something broke", clients.ServerFault),
    ],
)
def test_every_answer_of_triton_has_a_type(status: str, message: str, kind: type[Exception]) -> None:
    error = from_triton(InferenceServerException(msg=message, status=status), "host:1")
    assert type(error) is kind
    assert isinstance(error, ShoalError)
    assert str(error).startswith("host:1: ")
    assert "request id" not in str(error)


@pytest.mark.parametrize("kind", [GrpcClient, HttpClient])
def test_nobody_there(kind: type[GrpcClient] | type[HttpClient]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{free.getsockname()[1]}"
    with kind(url, timeout=2.0) as client:
        assert client.ready() is False
        with pytest.raises(Unavailable, match=url):
            client.embed(["x"])


@pytest.mark.parametrize("kind", [GrpcClient, HttpClient])
def test_somebody_who_never_answers(kind: type[GrpcClient] | type[HttpClient]) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with kind(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.5) as client:
            start = time.monotonic()
            with pytest.raises((Timeout, Unavailable)):
                client.embed(["x"])
            assert time.monotonic() - start < 5


def test_ready_and_metadata(client: GrpcClient | HttpClient) -> None:
    assert client.ready()
    assert client.ready("minilm")
    assert not client.ready("nope")
    metadata = client.metadata("minilm")
    assert metadata["name"] == "minilm"
    assert [output["name"] for output in metadata["outputs"]] == ["embedding", "num_input_tokens"]


def test_asyncio(server: Server) -> None:
    async def calls() -> None:
        async with AsyncGrpcClient(server.grpc) as client:
            assert await client.ready("minilm")
            assert not await client.ready("nope")
            assert (await client.metadata("minilm"))["platform"] == "ensemble"
            texts = [f"text {n}" for n in range(100)]
            vectors = await client.embed(texts, batch_size=8)
            with GrpcClient(server.grpc) as blocking:
                expected = blocking.embed(texts)
            assert (vectors * expected).sum(axis=1).min() > 0.9999
            with pytest.raises(clients.BadInput, match="text 0 is empty"):
                await client.embed([""])
            with pytest.raises(Timeout):
                await client.embed(["many words " * 200] * 64, timeout=0.005)
            task = asyncio.create_task(client.embed(["many words " * 200] * 64))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await client.embed(["still here"])).dtype == np.float32

    asyncio.run(calls())


def test_tls_and_mutual_tls(repository: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    paths = {}
    for who, issued in (
        ("server", authority.issue_cert("localhost")),
        ("client", authority.issue_cert("me@x")),
    ):
        paths[who] = (tmp_path / f"{who}.pem", tmp_path / f"{who}.key")
        issued.cert_chain_pems[0].write_to_path(str(paths[who][0]))
        issued.private_key_pem.write_to_path(str(paths[who][1]))
    arguments = [
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-root-cert={ca}",
        f"--grpc-server-cert={paths['server'][0]}",
        f"--grpc-server-key={paths['server'][1]}",
    ]
    with running(repository, arguments=arguments) as server:
        url = f"localhost:{server.ports.grpc}"
        with GrpcClient(url, tls=Tls(ca, *paths["client"])) as client:
            assert client.embed(["a secret"]).shape == (1, 384)
        with GrpcClient(url, tls=Tls(ca), timeout=3.0) as without, pytest.raises(Unavailable):
            without.embed(["a secret"])
        with GrpcClient(url, timeout=3.0) as plain, pytest.raises(Unavailable):
            plain.embed(["a secret"])
    with pytest.raises(ValueError, match="both the certificate and the key"):
        Tls(ca, paths["client"][0])


def test_http_over_tls_trusts_only_its_authority(tmp_path: Path) -> None:
    """Triton has no HTTPS; a proxy stands before it. What is ours is the context: a stranger is refused."""
    import ssl
    import threading

    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(4096)
                    secure.sendall(reply)
            except OSError:
                connection.close()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        for trusted, expected in ((authority, True), (stranger, False)):
            ca = tmp_path / "ca.pem"
            ca.unlink(missing_ok=True)
            trusted.cert_pem.write_to_path(str(ca))
            url = f"localhost:{listener.getsockname()[1]}"
            with HttpClient(url, tls=Tls(ca), timeout=3.0) as client:
                assert client.ready() is expected


def test_the_client_needs_nothing_heavy() -> None:
    """Imported where torch, transformers, onnxruntime, tokenizers, locust and the wheel cannot be."""
    script = """
import sys
heavy = "torch transformers optimum onnx onnxruntime tokenizers locust scipy pytriton gevent".split()
for name in heavy:
    sys.modules[name] = None
import clients, shoal.cli.app
assert not [m for m in sys.modules if m.split(".")[0] in heavy and sys.modules[m] is not None]
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@contextmanager
def _answering(answer: bytes) -> Iterator[str]:
    """The address of a server that gives every request this answer, and closes the connection."""
    import threading

    def serve(listener: socket.socket) -> None:
        while True:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(answer)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("ask", ["embed", "complete"])
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\ndata: {"])
def test_an_http_server_that_dies_before_it_has_answered(ask: str, answer: bytes) -> None:
    with _answering(answer) as url, HttpClient(url, timeout=5.0) as client, pytest.raises(Unavailable):
        client.embed(["x"], model="m") if ask == "embed" else client.complete("x", model="m")


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-nonsense\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"]
)
def test_an_http_server_that_is_not_triton(answer: bytes) -> None:
    with (
        _answering(answer) as url,
        HttpClient(url, timeout=3.0) as client,
        pytest.raises(clients.ClientError),
    ):
        client.embed(["x"])


@pytest.mark.parametrize("url", ["nonsense", "http://host", "host:port", "host:1/path", "ftp://host:1"])
@pytest.mark.parametrize("kind", [GrpcClient, HttpClient])
def test_what_is_not_an_address(kind: type[GrpcClient] | type[HttpClient], url: str) -> None:
    with pytest.raises(clients.BadInput, match="is not an address"):
        kind(url)


def test_a_model_without_an_embedding(client: GrpcClient | HttpClient) -> None:
    with pytest.raises(clients.BadInput, match="minilm_tokenizer has no output embedding, it has"):
        client.embed(["x"], model="minilm_tokenizer")


@pytest.mark.parametrize("text", ["\x00", "a\x00", "\x00\x00b\x00", "", "é\x00"])
@pytest.mark.parametrize("form", ["array", "plain", "list"])
def test_zeros_at_the_end_of_a_text_are_part_of_it(text: str, form: str) -> None:
    """A token may be one; NumPy's own types for text drop them."""
    value = {"array": np.array([text.encode()], object), "plain": text, "list": [text]}[form]
    assert part_of({"text_output": value}).text == text


def test_a_connection_is_closed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it is collected: gRPC counts each close under gevent, and a second may never return."""
    closed = list[object]()
    monkeypatch.setattr(_channel.Channel, "close", lambda channel: closed.append(channel))  # noqa: PLW0108 - bound
    client = GrpcClient("127.0.0.1:1")
    client.close()
    client.close()
    del client
    gc.collect()
    assert len(closed) == 1


def test_sampling_parameters_may_be_numbers_of_numpy() -> None:
    asked = {"max_tokens": np.int64(2), "temperature": np.float64(0.5), "stop_token_ids": np.array([1, 2])}
    plain = {"max_tokens": 2, "temperature": 0.5, "stop_token_ids": [1, 2]}
    assert json.loads(sampling_text("Fish", asked)) == plain
    with pytest.raises(clients.BadInput, match="one of them holds a set"):
        sampling_text("Fish", {"stop": {"a"}})


def test_a_conversation_without_a_message_is_refused() -> None:
    with pytest.raises(clients.BadInput, match="the conversation is empty"):
        ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}assistant:").render([])
