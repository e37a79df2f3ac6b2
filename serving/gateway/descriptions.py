"""What each field of a request means, for the OpenAPI document and the page `/docs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# By name. A field means the same in every body, but for those of `_OWN`.
_FIELDS = {
    "add_generation_prompt": "Whether the chat template opens the assistant's answer. Default: true.",
    "add_special_tokens": "Whether the tokenizer adds the model's special tokens. Default: true.",
    "allowed_token_ids": "Only these tokens may come.",
    "bad_words": "Texts that must not come.",
    "best_of": "As `n`; another number is refused.",
    "candidate_labels": "The labels to choose from.",
    "chat_template_kwargs": "Further variables for the chat template.",
    "context": "The text that holds the answer.",
    "continue_final_message": "Whether the last message, of the assistant, is continued.",
    "dimensions": "Components of each vector that are kept, where the model allows fewer.",
    "documents": "Texts to rank, or objects with a `text`.",
    "echo": "Whether the answer begins with the prompt.",
    "effort": "How long a model that reasons may do so, as its chat template knows it.",
    "encoding_format": "`float`: lists of numbers. `base64`: the bytes of float32 in little endian.",
    "format": "The form of the answer: text, or JSON by a schema.",
    "frequency_penalty": "From -2 to 2: lowers a token by how often it has come. Default: 0.",
    "ids": "Token ids.",
    "ignore_eos": "Whether the answer goes on beyond the model's end of text.",
    "image": "The picture in base64: PNG, JPEG or another form that the model's task names.",
    "include": "What is added to the answer: `message.output_text.logprobs`.",
    "include_stop_str_in_output": "Whether the answer ends with the stop text that was found.",
    "include_usage": "Whether the last event tells how many tokens were used.",
    "input": "A text, or several.",
    "inputs": "A text, or several.",
    "instructions": "What the model is told before the input, as its system message.",
    "logit_bias": "By token id, from -100 to 100: is added to the token's logit.",
    "max_completion_tokens": "Tokens of the answer at most.",
    "max_new_tokens": "Tokens of the answer at most.",
    "max_output_tokens": "Tokens of the answer at most.",
    "max_tokens": "Tokens of the answer at most; prompt and answer share the model's context.",
    "messages": "The conversation: objects with `role` and `content`.",
    "metadata": "Is given back, and not used.",
    "min_p": "From 0 to 1: a token needs this share of the likeliest one's probability.",
    "min_tokens": "Tokens of the answer at least.",
    "model": "The name of a model, as `/v1/models` lists it.",
    "n": "How many answers.",
    "parallel_tool_calls": "Whether the model may call several tools in one answer. Default: true.",
    "parameters": "How the texts are read.",
    "presence_penalty": "From -2 to 2: lowers tokens that have come. Default: 0.",
    "prompt": "A text, or several; or token ids.",
    "prompt_name": "One of the model's own prompts, which is put before each text.",
    "query": "What the texts are ranked by.",
    "question": "What is asked about the context.",
    "reasoning": "How the model reasons, where it does.",
    "reasoning_effort": "How long a model that reasons may do so, as its chat template knows it.",
    "repetition_penalty": "Above 1: lowers tokens of the prompt and the answer. Default: 1.",
    "response_format": "`text`, `json_object`, or `json_schema` with a schema that the answer will match.",
    "return_documents": "Whether each text is given back beside its score.",
    "return_text": "Whether each text is given back beside its score.",
    "return_token_strs": "Whether the text of each token is given back.",
    "rows": "Rows of the table: objects by column, or lists of numbers in the model's order.",
    "seed": "The same seed and request give the same answer.",
    "sentences": "The texts to compare with `source_sentence`.",
    "skip_special_tokens": "Whether special tokens are left out of the text. Default: true.",
    "source_sentence": "The text that the others are compared with.",
    "stop": "A text, or several, before which the answer ends.",
    "stop_token_ids": "Tokens that end the answer.",
    "stream": "Whether the answer comes in events as it is made.",
    "stream_options": "What a stream holds beside the answer.",
    "structured_outputs": "vLLM's: `json`, `regex`, `choice` or `grammar` that the answer will match.",
    "suffix": "Text behind the answer; it is refused, since no served model fills gaps.",
    "temperature": "0: the likeliest token each time. Default: what the checkpoint says, else 1.",
    "text": "The form of the answer, as `format`.",
    "texts": "The texts to rank.",
    "tokens": "Token ids.",
    "tool_choice": "`auto`, `none`, `required`, or the tool that must be called.",
    "tools": "Functions that the model may call, each with a JSON schema of its arguments.",
    "top_k": "Only so many of the likeliest tokens may come. Default: all.",
    "top_logprobs": "So many of the likeliest tokens are given with each, with their log probabilities.",
    "top_n": "How many of the best are given back. Default: all.",
    "top_p": "From 0 to 1: only the likeliest tokens with this sum of probabilities may come. Default: 1.",
    "user": "Is given back, and not used.",
}
_OWN = {
    ("ChatRequest", "logprobs"): "Whether the log probability of each token is given.",
    ("CompletionRequest", "logprobs"): "So many of the likeliest tokens are given with each token.",
    ("ResponsesRequest", "input"): "A text, or the items of a conversation.",
    ("ResponsesRequest", "prompt"): "A stored prompt; it is refused, since nothing is stored.",
    ("EmbeddingRequest", "input"): "A text, or several; or token ids.",
    ("SimilarityRequest", "inputs"): "A text, and those that it is compared with.",
    ("TokenizeRequest", "prompt"): "The text.",
}


_REFERENCE = "$ref"


def describe(schemas: Mapping[str, Any], bodies: Any) -> None:
    """Add descriptions to the fields of all types that bodies are made of.

    Args:
        schemas: by the name of their type; changed.
        bodies: any JSON that refers to them.
    """
    known: set[str] = set()
    pending = list(_referred(bodies))
    while pending:
        name = pending.pop()
        if name in known:
            continue
        known.add(name)
        pending += _referred(schemas[name])
        for field, held in schemas[name].get("properties", {}).items():
            if told := _OWN.get((name, field)) or _FIELDS.get(field):
                held.setdefault("description", told)


def _referred(value: Any) -> Iterator[str]:
    """Names of the types that a piece of the document refers to."""
    if isinstance(value, dict):
        if _REFERENCE in value:
            yield value[_REFERENCE].rsplit("/", 1)[-1]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _referred(part)
