"""What models are used for: one registry, one small class a task.

To add a task, write its head (`heads`) and its class (`text`, `tokens`, `images`) and list it here.
"""

from __future__ import annotations

from export.source import Checkpoint, read_json
from export.tasks.images import ImageClassification
from export.tasks.task import Task
from export.tasks.text import SentenceSimilarity, TextClassification, TextRanking, ZeroShotClassification
from export.tasks.tokens import FillMask, QuestionAnswering, TokenClassification
from shoal.errors import ExportError, UsageError

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        SentenceSimilarity(),
        TextClassification(),
        TextRanking(),
        ZeroShotClassification(),
        TokenClassification(),
        QuestionAnswering(),
        FillMask(),
        ImageClassification(),
    )
}
# Other names of the same: Hugging Face's for a model whose vectors are wanted.
ALIASES = {"feature-extraction": "sentence-similarity"}
# The end of an architecture's name, and what it is for.
_BY_ARCHITECTURE = {
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "Model": "sentence-similarity",
}


def task_of(checkpoint: Checkpoint, asked: str | None = None) -> Task:
    """The task that was asked for, or the one that the checkpoint's own files tell.

    Raises:
        UsageError: there is no such task.
        ExportError: the files do not tell, or tell of something else.
    """
    if asked is not None:
        name = ALIASES.get(asked, asked)
        if name not in TASKS:
            raise UsageError(f"unknown task {asked}", hint=f"known: {', '.join((*TASKS, *ALIASES))}")
        return TASKS[name]
    return TASKS[_found(checkpoint)]


def _found(checkpoint: Checkpoint) -> str:
    config = checkpoint.config
    architecture = str((config.get("architectures") or ["(not stated)"])[0])
    sentence_transformers = read_json(checkpoint.folder / "config_sentence_transformers.json", {})
    if architecture.endswith("ForSequenceClassification"):
        ranks = (
            "sbert_ce_default_activation_function" in config
            or "sentence_transformers" in config
            or sentence_transformers.get("model_type") == "CrossEncoder"
        )
        one = len(config.get("id2label") or {}) == 1 or config.get("num_labels") == 1
        return "text-ranking" if ranks and one else "text-classification"
    if (checkpoint.folder / "modules.json").is_file():
        return "sentence-similarity"
    for end, name in _BY_ARCHITECTURE.items():
        if architecture.endswith(end):
            return name
    raise ExportError(
        f"{checkpoint.id} has the architecture {architecture}, which tells no task",
        hint=f"--task, one of {', '.join(TASKS)}",
    )
