"""huggingface_hub's InferenceClient against URLs."""

import json
import sys

from huggingface_hub import InferenceClient

given = json.loads(sys.argv[1])
url, texts = given["url"], given["texts"]
messages = [{"role": "user", "content": given["prompt"]}]
asked = {"messages": messages, "model": "smollm2", "max_tokens": 24, "temperature": 0}
chat = InferenceClient(base_url=f"{url}/v1", api_key="none")
whole = chat.chat_completion(**asked)
print(
    json.dumps(
        {
            "vector": InferenceClient(f"{url}/embed").feature_extraction(texts[0]).tolist(),
            "vectors": InferenceClient(f"{url}/embed").feature_extraction(texts).tolist(),
            "similarity": InferenceClient(f"{url}/similarity").sentence_similarity(texts[0], texts[1:]),
            "labels": [
                [label.label, label.score]
                for label in InferenceClient(f"{url}/predict").text_classification([[texts[0]]])
            ],
            "chat": whole.choices[0].message.content,
            "stream": "".join(
                chunk.choices[0].delta.content or ""
                for chunk in chat.chat_completion(stream=True, **asked)
                if chunk.choices
            ),
        }
    )
)
