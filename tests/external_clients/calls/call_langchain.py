"""langchain-openai, told no more than a URL and a model."""

import asyncio
import json
import sys
from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

given = json.loads(sys.argv[1])
where = {"base_url": f"{given['url']}/v1", "api_key": "none"}
embeddings = OpenAIEmbeddings(model="minilm", **where)
chat = ChatOpenAI(model="smollm2", temperature=0, max_tokens=24, **where)
longer = ChatOpenAI(model="smollm2", temperature=0, **where)


class Fish(BaseModel):
    """A fish."""

    name: str = Field(max_length=16)
    fins: Literal[1, 2, 3]


@tool
def weather(city: Literal["Oslo", "Rome"], days: Literal[1, 2, 3]) -> str:
    """The weather of a city."""
    return f"Rain in {city} for {days} days."


answer = chat.invoke(given["prompt"])
chunks = list(chat.stream(given["prompt"]))
called = longer.bind_tools([weather], tool_choice="any").invoke("Will it rain in Oslo?")
streamed = None
for chunk in longer.bind_tools([weather], tool_choice="any").stream("Will it rain in Oslo?"):
    streamed = chunk if streamed is None else streamed + chunk
result = weather.invoke(called.tool_calls[0])
after = longer.bind_tools([weather], tool_choice="none").invoke(
    [("user", "Will it rain in Oslo?"), called, result], max_tokens=8
)
print(
    json.dumps(
        {
            "documents": embeddings.embed_documents(given["texts"]),
            "query": embeddings.embed_query(given["texts"][0]),
            "asynchronous": asyncio.run(embeddings.aembed_documents(given["texts"])),
            "invoke": answer.content,
            "usage": answer.usage_metadata,
            "stream": "".join(chunk.content for chunk in chunks),
            "ainvoke": asyncio.run(chat.ainvoke(given["prompt"])).content,
            "batch": [message.content for message in chat.batch([given["prompt"]] * 3)],
            "calls": called.tool_calls,
            "streamed_calls": streamed.tool_calls,
            "result": result.content,
            "after": after.content,
            "structured": {
                method: longer.with_structured_output(Fish, method=method)
                .invoke("Describe a fish.")
                .model_dump()
                for method in ("json_schema", "function_calling")
            },
            "default": longer.with_structured_output(Fish).invoke("Describe a fish.").model_dump(),
        }
    )
)
