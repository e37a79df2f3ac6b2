"""lm-evaluation-harness: tasks of a local folder, scored through /v1/completions with echo and logprobs."""

import json
import sys

import lm_eval
from lm_eval.tasks import TaskManager

given = json.loads(sys.argv[1])
done = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={
        "model": "smollm2",
        "base_url": f"{given['url']}/v1/completions",
        "tokenizer": given["tokenizer"],
        "max_length": 2048,
        **given["how"],
    },
    tasks=given["tasks"],
    task_manager=TaskManager(include_path=given["folder"], include_defaults=False),
    log_samples=True,
    bootstrap_iters=0,
)
print(
    json.dumps(
        {
            "results": {
                task: {name: value for name, value in scores.items() if isinstance(value, float)}
                for task, scores in done["results"].items()
            },
            "samples": {
                task: [[sample["doc_id"], sample["filtered_resps"]] for sample in samples]
                for task, samples in done["samples"].items()
            },
        }
    )
)
