"""What models are used for: one registry, one small class a task.

To add a task, write its head (`heads`) and its class (`text`, `tokens`, `images`) and list it here.
"""

from __future__ import annotations

from export.checkpoint.kinds import kind_of
from export.checkpoint.source import Checkpoint
from export.encoder.tasks.images import ImageClassification
from export.encoder.tasks.task import Task
from export.encoder.tasks.text import (
    SentenceSimilarity,
    TextClassification,
    TextRanking,
    ZeroShotClassification,
)
from export.encoder.tasks.tokens import FillMask, QuestionAnswering, TokenClassification
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
    kind = kind_of(checkpoint)
    if kind.task in TASKS:
        return TASKS[kind.task]
    if kind.other:
        raise ExportError(
            f"{checkpoint.id} is a {kind.architecture or 'model'} for {kind.other}, which is not supported",
            hint=f"supported: {', '.join(TASKS)}",
        )
    raise ExportError(
        f"{checkpoint.id} has the architecture {kind.architecture or '(none)'}, which tells no task",
        hint=f"--task, one of {', '.join(TASKS)}",
    )
