"""The OpenAPI document tells the truth: real answers against it, and requests at random made from it."""

from __future__ import annotations

import copy
import json
import os
import re
import urllib.request
from typing import Any

import hypothesis
import pytest
import schemathesis
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from serving.gateway import descriptions
from serving.gateway.endpoints import ENDPOINTS
from serving.gateway.openapi import document
from serving.gateway.page import FILES
from tests.serving.gateway.documented import api, check
from tests.serving.gateway.running import Running

CHAT = [{"role": "user", "content": "Name a fish."}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
# Without these an answer goes on to the end of the context.
_LIMITS = {
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
}
# Requests made at random for each path.
EXAMPLES = int(os.environ.get("SHOAL_API_EXAMPLES", "6"))


def test_every_path_is_documented_but_files_and_the_one_that_refuses(running: Running) -> None:
    undocumented = {endpoint.path for endpoint in ENDPOINTS if endpoint.operation is None}
    assert undocumented == {*FILES, "/v1/tasks/{task}"}
    status, told, _ = running.get("/openapi.json")
    assert status == 200 and told["openapi"] == "3.1.0"
    for name, schema in told["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema)
        assert schema.get("description"), f"{name} has no description"
    ids = [each["operationId"] for methods in told["paths"].values() for each in methods.values()]
    assert len(ids) == len(set(ids))
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"].endswith("."), path
            assert ("requestBody" in operation) == (method == "post"), path
            assert ("401" in operation["responses"]) == (operation.get("security") != []), path


def test_every_field_of_a_request_is_explained() -> None:
    told = document(ENDPOINTS, "0")
    schemas = told["components"]["schemas"]
    pending = [
        held["requestBody"]
        for path in told["paths"].values()
        for held in path.values()
        if "requestBody" in held
    ]
    seen: set[str] = set()
    fields: set[str] = set()
    while pending:
        names = re.findall(r"#/components/schemas/(\w+)", json.dumps(pending.pop()))
        for name in set(names) - seen:
            seen.add(name)
            pending.append(schemas[name])
            for field, held in schemas[name].get("properties", {}).items():
                assert held.get("description", "").endswith("."), f"{name}.{field} is not explained"
                fields.add(field)
    explained = {*descriptions._FIELDS, *(field for _, field in descriptions._OWN)}
    assert explained == fields, "an explanation is of no field"
    assert "logprobs" in schemas["ChatChoice"]["properties"]  # of an answer, which means another thing
    assert "description" not in schemas["ChatChoice"]["properties"]["logprobs"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "smollm2", "messages": CHAT, "max_tokens": 5, "n": 2, "seed": 1}),
        (
            "/v1/chat/completions",
            {"model": "smollm2", "messages": CHAT, "max_tokens": 3, "logprobs": True, "top_logprobs": 2},
        ),
        (
            "/v1/chat/completions",
            {"model": "smollm2", "messages": CHAT, "tools": [TOOL], "tool_choice": "required"},
        ),
        ("/v1/completions", {"model": "smollm2", "prompt": "Fish", "max_tokens": 3}),
        (
            "/v1/completions",
            {"model": "smollm2", "prompt": ["A b"], "max_tokens": 0, "echo": True, "logprobs": 2},
        ),
        ("/v1/responses", {"model": "smollm2", "input": "Name a fish.", "max_output_tokens": 4}),
        ("/v1/embeddings", {"model": "minilm", "input": ["a", "b"]}),
        ("/v1/embeddings", {"model": "minilm", "input": "a", "encoding_format": "base64"}),
        ("/embed", {"inputs": ["a", "b"]}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["a", "b"]}}),
        ("/tokenize", {"model": "smollm2", "prompt": "Fish swim.", "return_token_strs": True}),
        ("/tokenize", {"model": "minilm", "inputs": ["Fish swim."]}),
        ("/detokenize", {"model": "smollm2", "tokens": [1, 2, 3]}),
        ("/decode", {"model": "minilm", "ids": [[2003, 102]]}),
    ],
)
def test_answers_are_as_documented(running: Running, path: str, body: dict[str, Any]) -> None:
    status, told, _ = running.post(path, body)
    assert status == 200, told
    check(path, told)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 4, "logprobs": True}),
        ("/v1/chat/completions", {"messages": CHAT, "tools": [TOOL], "tool_choice": "required"}),
        ("/v1/completions", {"prompt": "Fish", "max_tokens": 4, "logprobs": 1}),
        ("/v1/responses", {"input": "Fish", "max_output_tokens": 4}),
    ],
)
def test_events_are_as_documented(running: Running, path: str, asked: dict[str, Any]) -> None:
    options = {} if path.endswith("responses") else {"stream_options": {"include_usage": True}}
    body = json.dumps({"model": "smollm2", "stream": True, **options, **asked}).encode()
    with urllib.request.urlopen(
        urllib.request.Request(running.url + path, data=body), timeout=300
    ) as response:
        lines = response.read().decode().splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert len(events) >= 2
    for event in events:
        check(path, event, media_type="text/event-stream")


def test_what_takes_no_body_is_as_documented(running: Running) -> None:
    for path in ("/health", "/v1/models"):
        check(path, running.get(path)[1])
    check("/v1/models/{name}", running.get("/v1/models/smollm2")[1])
    check("/v1/models/{name}", running.get("/v1/models/nothing")[1], 404)


def test_errors_are_as_documented(running: Running) -> None:
    for path, methods in api()["paths"].items():
        if "post" in methods:
            status, told, _ = running.post(path, {"model": 1})
            assert status == 400
            check(path, told, 400)


@pytest.fixture(scope="module")
def bounded(running: Running) -> Any:
    """The document with the names of the models that are served; events are checked above."""
    made = copy.deepcopy(running.get("/openapi.json")[1])
    for methods in made["paths"].values():
        for operation in methods.values():
            operation["responses"]["200"]["content"].pop("text/event-stream", None)
    for name, schema in made["components"]["schemas"].items():
        if name.endswith(("Request", "Body")) and "model" in schema["properties"]:
            schema["properties"]["model"] = {"enum": ["smollm2", "minilm", "nothing"]}
    return schemathesis.openapi.from_dict(made)


_api = schemathesis.pytest.from_fixture("bounded")


@_api.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True
)
def test_no_request_fails_the_gateway(case: Any, running: Running) -> None:
    if isinstance(case.body, dict):
        for limit in _LIMITS.get(case.path, ()):
            if case.body.get(limit) is None or (isinstance(case.body[limit], int) and case.body[limit] > 4):
                case.body[limit] = 4
    response = case.call(base_url=running.url, timeout=300)
    case.validate_response(
        response, checks=[not_a_server_error, response_schema_conformance, status_code_conformance]
    )
