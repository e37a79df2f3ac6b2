"""How the texts of one request become sequences of tokens: alone, in pairs, by hypothesis, in windows.

A layout names the inputs that a request has, and encodes them. Where one row of a request makes several
sequences (a text with each of its candidate labels, a long context in windows) the arrays have one more
dimension, [rows, sequences, tokens]: so rows stay rows for Triton's batching, and the network, which reads
[rows * sequences, tokens], folds and unfolds them itself.

Needs `tokenizers` and numpy, and knows nothing of Triton. What a request's sequences become is in
`serving.models.sequences`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from tokenizers import Tokenizer

from serving.models.sequences import Batch
from shoal.dialect import PROMPT_NAME
from shoal.paths import named
from shoal.tasks import inputs_of

# Of one request, by input: for each row its texts.
Texts = Mapping[str, Sequence[Sequence[str]]]


class BadText(ValueError):
    """A text that cannot be tokenized; the message names its row and the way out."""


def load_tokenizer(
    path: Path, max_length: int, *, stride: int = 0, strategy: str = "longest_first", side: str = "right"
) -> Tokenizer:
    """A tokenizer that truncates at `max_length` tokens, special tokens included, and does not pad.

    Args:
        side: where a text that is too long loses tokens.
    """
    tokenizer = Tokenizer.from_file(named(path))
    tokenizer.enable_truncation(max_length, stride=stride, strategy=strategy, direction=side)
    tokenizer.no_padding()
    return tokenizer


# Characters that one becomes at most in the normal form NFKC (Unicode Standard Annex 15), as U+FDFA does.
MOST_GROWTH = 18


def check_growth(tokenizer: Tokenizer, texts: Sequence[str], most: int, what: str) -> None:
    """Refuse a text that normalization makes longer than any text may be.

    Args:
        tokenizer: whose normalizer is asked; ASCII stays as long as it is in every one.
        most: characters of a text.
        what: the name of the input.

    Raises:
        BadText: there is one.
    """
    for index, text in enumerate(texts):
        if tokenizer.normalizer is None or text.isascii() or len(text) * MOST_GROWTH <= most:
            continue
        length = len(tokenizer.normalizer.normalize_str(text))
        if length > most:
            raise BadText(
                f"{what} {index} becomes {length} characters in the normal form that the model reads, at most"
                f" {most} are accepted; send less"
            )


class Layout(ABC):
    """Encodes requests of one kind.

    Args:
        path: of `tokenizer.json`.
        max_length: longest sequence in tokens, special tokens included.
        options: what this layout needs besides, `OPTIONS`, and what it understands, `OPTIONAL`;
            `truncation_side`, `left` or `right`, is where a text that is too long loses tokens.
    """

    INPUTS: ClassVar[tuple[str, ...]]
    OPTIONAL_INPUTS: ClassVar[tuple[str, ...]] = ()
    OPTIONS: ClassVar[tuple[str, ...]] = ()
    OPTIONAL: ClassVar[tuple[str, ...]] = ("truncation_side",)
    STRATEGY: ClassVar[str] = "longest_first"
    GROUPS: ClassVar[bool] = False  # a row makes several sequences

    def __init__(self, path: Path, max_length: int, **options: str) -> None:
        self.max_length = max_length
        self.options = options
        side = options.get("truncation_side", "right")
        self.tokenizer = load_tokenizer(
            path, max_length, stride=self.stride, strategy=self.STRATEGY, side=side
        )

    @property
    def stride(self) -> int:
        """Tokens that neighbouring windows share."""
        return 0

    def count(self, texts: Texts) -> int:
        """How many sequences the rows of one request become, told before they are made.

        Raises:
            BadText: a row cannot be encoded.
        """
        return len(texts[self.INPUTS[0]])

    @abstractmethod
    def encode(self, texts: Texts) -> Batch:
        """Encode the rows of one request.

        Raises:
            BadText: a row cannot be encoded.
        """


class Prompting(Layout):
    """Texts before which a prompt is put that says what they are for, as sentence-transformers does it.

    Options: `prompts`, JSON, text by name; `default_prompt`, the name for rows without `prompt_name`;
    `include_prompt`, `false`: the tokens of a prompt do not count in the pooling.
    """

    OPTIONAL_INPUTS = (PROMPT_NAME,)
    OPTIONAL = (*Layout.OPTIONAL, "prompts", "default_prompt", "include_prompt")

    def __init__(self, path: Path, max_length: int, **options: str) -> None:
        super().__init__(path, max_length, **options)
        self._prompts: dict[str, str] = json.loads(options.get("prompts", "{}"))
        self._counts = options.get("include_prompt", "true") == "true"
        self._lengths: dict[str, int] = {}

    def prompted(self, texts: Texts, name: str) -> tuple[list[list[str]], list[int]]:
        """The rows of an input with their prompts, and how many tokens of each are its prompt's.

        Args:
            name: the input whose first text gets the prompt.

        Raises:
            BadText: a row asks for a prompt that there is not.
        """
        rows = [list(row) for row in texts[name]]
        default = self.options.get("default_prompt")
        asked: list[str | None] = [row[0] for row in texts.get(PROMPT_NAME, ())]
        names = asked or [default] * len(rows)
        for index, prompt in enumerate(names):
            if prompt is not None and prompt not in self._prompts:
                known = ", ".join(self._prompts) or "none"
                raise BadText(f"{PROMPT_NAME} {index} is {prompt!r}; the model has {known}")
        prompts = ["" if prompt is None else self._prompts[prompt] for prompt in names]
        made = [[prompt + first, *others] for prompt, (first, *others) in zip(prompts, rows, strict=True)]
        return made, [] if self._counts else [self._length(prompt) for prompt in prompts]

    def _length(self, prompt: str) -> int:
        """Tokens of a prompt without what ends a text: sentence-transformers' way to count them."""
        if not prompt:
            return 0
        if prompt not in self._lengths:
            encoding = self.tokenizer.encode(prompt)
            self._lengths[prompt] = len(encoding) - encoding.special_tokens_mask[-1]
        return self._lengths[prompt]


