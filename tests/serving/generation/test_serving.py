"""Text generation on the real server: answers, streams, structures, bad input, commands."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from clients import (
    AsyncGrpcClient,
    BadInput,
    ClientError,
    GrpcClient,
    HttpClient,
    UnknownModel,
)
from loadtest import headless
from serving.embedded import Server
from serving.models.generation import is_exact
from shoal.manifest import manifests
from tests.conftest import ROOT

Client = GrpcClient | HttpClient
PROMPT = "Fish swim in shoals because"
CAPITAL = "What is the capital of France?"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


def _templated(*turns: str) -> str:
    """Turns of a user and the model as the checkpoint's chat template writes them, written by hand.

    What a quantized model answers depends on the processor, so answers are compared with those to this text.
    """
    roles = ["system", *("user", "assistant") * len(turns)]
    said = [
        f"<|im_start|>{role}\n{turn}<|im_end|>\n" for role, turn in zip(roles, (SYSTEM, *turns), strict=False)
    ]
    return "".join(said) + "<|im_start|>assistant\n"


def test_a_stream_is_the_whole_answer_in_parts(decoder_client: Client) -> None:
    parts = list(decoder_client.generate(PROMPT, max_tokens=24, temperature=0))
    whole = decoder_client.complete(PROMPT, max_tokens=24, temperature=0)
    assert len(parts) > 1
    assert "".join(part.text for part in parts) == whole.text
    assert sum(part.tokens for part in parts) == whole.output_tokens == 24
    assert whole.finish_reason == "length" and whole.input_tokens > 3
    assert [part.finish_reason for part in parts[:-1]] == [""] * (len(parts) - 1)


def test_a_chat_uses_the_models_own_template_and_pays_for_new_tokens_only(decoder_client: Client) -> None:
    question = f"{CAPITAL} {type(decoder_client)}"
    messages = [{"role": "user", "content": question}]
    first = list(decoder_client.chat(messages, max_tokens=40, temperature=0))
    text = "".join(part.text for part in first)
    expected = decoder_client.complete(_templated(question), max_tokens=40, temperature=0)
    assert text == expected.text and first[-1].finish_reason == expected.finish_reason
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "And of Italy?"}]
    second = list(decoder_client.chat(messages, max_tokens=40, temperature=0))
    expected = decoder_client.complete(
        _templated(question, text, "And of Italy?"), max_tokens=40, temperature=0
    )
    assert "".join(part.text for part in second) == expected.text
    assert second[-1].cached_tokens >= first[-1].input_tokens // 16 * 16 > 0


def test_the_asyncio_client_chats_as_the_blocking_one(decoder_server: Server) -> None:
    messages = [{"role": "user", "content": CAPITAL}]
    options: dict[str, Any] = {"max_tokens": 40, "temperature": 0}

    async def chat() -> list[str]:
        async with AsyncGrpcClient(decoder_server.grpc, timeout=300) as client:
            return [part.text async for part in client.chat(messages, **options)]

    with GrpcClient(decoder_server.grpc, timeout=300) as client:
        expected = "".join(part.text for part in client.chat(messages, **options))
    parts = asyncio.run(chat())
    assert len(parts) > 1 and "".join(parts) == expected != ""


def test_a_closed_iterator_ends_its_stream_and_the_next_is_answered(decoder_server: Server) -> None:
    async def leave() -> str:
        async with AsyncGrpcClient(decoder_server.grpc, timeout=300) as client:
            parts = client.generate(PROMPT, max_tokens=1500, temperature=0, ignore_eos=True)
            first = await anext(parts)
            await parts.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(parts)
            return first.text + (await client.complete(PROMPT, max_tokens=4, temperature=0)).text

    assert asyncio.run(leave())


def test_the_same_seed_gives_the_same_answer(decoder_client: Client) -> None:
    options: dict[str, Any] = {"max_tokens": 16, "temperature": 1.2, "top_p": 0.9}
    answers = [decoder_client.complete(PROMPT, seed=seed, **options).text for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_stop_strings_end_the_answer_and_are_not_part_of_it(decoder_client: Client) -> None:
    free = decoder_client.complete(PROMPT, max_tokens=32, temperature=0).text
    stop = free[10:14]
    answer = decoder_client.complete(PROMPT, max_tokens=32, temperature=0, stop=[stop])
    assert answer.text == free[: free.index(stop)] and answer.finish_reason == "stop"


def test_logprobs_tell_the_chosen_token_first(decoder_client: Client) -> None:
    answer = decoder_client.complete(PROMPT, max_tokens=4, temperature=0, logprobs=3)
    assert len(answer.logprobs) == 4
    for position in answer.logprobs:
        entries = list(position.values())
        assert entries[0]["rank"] == 1 and len(entries) == 3
        assert [e["logprob"] for e in entries] == sorted((e["logprob"] for e in entries), reverse=True)
    assert "".join(next(iter(p.values()))["decoded_token"] for p in answer.logprobs) == answer.text


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "size": {"enum": ["small", "large"]},
        "fins": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"length": {"type": "integer", "minimum": 1, "maximum": 99}},
                "required": ["length"],
                "additionalProperties": False,
            },
            "minItems": 2,
            "maxItems": 2,
        },
    },
    "required": ["name", "size", "fins"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_structured_output_is_valid_whatever_the_model_would_say(
    decoder_client: Client, temperature: float
) -> None:
    answer = decoder_client.complete(
        "Describe a fish as JSON:",
        max_tokens=120,
        temperature=temperature,
        seed=3,
        structured_outputs={"json": SCHEMA},
    )
    assert answer.finish_reason == "stop"
    fish = json.loads(answer.text)
    assert set(fish) == {"name", "size", "fins"} and fish["size"] in ("small", "large")
    assert len(fish["fins"]) == 2 and all(1 <= fin["length"] <= 99 for fin in fish["fins"])


@pytest.mark.parametrize(
    ("structure", "allowed"),
    [
        ({"choice": ["salmon", "trout"]}, ["salmon", "trout"]),
        ({"regex": "(red|blue) [0-9]{2}"}, [f"{c} {n:02}" for c in ("red", "blue") for n in range(100)]),
        ({"grammar": 'start: "yes" | "no" " "? "way"'}, ["yes", "noway", "no way"]),
    ],
)
def test_other_structures(decoder_client: Client, structure: dict[str, Any], allowed: list[str]) -> None:
    answer = decoder_client.complete(PROMPT, max_tokens=20, temperature=1, structured_outputs=structure)
    assert answer.text in allowed


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"prompt": ""}, BadInput, "the prompt is empty"),
        ({"prompt": 5}, BadInput, "the prompt is int"),
        ({"prompt": "a b " * 4000}, BadInput, r"has \d+ tokens.*from 1 to 2047.*share 2048"),
        ({"prompt": "x" * 300_000}, BadInput, r"300000 bytes.*2048 tokens"),
        ({"temperture": 0}, BadInput, "unknown in sampling_parameters: temperture; known: .*temperature"),
        ({"temperature": -1}, BadInput, "temperature is -1, it must be from 0 to 100"),
        ({"top_p": "much"}, BadInput, "top_p is 'much', not a number"),
        ({"max_tokens": 0}, BadInput, "max_tokens is 0"),
        ({"seed": float("nan")}, BadInput, "cannot be written as JSON"),
        ({"structured_outputs": {"json": {"type": "fish"}}}, BadInput, "structured_outputs: json"),
        ({"structured_outputs": {"regex": "[0-9"}}, BadInput, "structured_outputs: regex"),
        (
            {"structured_outputs": {"json": {"type": "integer", "minimum": 5, "maximum": 3}}},
            BadInput,
            "structured_outputs: json: .*(greater|satisf)",
        ),
        ({"model": "no-such"}, UnknownModel, "no-such"),
        ({"timeout": 0}, BadInput, "timeout is 0"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    decoder_client: Client, options: dict[str, Any], kind: type[ClientError], said: str
) -> None:
    options = {"prompt": PROMPT} | options
    with pytest.raises(kind, match=said):
        decoder_client.complete(**options)
    assert decoder_client.complete(PROMPT, max_tokens=1).output_tokens == 1


def test_parameters_of_vllm_mean_what_they_mean_there(decoder_client: Client) -> None:
    greedy: dict[str, Any] = {"prompt": PROMPT, "temperature": 0}
    plain = decoder_client.complete(max_tokens=4, logprobs=1, **greedy)
    best, second = (
        int(token) for token in decoder_client.complete(max_tokens=1, logprobs=2, **greedy).logprobs[0]
    )
    first = plain.logprobs[0][str(best)]["decoded_token"]

    def chosen(**params: Any) -> int:
        return int(
            next(iter(decoder_client.complete(max_tokens=1, logprobs=0, **greedy | params).logprobs[0]))
        )

    assert chosen(logit_bias={best: -100}) == chosen(bad_words=[first]) == second
    assert chosen(allowed_token_ids=[second, 0]) == second
    assert chosen(logit_bias={second: 100.0}) == second
    stopped = decoder_client.complete(max_tokens=None, stop=first, include_stop_str_in_output=True, **greedy)
    assert stopped.text == first and stopped.finish_reason == "stop"
    texts = [decoder_client.complete(PROMPT, max_tokens=12, temperature=1.5, seed=-1).text for _ in range(3)]
    assert len(set(texts)) == 3


LONG_CHAINS = [
    {"json": {"$defs": {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(6000)}, "$ref": "#/$defs/a0"}},
    {"grammar": "\n".join(["start: r0", *(f"r{i}: r{i + 1}" for i in range(12_000)), 'r12000: "a"'])},
]
LONG_CHAINS[0]["json"]["$defs"]["a6000"] = {"type": "null"}  # type: ignore[index]


@pytest.mark.parametrize("structure", LONG_CHAINS)
def test_a_definition_that_overflows_the_stack_does_no_harm(
    decoder_client: Client, structure: dict[str, Any]
) -> None:
    with pytest.raises(BadInput, match="too much memory, or it is nested too deep"):
        decoder_client.complete(PROMPT, structured_outputs=structure)
    assert decoder_client.complete(PROMPT, max_tokens=1).output_tokens == 1


def test_a_definition_that_takes_long_holds_up_nobody_else(decoder_server: Server) -> None:
    slow = {"patternProperties": {f"^(a|b)*{i}x": {"type": "null"} for i in range(600)}}
    ended: list[str] = []

    def ask() -> None:
        with GrpcClient(decoder_server.grpc, timeout=300) as client:
            with pytest.raises(BadInput, match="to compile it takes more than 2 seconds"):
                client.complete(PROMPT, structured_outputs={"json": slow})
            ended.append("slow")

    thread = threading.Thread(target=ask)
    with GrpcClient(decoder_server.grpc, timeout=300) as client:
        client.complete(PROMPT, max_tokens=1)
        thread.start()
        client.complete(PROMPT, max_tokens=1)
        ended.append("plain")
    thread.join()
    assert ended == ["plain", "slow"]


def test_parameters_that_are_not_json(decoder_server: Server) -> None:
    for text, said in (("{", "is not JSON"), ("[1]", "is a list"), ("[" * 100_000, "is nested too deep")):
        with triton.InferenceServerClient(decoder_server.grpc) as client:
            answers: Queue[Any] = Queue()
            client.start_stream(lambda result, error, answers=answers: answers.put((result, error)))
            client.async_stream_infer(
                "smollm2",
                [_bytes("text_input", PROMPT.encode()), _bytes("sampling_parameters", text.encode())],
            )
            _, error = answers.get(timeout=300)
            assert said in str(error)


def test_bytes_that_are_not_utf8(decoder_server: Server) -> None:
    with triton.InferenceServerClient(decoder_server.grpc) as client:
        answers: Queue[Any] = Queue()
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("smollm2", [_bytes("text_input", b"fish \xff")])
        assert "text_input is not UTF-8: byte 5 is 0xff" in str(answers.get(timeout=300)[1])


def _bytes(name: str, value: bytes) -> triton.InferInput:
    tensor = triton.InferInput(name, [1], "BYTES")
    tensor.set_data_from_numpy(np.array([value], dtype=object))
    return tensor


def test_plain_tritonclient_and_curl_stream(decoder_server: Server) -> None:
    """What a user writes who has never heard of Shoal."""
    expected = GrpcClient(decoder_server.grpc).complete(PROMPT, max_tokens=12, temperature=0).text
    parameters = json.dumps({"max_tokens": 12, "temperature": "0"})
    stream = triton.InferInput("stream", [1], "BOOL")
    stream.set_data_from_numpy(np.array([True]))
    answers: Queue[Any] = Queue()
    with triton.InferenceServerClient(decoder_server.grpc) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        inputs = [
            _bytes("text_input", PROMPT.encode()),
            stream,
            _bytes("sampling_parameters", parameters.encode()),
        ]
        client.async_stream_infer("smollm2", inputs, enable_empty_final_response=True)
        text = b""
        while True:
            result = answers.get(timeout=300)
            text += result.as_numpy("text_output")[0]
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
    assert text.decode() == expected
    body = json.dumps({"text_input": PROMPT, "stream": True, "sampling_parameters": parameters})
    url = f"http://{decoder_server.http}/v2/models/smollm2/generate_stream"
    curl = subprocess.run(
        ["curl", "-sN", "--max-time", "60", url, "-d", body], capture_output=True, text=True, check=True
    )
    events = [json.loads(line.removeprefix("data: ")) for line in curl.stdout.splitlines() if line]
    assert "".join(event["text_output"] for event in events) == expected
    whole = subprocess.run(
        [
            "curl",
            "-s",
            url.removesuffix("_stream"),
            "-d",
            json.dumps({"text_input": PROMPT, "sampling_parameters": parameters}),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(whole.stdout)["text_output"] == PROMPT + expected  # as the vLLM backend does


def test_a_request_may_have_its_sampling_parameters_as_its_own(decoder_server: Server) -> None:
    """As the manual of the vLLM backend writes it; with `sampling_parameters` the others do not count."""
    expected = GrpcClient(decoder_server.grpc).complete(PROMPT, max_tokens=6, temperature=0).text
    url = f"http://{decoder_server.http}/v2/models/smollm2/generate"

    def said(**body: Any) -> dict[str, Any]:
        asked = json.dumps({"text_input": PROMPT, "exclude_input_in_output": True} | body)
        command = ["curl", "-s", "--max-time", "60", url, "-d", asked]
        return dict(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))

    asked = {"max_tokens": 6, "temperature": 0}
    assert said(parameters={"stream": False, **asked})["text_output"] == expected
    assert said(**asked)["text_output"] == expected
    assert (
        said(sampling_parameters=json.dumps(asked), parameters={"max_tokens": 2})["text_output"] == expected
    )
    named = said(id="mine", sequence_id=7, sequence_start=True, sequence_end=True, **asked)
    assert (named["id"], named["text_output"]) == ("mine", expected)
    assert "unknown in sampling_parameters: nonsense" in said(parameters={"nonsense": 4})["error"]
    assert "max_tokens is" in said(parameters={"max_tokens": -1})["error"]


def test_the_readmes_python_runs(decoder_server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "usage.md").read_text(), re.MULTILINE | re.DOTALL
    )[0]
    exec(compile(code.replace("127.0.0.1:8001", decoder_server.grpc), "usage.md", "exec"), {})  # noqa: S102
    said = capsys.readouterr().out
    with GrpcClient(decoder_server.grpc, timeout=300) as client:
        answer = client.complete(_templated(CAPITAL), max_tokens=40, temperature=0)
    assert said.startswith(answer.text) and said.endswith(" length 12\n")


def test_the_commands_stream_and_chat(decoder_server: Server) -> None:
    shoal = [sys.executable, "-m", "shoal"]
    common = ["--url", decoder_server.grpc, "--set", "max_tokens=30"]
    said = subprocess.run(
        [*shoal, "infer", "smollm2", CAPITAL, *common],
        capture_output=True,
        text=True,
        check=True,
    )
    with GrpcClient(decoder_server.grpc, timeout=300) as client:
        first = client.complete(_templated(CAPITAL), max_tokens=30, temperature=0).text
        asked = _templated(CAPITAL, first, "And of Italy?")
        second = client.complete(asked, max_tokens=30, temperature=0).text
    assert said.stdout.strip() == first.strip() != "" and "tokens" in said.stderr
    said = subprocess.run(
        [*shoal, "chat", "smollm2", *common],
        input=f"{CAPITAL}\nAnd of Italy?\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert first.strip() in said.stdout and second.strip() in said.stdout


def test_people_who_chat_are_a_load_test(decoder_server: Server, tmp_path: Path) -> None:
    plan = headless.Plan("smollm2", 4, 6, "both", decoder_server.grpc, decoder_server.http, generates=True)
    summary = headless.run(plan, tmp_path)
    assert summary["total"]["failures"] == 0 and summary["total"]["requests"] >= 4
    assert summary["streams"]["tokens"] > 40
    assert set(summary["streams"]["parts"]) == {"first token", "between tokens"}
    assert (tmp_path / "report.html").read_text().count("<svg") == 7


def test_only_what_guesses_leave_unchanged_is_guessed_for(decoder_repository: Path) -> None:
    exact = {
        manifest.precision: is_exact(decoder_repository / manifest.network / str(manifest.version))
        for manifest in manifests(decoder_repository, "smollm2")
    }
    assert exact == {"fp32": True, "int8": False, "int4": False}
