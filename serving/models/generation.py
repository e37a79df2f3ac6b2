"""Text in, text out in as many responses as it takes: Triton's side of `serving.generation`.

Inputs and outputs are those of Triton's vLLM backend, so that a client of one is a client of the other;
what is ours is `num_cached_tokens`, and the request parameter `shoal_probe`. A decoupled model: every
accepted request gets exactly one final response, be it the end of the answer or an error.

Parameters in config.pbtxt, in vLLM's names: `max_num_seqs`, `max_model_len`, `max_queue_size`,
`prefix_cache_tokens`, `end_token_ids`, `begin_token`; for clients to read `chat_template` and
`special_tokens`; `default_sampling`, JSON: sampling parameters of the checkpoint's own; optional:
`max_num_batched_tokens`, `intra_op_thread_count`, and `speculate` (1 or 0: guess ahead while a request runs
alone, or never). The step that checks guesses adds up attention in another order, which changes answers of
quantized graphs; so without `speculate` only versions whose precision is fp32 guess.
"""

from __future__ import annotations

import gc
import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tokenizers import Tokenizer

from serving import heartbeat
from serving.drift.sampler import TrafficSampler
from serving.generation.admission import Admission
from serving.generation.deliveries import described
from serving.generation.engine import Engine, QueueFull
from serving.generation.params import MAX_BYTES, BadRequest, Busy, SamplingParams
from serving.generation.runner import DecoderRunner
from serving.generation.sampling import TokenLogprob
from serving.generation.scheduler import Limits
from serving.generation.sequence import Chunk, Failure, Request
from serving.generation.structure import Compiler, Structures
from serving.generation.text import bad_word_tokens, encode_prompt
from serving.generation.trial import Trial
from serving.models import inputs
from serving.models.backend_utils import pb_utils, version_folder
from serving.models.metrics import Metrics
from serving.models.responses import in_short
from serving.onnxruntime.sessions import check_runtime
from serving.parameters import parameters_of, read
from serving.probe import is_probe
from shoal.dialect import (
    CACHED_TOKENS,
    CUMULATIVE_LOGPROB,
    EXCLUDE_INPUT,
    FINISH_REASON,
    INPUT_TOKENS,
    INVALID_REQUEST,
    LOGPROBS,
    ON_DEMAND,
    OUTPUT_TOKENS,
    RETURN,
    SAMPLING,
    STREAM,
    TEXT_INPUT,
    TEXT_OUTPUT,
)
from shoal.machine import available_cpus
from shoal.manifest import FILENAME, Manifest
from shoal.paths import named

# Of all streams together. A response costs tritonserver, the model's process and a client on the same machine
# about 0.4 ms of CPU time, see docs/performance.md: so a twelfth of the CPUs.
RESPONSES_PER_CPU = 200.0
# No token is longer than this, so that a longer text need not be tokenized to be refused.
BYTES_PER_TOKEN = 128
STOP_SECONDS = 10.0
STOPPING = "the server is stopping"


class GenerationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model's parameters, by their names in `config.pbtxt`; docs/generation.md explains them.

    Attributes:
        chat_template, special_tokens: for clients.
        speculate: whether tokens are guessed ahead; None: where the graph is fp32.
    """

    max_num_seqs: int
    max_model_len: int
    max_queue_size: int
    max_num_batched_tokens: int = Limits.max_num_batched_tokens
    prefix_cache_tokens: int = 0
    end_token_ids: tuple[int, ...] = ()
    begin_token: str = ""
    speculate: bool | None = None
    intra_op_thread_count: int | None = None
    default_sampling: dict[str, Any] = msgspec.field(default_factory=dict)
    chat_template: str = ""
    special_tokens: str = ""

    @property
    def limits(self) -> Limits:
        """How much of everything."""
        return Limits(self.max_num_seqs, self.max_model_len, self.max_queue_size, self.max_num_batched_tokens)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GenerationSettings:
        """From a Triton model config as a dict.

        Raises:
            ValueError: a parameter is missing, unknown or not a number.
        """
        given: dict[str, Any] = dict(parameters_of(config))
        ends = given.get("end_token_ids", "").split(",")
        given["end_token_ids"] = [token.strip() for token in ends if token.strip()]
        given["default_sampling"] = json.loads(given.get("default_sampling", "{}"))
        return read(cls, given)


def is_exact(version: Path) -> bool:
    """Whether a version's manifest says that its graph is fp32."""
    manifest = version / FILENAME
    return manifest.exists() and Manifest.load(manifest).precision == "fp32"


