"""Cohere's client, of both versions of its API."""

import asyncio
import json
import sys

import cohere

given = json.loads(sys.argv[1])
where = {"api_key": "none", "base_url": given["url"]}
asked = {"model": "ranker", "query": given["query"], "documents": given["texts"], "top_n": 3}


async def later() -> list:
    return (await cohere.AsyncClientV2(**where).rerank(**asked)).results


def plain(results: list) -> list:
    return [[result.index, result.relevance_score] for result in results]


try:
    cohere.ClientV2(**where).rerank(**asked | {"model": "nothing"})
    error = None
except cohere.NotFoundError as caught:
    error = caught.body
print(
    json.dumps(
        {
            "v2": plain(cohere.ClientV2(**where).rerank(**asked).results),
            "v1": plain(cohere.Client(**where).rerank(**asked).results),
            "asynchronous": plain(asyncio.run(later())),
            "error": error,
        }
    )
)
