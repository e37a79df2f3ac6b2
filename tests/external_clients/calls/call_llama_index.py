"""llama-index: its classes for servers that are like OpenAI's, and those for text-embeddings-inference."""

import json
import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.llms.openai_like import OpenAILike
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from pydantic import BaseModel, Field

given = json.loads(sys.argv[1])
where = {"api_base": f"{given['url']}/v1", "api_key": "none"}


class Fish(BaseModel):
    """A fish."""

    name: str = Field(max_length=16)
    fins: int = Field(ge=1, le=3)


written = {"model": "smollm2", "temperature": 0, "context_window": 2048, **where}
chat = OpenAILike(is_chat_model=True, max_tokens=24, **written)
plain = OpenAILike(max_tokens=8, **written)
tools = OpenAILike(is_chat_model=True, is_function_calling_model=True, max_tokens=100, **written)
embeddings = OpenAILikeEmbedding(model_name="minilm", **where)
tei = TextEmbeddingsInference(model_name="minilm", base_url=given["url"])
ranker = TextEmbeddingInference(base_url=given["url"], top_n=3)
nodes = [NodeWithScore(node=TextNode(text=text, id_=str(place))) for place, text in enumerate(given["texts"])]
message = ChatMessage(role="user", content=given["prompt"])
print(
    json.dumps(
        {
            "chat": chat.chat([message]).message.content,
            "stream": "".join(part.delta or "" for part in chat.stream_chat([message])),
            "complete": plain.complete(given["start"]).text,
            "structured": tools.as_structured_llm(Fish).chat([message]).raw.model_dump(),
            "documents": embeddings.get_text_embedding_batch(given["texts"]),
            "query": embeddings.get_query_embedding(given["texts"][0]),
            "tei": tei.get_text_embedding_batch(given["texts"]),
            "ranked": [
                [int(found.node.node_id), found.score]
                for found in ranker.postprocess_nodes(nodes, query_str=given["prompt"])
            ],
        }
    )
)
