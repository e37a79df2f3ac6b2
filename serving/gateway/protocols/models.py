"""OpenAI's `/v1/models`, with what is known of each model beside it."""

from __future__ import annotations

from typing import Any

from serving.gateway.errors import unknown_model
from serving.gateway.http import Answer, Call, json_reply
from serving.gateway.models import Model
from serving.gateway.service import Gateway


def described(model: Model) -> dict[str, Any]:
    """A model as OpenAI lists it; `shoal` is ours, and `max_model_len` vLLM's."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "shoal",
        "max_model_len": model.max_model_len or None,
        "name": model.name,  # Open WebUI takes null for a name
        "shoal": {
            "task": model.task,
            "version": model.version,
            "precision": model.precision,
            "fingerprint": model.fingerprint,
            "source": model.source,
            "labels": model.labels,
            "prompts": model.prompts,
            "inputs": model.inputs,
            "outputs": model.outputs,
            "evidence": model.evidence,
        },
    }


async def models(gateway: Gateway, call: Call) -> Answer:
    """List them."""
    return json_reply({"object": "list", "data": [described(model) for model in gateway.allowed(call)]})


async def model(gateway: Gateway, call: Call) -> Answer:
    """Describe one."""
    for found in gateway.allowed(call):
        if found.name == call.path["name"]:
            return json_reply(described(found))
    raise unknown_model(call.path["name"])