class TritonPythonModel:
    """Triton's interface."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph and the tokenizer of the version, and start the engine's thread."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        settings = GenerationSettings.from_config(json.loads(args["model_config"]))
        folder = version_folder(args)
        check_runtime(folder)
        limits = settings.limits
        runner = DecoderRunner(
            folder / "model.onnx",
            rows=limits.rows,
            max_length=limits.max_model_len,
            threads=settings.intra_op_thread_count,
            gpu=int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None,
        )
        told, fits = runner.describe_memory()
        log = pb_utils.Logger.log_info if fits else pb_utils.Logger.log_warn
        log(f"{args['model_name']}: {told}")
        self._tokenizer = Tokenizer.from_file(named(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._vocabulary = runner.vocabulary
        tokenizer = (folder / "tokenizer.json", runner.vocabulary, settings.end_token_ids)
        structures = Structures(Compiler(*tokenizer), Trial(*tokenizer))
        self._settings = settings
        self._engine = Engine(
            runner,
            limits,
            ends=settings.end_token_ids,
            decode=self._tokenizer.decode,
            prefix_cache_tokens=settings.prefix_cache_tokens,
            speculate=is_exact(folder) if settings.speculate is None else settings.speculate,
            responses_per_second=RESPONSES_PER_CPU * available_cpus(),
        )
        self._sampler = TrafficSampler(args["model_name"], args["model_version"])
        self._metrics = Metrics(self._engine, {"model": args["model_name"], "version": args["model_version"]})
        self._page = heartbeat.start()
        self._stopping = threading.Event()
        self._admission = Admission(structures, self._engine.submit, limits.max_queue_size)
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    def execute(self, requests: list[Any]) -> None:
        """Queue each request; answers come from the engine's thread."""
        for request in requests:
            answer = _Answer(request)
            try:
                read = self._read(request, answer)
                if read.probe or read.params.structured_outputs is None:
                    self._engine.submit(read)
                else:
                    self._admission.add(read, answer.refuse)
            except Exception as error:  # noqa: BLE001 - the requests beside this one must not fail with it
                answer.refuse(error)

    def finalize(self) -> None:
        """Stop after the step that runs; requests that are not done are told so."""
        self._admission.close()
        self._stopping.set()
        self._thread.join(STOP_SECONDS)
        # The stub crashes, and the server waits for it, where Triton's objects outlive this call.
        self._metrics.close()
        del self._metrics, self._engine, self._admission
        gc.collect()

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._engine.wait_for_work(0.1)
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - without this thread every request would hang
                pb_utils.Logger.log_error(f"generation: {traceback.format_exc()}")
                self._engine.fail_all(Failure.INTERNAL, described(error))
                time.sleep(1.0)
            try:
                self._metrics.publish()
            except Exception as error:  # noqa: BLE001 - answers do not depend on it
                pb_utils.Logger.log_error(f"generation: metrics are not published: {described(error)}")
        self._engine.fail_all(Failure.STOPPING, STOPPING)

    def _turn(self) -> None:
        """A step where there is work, seen by who watches; or the end of all work, where they ask for it."""
        if self._page is None:
            if not self._engine.idle:
                self._engine.step()
            return
        if self._page.ending:
            self._admission.end()
            self._engine.fail_all(Failure.STOPPING, STOPPING)
        self._page.working = not self._engine.idle
        if self._page.working:
            self._engine.step()
            self._page.steps = self._engine.stats.steps
            self._page.working = not self._engine.idle

    def _read(self, request: Any, answer: _Answer) -> Request:
        most = self._settings.limits.max_model_len
        why = f"; the context holds {most} tokens"
        text = inputs.text_of(request, TEXT_INPUT, most * BYTES_PER_TOKEN, why)
        if not text:
            raise BadRequest(f"{TEXT_INPUT} is empty")
        parameters = json.loads(request.parameters())
        given = inputs.sampling_of(inputs.text_of(request, SAMPLING, MAX_BYTES), parameters)
        params = SamplingParams.from_json(given, self._settings.default_sampling)
        params.check_tokens(self._vocabulary)
        prompt = encode_prompt(self._tokenizer, text, self._settings.begin_token)
        answer.prepare(text, prompt, params, self._tokenizer)
        probe = is_probe(parameters)
        timeout = (request.timeout() or inputs.microseconds(parameters.get("timeout", 0))) / 1e6
        return Request(
            prompt=prompt,
            params=params,
            stream=answer.stream,
            deliver=answer.deliver,
            is_cancelled=answer.is_cancelled,
            deadline=time.monotonic() + timeout if timeout else None,
            bad=bad_word_tokens(self._tokenizer, params.bad_words),
            scored=partial(self._sampler.send, prompt, None) if self._sampler.wants and not probe else None,
            probe=probe,
        )


