"""What stands in Triton's place when the gateway by itself is measured: it answers at once.

Responses are made once, as Triton writes them, and sent as they are. On the HTTP port there are `/catalogue`
and `/health`, as a supervisor has them, and `/end`, which lets the streams of the model `idle` end.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import msgspec
import numpy as np
import uvloop
from aiohttp import web
from tritonclient.grpc import service_pb2 as pb

from clients.generation import FLAGS
from serving.catalogue import Catalogue, Entry, Tensor
from serving.ports import LOOPBACK
from shoal import dialect
from shoal.tasks import EMBEDDING, GENERATION

EMBEDDER, DECODER, IDLE = "embedder", "decoder", "idle"
WIDTH = 384  # of a vector
PARTS = 64  # of an answer
_MOST = 20_000  # requests at once


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="of the catalogue")
    parser.add_argument("--grpc-port", type=int, required=True)
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.grpc_port))


async def serve(port: int, grpc_port: int) -> None:
    """Serve on both ports."""
    over = asyncio.Event()

    async def catalogue(_: web.Request) -> web.Response:
        told = Catalogue(models=_models(), ready=True, grpc=grpc_port, http=0)
        return web.json_response(body=msgspec.json.encode(told))

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    async def end(_: web.Request) -> web.Response:
        over.set()
        return web.Response()

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_handlers(over),))
    server.add_insecure_port(f"{LOOPBACK}:{grpc_port}")
    await server.start()
    app = web.Application()
    app.add_routes([web.get("/catalogue", catalogue), web.get("/health", health), web.post("/end", end)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, port).start()
    await server.wait_for_termination()


def _handlers(over: asyncio.Event) -> Any:
    """The two calls, with responses as bytes."""
    vector = _vector()
    first, *others = (_part("length" if number == PARTS else "None") for number in range(1, PARTS + 1))
    last = others[-1]
    final = _streamed(_response(final=True))

    async def infer(request: bytes, _: Any) -> bytes:
        return vector

    async def stream(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield first
            if pb.ModelInferRequest.FromString(request).model_name == IDLE:
                await over.wait()
                yield last
            else:
                for part in others:
                    yield part
            yield final

    handlers = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(infer),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(stream),
    }
    return grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)


def _models() -> list[Entry]:
    names = (dialect.MESSAGES, dialect.STREAM, dialect.SAMPLING, dialect.EXCLUDE_INPUT)
    told = (*FLAGS, f"{dialect.RETURN}{dialect.STOP_REASON}")
    inputs = {name: Tensor("STRING", [1], optional=True) for name in (*names, *told)}
    text = {dialect.TEXT: Tensor("STRING", [1])}
    made = [Entry(name=EMBEDDER, task=EMBEDDING, version=1, max_queue_size=_MOST, inputs=text)]
    for name in (DECODER, IDLE):
        # With a chat template, any one, it takes a conversation.
        made.append(
            Entry(
                name=name,
                task=GENERATION,
                version=1,
                max_queue_size=_MOST,
                inputs=inputs,
                chat_template="{{ }}",
            )
        )
    return made


def _vector() -> bytes:
    response = _response(final=True)
    vector = np.random.default_rng(0).normal(size=(1, WIDTH)).astype(np.float32)
    for name, datatype, array in (
        ("embedding", "FP32", vector),
        (dialect.INPUT_TOKENS, "INT32", np.array([[8]], np.int32)),
    ):
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    return bytes(response.SerializeToString())


def _part(finish_reason: str) -> bytes:
    """A token, as our decoders send it."""
    response = _response(final=False)
    texts = {dialect.TEXT_OUTPUT: " fish", dialect.FINISH_REASON: finish_reason, dialect.STOP_REASON: "null"}
    numbers = {dialect.INPUT_TOKENS: 30, dialect.OUTPUT_TOKENS: 1, dialect.CACHED_TOKENS: 16}
    for name, text in texts.items():
        response.outputs.add(name=name, datatype="BYTES", shape=[1])
        response.raw_output_contents.append(len(text).to_bytes(4, "little") + text.encode())
    for name, number in numbers.items():
        response.outputs.add(name=name, datatype="UINT32", shape=[1])
        response.raw_output_contents.append(number.to_bytes(4, "little"))
    return _streamed(response)


def _response(*, final: bool) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="model", model_version="1", id="0" * 32)
    response.parameters["triton_final_response"].bool_param = final
    return response


def _streamed(response: pb.ModelInferResponse) -> bytes:
    return bytes(pb.ModelStreamInferResponse(infer_response=response).SerializeToString())


if __name__ == "__main__":
    main()
