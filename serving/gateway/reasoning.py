"""What a model thinks before it answers, told from the answer: the text between `<think>` and `</think>`.

Source: the chat templates of Qwen 3 and DeepSeek R1.
"""

from __future__ import annotations

BEGIN, END = "<think>", "</think>"


class Reasoning:
    """Reads one answer, part by part.

    Args:
        expected: whether the model may think; otherwise all is its answer.
    """

    def __init__(self, *, expected: bool) -> None:
        self._state = "begin" if expected else "answer"
        self._held = ""

    @classmethod
    def of(cls, template: str) -> Reasoning:
        """For a model with this chat template."""
        return cls(expected=END in template)

    def add(self, text: str) -> tuple[str, str]:
        """What of a part is thought, and what is answered; what may be a mark is held back."""
        thought = answer = ""
        text = self._held + text
        self._held = ""
        if self._state == "begin":
            stripped = text.lstrip()
            if len(stripped) < len(BEGIN) and BEGIN.startswith(stripped):
                self._held = text
                return "", ""
            if stripped.startswith(BEGIN):
                self._state, text = "opened", stripped[len(BEGIN) :]
            else:
                self._state = "answer"
        if self._state == "opened":  # nor are those before the thought a part of that
            text = text.lstrip("\n")
            if not text:
                return "", ""
            self._state = "thought"
        if self._state == "thought":
            thought, mark, rest = text.partition(END)
            if mark:
                self._state, text = "between", rest
            else:
                size = _overlap(thought, END)
                self._held = thought[len(thought) - size :]
                return thought[: len(thought) - size], ""
        if self._state == "between":  # the empty lines before the answer are no part of it
            text = text.lstrip("\n")
            if not text:
                return thought, ""
            self._state = "answer"
        answer = text
        return thought, answer

    def end(self) -> tuple[str, str]:
        """What was held back, as the answer has ended."""
        held, self._held = self._held, ""
        return (held, "") if self._state == "thought" else ("", held)


def _overlap(text: str, mark: str) -> int:
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0)