class OneText(Prompting):
    """`text` [n, 1], or [n, 2] for a pair of texts in each row."""

    INPUTS = inputs_of("text")

    def encode(self, texts: Texts) -> Batch:
        rows, lengths = self.prompted(texts, "text")
        if len(rows[0]) > 2:
            raise BadText(f"a row is one text or a pair of texts, this one has {len(rows[0])}")
        # Alone a text is given as such: a tuple of one is not a sequence for the tokenizer.
        given = [row[0] if len(row) == 1 else tuple(row) for row in rows]
        return Batch(self.tokenizer.encode_batch_fast(given), prompts=lengths)


class Located(Layout):
    """`text` [n, 1], with the place of each token in it."""

    INPUTS = inputs_of("located")

    def encode(self, texts: Texts) -> Batch:
        rows = [text for (text,) in texts["text"]]
        return Batch(self.tokenizer.encode_batch(rows), rows)


class Masked(Layout):
    """`text` [n, 1], each with one mask token."""

    INPUTS = inputs_of("masked")
    OPTIONS = ("mask_token",)

    def encode(self, texts: Texts) -> Batch:
        mask = self.options["mask_token"]
        number = self.tokenizer.token_to_id(mask)
        encodings = self.tokenizer.encode_batch_fast([text for (text,) in texts["text"]])
        for index, encoding in enumerate(encodings):
            if (count := encoding.ids.count(number)) != 1:
                raise BadText(
                    f"text {index} has {count} times {mask} in its first {self.max_length} tokens, it must"
                    " have it once"
                )
        return Batch(encodings)


class QueryAndText(Prompting):
    """`query` [n, 1] and `text` [n, 1]: a pair in each row, the prompt before the query."""

    INPUTS = inputs_of("query")

    def encode(self, texts: Texts) -> Batch:
        queries, _ = self.prompted(texts, "query")
        pairs = [(query, text) for (query,), (text,) in zip(queries, texts["text"], strict=True)]
        return Batch(self.tokenizer.encode_batch_fast(pairs))


