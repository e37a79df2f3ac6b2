"""Text in, text out in as many responses as it takes: Triton's side of `serving.generation`.

Inputs and outputs are those of Triton's vLLM backend, so that a client of one is a client of the other;
what is ours is named in `shoal.dialect`, and the request parameter `shoal_probe`. A decoupled model: every
accepted request gets exactly one final response, be it the end of the answer or an error.

Parameters in config.pbtxt, in vLLM's names: `max_num_seqs`, `max_model_len`, `max_queue_size`,
`prefix_cache_tokens`, `end_token_ids`, `begin_token`, `chat_template`, `special_tokens`; `default_sampling`,
JSON: sampling parameters of the checkpoint's own; optional: `max_num_batched_tokens`,
`intra_op_thread_count`, and `speculate` (1 or 0: guess ahead while a request runs alone, or never). The step
that checks guesses adds up attention in another order, which changes answers of quantized graphs; so without
`speculate` only versions whose precision is fp32 guess.
"""

from __future__ import annotations

import gc
import json
import os
import threading
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
from tokenizers import Tokenizer

from serving import heartbeat
from serving.drift.sampler import TrafficSampler
from serving.generation.admission import Admission
from serving.generation.conversation import Conversation, Renderer
from serving.generation.deliveries import described
from serving.generation.engine import Engine
from serving.generation.params import MAX_BYTES, BadRequest, SamplingParams
from serving.generation.runtime import OPENVINO, difference, graph_in, open_runner, runtime_of
from serving.generation.scheduler import LEAST_BATCHED_TOKENS, Limits
from serving.generation.sequence import Failure, Request
from serving.generation.structure import Compiler, Structures
from serving.generation.text import bad_word_tokens, encode_prompt
from serving.generation.trial import Trial
from serving.models import inputs
from serving.models.backend_utils import pb_utils, version_folder
from serving.models.generated import Answer
from serving.models.metrics import Metrics
from serving.onnxruntime.sessions import check_runtime
from serving.parameters import parameters_of, read
from serving.probe import is_probe
from shoal.chat import ChatTemplate
from shoal.dialect import (
    MESSAGES,
    PROMPT_TOKENS,
    SAMPLING,
    TEXT_INPUT,
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
        chat_template, special_tokens: see `shoal.chat.ChatTemplate`.
        speculate: whether tokens are guessed ahead; None: where the graph is fp32.
    """

    max_num_seqs: int
    max_model_len: int
    max_queue_size: int
    max_num_batched_tokens: Annotated[int, msgspec.Meta(ge=LEAST_BATCHED_TOKENS)] = (
        Limits.max_num_batched_tokens
    )
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


def renderer_of(config: dict[str, Any], tokenizer: Tokenizer) -> Renderer | None:
    """What reads conversations, of a model's config as a dict; None: the model has no chat template."""
    if not parameters_of(config).get("chat_template"):
        return None
    return Renderer(tokenizer, ChatTemplate.of(config))


class TritonPythonModel:
    """Triton's interface."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph and the tokenizer of the version, and start the engine's thread."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        settings = GenerationSettings.from_config(json.loads(args["model_config"]))
        folder = version_folder(args)
        graph = graph_in(folder)
        check_runtime(folder, runtime_of(graph))
        limits = settings.limits
        runner = open_runner(
            graph,
            rows=limits.rows,
            max_length=limits.max_model_len,
            threads=settings.intra_op_thread_count,
            gpu=int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else None,
        )
        told, fits = runner.memory.describe()
        log = pb_utils.Logger.log_info if fits else pb_utils.Logger.log_warn
        log(f"{args['model_name']}: {told}")
        if runtime_of(graph) == OPENVINO and difference(runner):
            pb_utils.Logger.log_warn(
                f"{args['model_name']}: on this CPU answers by OpenVINO depend on what runs beside them;"
                " if it is exported again here, ONNX Runtime runs it"
            )
        self._tokenizer = Tokenizer.from_file(named(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._vocabulary = runner.vocabulary
        tokenizer = (folder / "tokenizer.json", runner.vocabulary, settings.end_token_ids)
        self._compiler = Compiler(*tokenizer)
        structures = Structures(self._compiler, Trial(*tokenizer))
        self._renderer = renderer_of(json.loads(args["model_config"]), self._tokenizer)
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
            answer = Answer(request)
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
        del self._metrics, self._engine, self._admission, self._compiler
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

    def _read(self, request: Any, answer: Answer) -> Request:
        text, prompt = self._prompt(request)
        parameters = json.loads(request.parameters())
        given = inputs.sampling_of(inputs.text_of(request, SAMPLING, MAX_BYTES), parameters)
        params = SamplingParams.from_json(given, self._settings.default_sampling)
        params.check_tokens(self._vocabulary)
        answer.prepare(text, prompt, params, self._token)
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

    def _prompt(self, request: Any) -> tuple[str | None, list[int]]:
        """Text and token ids of the prompt; there is no text where a conversation or token ids are given."""
        most = self._settings.limits.max_model_len
        characters, why = most * BYTES_PER_TOKEN, f"; the context holds {most} tokens"
        text = inputs.text_of(request, TEXT_INPUT, characters, why)
        messages = inputs.text_of(request, MESSAGES, characters, why)
        ids = inputs.ids_of(request, PROMPT_TOKENS)
        given = [name for name, value in ((TEXT_INPUT, text), (MESSAGES, messages)) if value]
        given += [PROMPT_TOKENS] if ids is not None else []
        if not given:
            raise BadRequest(f"{TEXT_INPUT} is empty")
        if len(given) > 1:
            raise BadRequest(f"{' and '.join(given)} are given, a request has one of them")
        if ids is not None:
            if wrong := [token for token in ids if not 0 <= token < self._vocabulary]:
                raise BadRequest(
                    f"{PROMPT_TOKENS} holds {wrong[0]}, the model has tokens 0 to {self._vocabulary - 1}"
                )
            return None, ids
        if text:
            return text, encode_prompt(self._tokenizer, text, self._settings.begin_token)
        if self._renderer is None:
            raise BadRequest("this model has no chat template: send text_input")
        return None, self._renderer.encode(Conversation.from_json(messages), characters)

    def _token(self, token: int) -> tuple[str, bytes]:
        """A token's own text, and the bytes that it stands for, which may be a part of a character."""
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        return text, self._compiler.bytes_of(token) or text.encode()
