"""How a model answers: the settings of its search, in the names of transformers' `GenerationConfig`."""

from __future__ import annotations

import json

import msgspec


class Search(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of a search; all lengths in tokens, ids are of the vocabulary.

    Attributes:
        start: the id that answers begin with.
        pad: the id that fills texts up.
        ends: ids that end an answer.
        max_new_tokens: longest answer, the start not counted.
        min_new_tokens: no answer ends before it has as many.
        num_beams: answers that compete; 1: greedy.
        length_penalty: a finished answer's log probability is divided by its length to this power.
        early_stopping: what to do with as many finished answers as beams. True: stop. False: go on while the
            best beam, were it to end now, could beat one of them. "never": go on while it could at the length
            that helps it most.
        forced_bos: the id that comes first; -1: any.
        forced_eos: the id that comes last where `max_new_tokens` is reached; -1: any.
        no_repeat_ngram_size: no run of as many tokens comes twice; 0: it may.
        repetition_penalty: what came before is made less likely by this factor.
        suppressed: ids that are never generated.
    """

    start: int
    pad: int
    ends: tuple[int, ...]
    max_new_tokens: int
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    forced_bos: int = -1
    forced_eos: int = -1
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    suppressed: tuple[int, ...] = ()

    def to_json(self) -> str:
        """Write the settings as a parameter of config.pbtxt."""
        return json.dumps(msgspec.structs.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Search:
        """See `to_json`.

        Raises:
            ValueError: it is not JSON, or a setting is missing, unknown or has the wrong type.
        """
        return msgspec.json.decode(text, type=cls)