class Truncating(Layout):
    """Pairs of which one text is cut to fit, and the other must fit as it is."""

    def __init__(self, path: Path, max_length: int, **options: str) -> None:
        super().__init__(path, max_length, **options)
        self._counter = Tokenizer.from_file(named(path))
        self._counter.no_truncation()
        self._most = max_length - self._counter.num_special_tokens_to_add(is_pair=True)

    def check_room(self, whole: Sequence[str], cut: Sequence[str], what: str) -> None:
        """Refuse a text that leaves no token for its partner: the tokenizer would end the process.

        Args:
            whole: texts that must fit as they are.
            cut: the partner of each, which is cut where both do not fit.

        Raises:
            BadText: there is one.
        """
        room = self._most - self.stride
        for index, encoding in enumerate(self._counter.encode_batch_fast(whole, add_special_tokens=False)):
            if len(encoding) < room:
                continue
            partner = self._counter.encode(cut[index], add_special_tokens=False)
            if len(encoding) + len(partner) > self._most:
                raise BadText(
                    f"{what} {index} has {len(encoding)} tokens, at most {room - 1} leave room for its text"
                )


class Hypotheses(Truncating):
    """`text` [n, 1] and `candidate_labels` [n, labels]: each text with a sentence on each of its labels."""

    INPUTS = inputs_of("hypotheses")
    OPTIONS = ("hypothesis_template",)
    STRATEGY = "only_first"
    GROUPS = True

    def count(self, texts: Texts) -> int:
        return sum(map(len, texts["candidate_labels"]))

    def encode(self, texts: Texts) -> Batch:
        template = self.options["hypothesis_template"]
        rows = [[template.format(label) for label in row] for row in texts["candidate_labels"]]
        pairs = [(text, s) for (text,), row in zip(texts["text"], rows, strict=True) for s in row]
        self.check_room([s for _, s in pairs], [text for text, _ in pairs], "the sentence on label")
        return Batch(self.tokenizer.encode_batch_fast(pairs), sequences=len(rows[0]))


class Windows(Truncating):
    """`question` [n, 1] and `context` [n, 1]: the question with each window of a long context."""

    INPUTS = inputs_of("windows")
    OPTIONS = ("stride",)
    STRATEGY = "only_second"
    GROUPS = True

    @property
    def stride(self) -> int:
        return min(int(self.options["stride"]), self.max_length // 2)

    def count(self, texts: Texts) -> int:
        questions, contexts = ([text for (text,) in texts[name]] for name in self.INPUTS)
        self.check_room(questions, contexts, "question")
        windows = [
            self._windows(*lengths)
            for lengths in zip(self._tokens(questions), self._tokens(contexts), strict=True)
        ]
        return len(windows) * max(windows)

    def _tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has by itself."""
        return [len(found) for found in self._counter.encode_batch_fast(texts, add_special_tokens=False)]

    def _windows(self, question: int, context: int) -> int:
        """How many windows a context makes, both texts in tokens. The longer the question, the more."""
        room = self._most - question
        return 1 + max(0, -((room - context) // (room - self.stride)))

    def encode(self, texts: Texts) -> Batch:
        pairs = [(q, c) for (q,), (c,) in zip(texts["question"], texts["context"], strict=True)]
        self.check_room([q for q, _ in pairs], [c for _, c in pairs], "question")
        rows = [[encoding, *encoding.overflowing] for encoding in self.tokenizer.encode_batch(pairs)]
        most = max(map(len, rows))
        # A row with fewer windows repeats its first, in which no answer is looked for.
        return Batch(
            [window for row in rows for window in (row + [row[0]] * (most - len(row)))],
            sequences=most,
            real=[index < len(row) for row in rows for index in range(most)],
        )


LAYOUTS: dict[str, type[Layout]] = {
    "text": OneText,
    "located": Located,
    "masked": Masked,
    "query": QueryAndText,
    "hypotheses": Hypotheses,
    "windows": Windows,
}