class _Answer:
    """The responses to one request.

    Raises:
        Nothing: a response that cannot be sent has nobody to receive it.
    """

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self.is_cancelled = self._sender.is_cancelled
        self._wanted = [name for name in ON_DEMAND if inputs.flag_of(request, f"{RETURN}{name}")]
        self.stream = inputs.flag_of(request, STREAM)
        self._prepends = not self.stream and not inputs.flag_of(request, EXCLUDE_INPUT)
        self._bad_flags = self.stream and inputs.flag_of(request, EXCLUDE_INPUT, default=True) is False
        self._text = ""
        self._prompt_tokens = 0
        self._cumulated = 0.0
        self._tokenizer: Tokenizer | None = None

    def prepare(self, text: str, prompt: Sequence[int], params: SamplingParams, tokenizer: Tokenizer) -> None:
        """What the responses refer to.

        Raises:
            BadRequest: the flags contradict each other or the parameters.
        """
        if self._bad_flags:
            raise BadRequest(f"{EXCLUDE_INPUT} cannot be false in a stream")
        asked = {LOGPROBS, CUMULATIVE_LOGPROB}.intersection(self._wanted)
        if asked and params.logprobs is None:
            raise BadRequest(f"{RETURN}{min(asked)} needs logprobs in {SAMPLING}")
        self._text, self._prompt_tokens, self._tokenizer = text, len(prompt), tokenizer

    def deliver(self, part: Chunk | tuple[Failure, str]) -> None:
        """Send a part; see `serving.generation.sequence.Request.deliver`."""
        if isinstance(part, Chunk):
            final = part.finish_reason is not None
            self._send(pb_utils.InferenceResponse(self._tensors(part)), final)
            return
        failure, message = part
        codes = {
            Failure.DEADLINE: pb_utils.TritonError.UNAVAILABLE,
            Failure.CANCELLED: pb_utils.TritonError.CANCELLED,
            Failure.STOPPING: pb_utils.TritonError.UNAVAILABLE,
            Failure.UNMET: pb_utils.TritonError.INVALID_ARG,
            Failure.INTERNAL: pb_utils.TritonError.INTERNAL,
        }
        prefix = INVALID_REQUEST if failure is Failure.UNMET else f"{failure.value}: "
        self.fail(codes[failure], f"{prefix}{message}")

    def refuse(self, error: Exception) -> None:
        """End a request that was not begun."""
        if isinstance(error, QueueFull | Busy):
            self.fail(pb_utils.TritonError.UNAVAILABLE, str(error))
        elif isinstance(error, ValueError):
            self.fail(pb_utils.TritonError.INVALID_ARG, f"{INVALID_REQUEST}{error}")
        else:
            self.fail(pb_utils.TritonError.INTERNAL, described(error))

    def fail(self, code: Any, message: str) -> None:
        """End with an error."""
        # It may quote half a character.
        text = in_short(message).encode("utf-8", errors="backslashreplace").decode()
        self._send(pb_utils.InferenceResponse(error=pb_utils.TritonError(text, code)), final=True)

    def _send(self, response: Any, final: bool) -> None:
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        try:
            self._sender.send(response, flags=flags)
        except Exception as error:  # noqa: BLE001 - the stream is gone; the engine must go on
            pb_utils.Logger.log_warn(f"a response could not be sent: {error}")

    def _tensors(self, chunk: Chunk) -> list[Any]:
        text = self._text + chunk.text if self._prepends else chunk.text
        chosen = [position[0].logprob for position in chunk.logprobs]
        self._cumulated += sum(chosen)
        values: dict[str, Callable[[], Any]] = {
            FINISH_REASON: lambda: _strings([chunk.finish_reason or ""]),
            CUMULATIVE_LOGPROB: lambda: np.array([self._cumulated], np.float32),
            LOGPROBS: lambda: _strings([json.dumps([self._logprobs(place) for place in chunk.logprobs])]),
            INPUT_TOKENS: lambda: np.array([self._prompt_tokens], np.uint32),
            OUTPUT_TOKENS: lambda: np.array([chunk.tokens], np.uint32),
            CACHED_TOKENS: lambda: np.array([chunk.cached], np.uint32),
        }
        tensors = [pb_utils.Tensor(TEXT_OUTPUT, _strings([text]))]
        return tensors + [pb_utils.Tensor(name, values[name]()) for name in self._wanted]

    def _logprobs(self, position: Sequence[TokenLogprob]) -> dict[str, Any]:
        """One position as the vLLM backend writes it: token id -> logprob, rank and text."""
        assert self._tokenizer is not None  # noqa: S101 - prepared
        decode = self._tokenizer.decode
        return {
            str(entry.token): {
                "logprob": entry.logprob,
                "rank": entry.rank,
                "decoded_token": decode([entry.token], skip_special_tokens=False),
            }
            for entry in position
        }


def _strings(values: Sequence[str]) -> Any:
    return np.array([value.encode() for value in values], dtype=object)
