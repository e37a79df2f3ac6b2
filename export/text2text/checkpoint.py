"""Encoder-decoder checkpoints: which are supported, the PyTorch original, and how it answers."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from export.checkpoint.kinds import kind_of
from export.checkpoint.loading import TAKE_OUT, check_generation, load
from export.checkpoint.source import Checkpoint, find_checkpoint
from export.text2text.recipe import Text2TextRecipe
from serving.text2text.settings import Search
from shoal.errors import ExportError
from shoal.tasks import REWRITING

ARCHITECTURES = (
    "T5ForConditionalGeneration",
    "MT5ForConditionalGeneration",
    "BartForConditionalGeneration",
    "MBartForConditionalGeneration",
    "PegasusForConditionalGeneration",
    "MarianMTModel",
)
DEFAULT_NEW_TOKENS = 256
# What a generation config may ask for that changes the answer, and that is not done here.
_REFUSED = (
    "do_sample",
    "num_beam_groups",
    "diversity_penalty",
    "penalty_alpha",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "begin_suppress_tokens",
    "sequence_bias",
    "exponential_decay_length_penalty",
    "guidance_scale",
    "constraints",
    "force_words_ids",
    "renormalize_logits",
    "stop_strings",
    "max_time",
    "dola_layers",
)


def rewrites(source: str) -> bool:
    """Whether a source is an encoder-decoder that makes text of text, supported or not, by its own config.

    Raises:
        UsageError, ExportError: see `export.checkpoint.source.find_checkpoint`.
    """
    return kind_of(find_checkpoint(source)).task == REWRITING


def find_encoder_decoder(source: str) -> Checkpoint:
    """Resolve a folder, an installed package or a hub id.

    Raises:
        UsageError: it is none of these.
        ExportError: it is not an encoder-decoder of a supported architecture, with safetensors and one
            tokenizer for both sides.
    """
    checkpoint = find_checkpoint(source)
    architecture, config = kind_of(checkpoint).architecture, checkpoint.config
    if architecture not in ARCHITECTURES:
        raise ExportError(
            f"{source} has the architecture {architecture}, which is not supported for"
            f" {Text2TextRecipe.TASK}",
            hint=f"supported: {', '.join(ARCHITECTURES)}",
        )
    if config.get("share_encoder_decoder_embeddings") is False:
        raise ExportError(f"{source} has one vocabulary for texts and another for answers: not supported")
    return checkpoint


def load_original(checkpoint: Checkpoint) -> PreTrainedModel:
    """The PyTorch original; see `export.checkpoint.loading.load`."""
    return load("AutoModelForSeq2SeqLM", checkpoint, Text2TextRecipe.TASK)


def search_of(model: PreTrainedModel, recipe: Text2TextRecipe) -> Search:
    """How a model answers: its own generation config, and what the recipe says otherwise.

    Raises:
        ExportError: the config asks for what is not supported, by name, or does not say how answers begin.
    """
    given = model.generation_config
    check_generation(given, _REFUSED, recipe.source)
    start = given.decoder_start_token_id
    start = given.bos_token_id if start is None else start
    if start is None or given.eos_token_id is None or given.pad_token_id is None:
        raise ExportError(
            "the generation config does not name all of decoder_start_token_id, eos_token_id, pad_token_id"
        )
    ends = _ids(given.eos_token_id)
    return Search(
        start=int(start),
        pad=int(given.pad_token_id),
        ends=ends,
        max_new_tokens=_longest(model, recipe),
        min_new_tokens=max(int(given.min_length or 0) - 1, int(given.min_new_tokens or 0)),
        num_beams=recipe.num_beams or int(given.num_beams or 1),
        length_penalty=float(given.length_penalty if given.length_penalty is not None else 1.0),
        early_stopping=given.early_stopping or False,
        forced_bos=-1 if given.forced_bos_token_id is None else int(given.forced_bos_token_id),
        forced_eos=-1 if given.forced_eos_token_id is None else _ids(given.forced_eos_token_id)[0],
        no_repeat_ngram_size=int(given.no_repeat_ngram_size or 0),
        repetition_penalty=float(given.repetition_penalty or 1.0),
        suppressed=_suppressed(given, ends),
    )


def _longest(model: PreTrainedModel, recipe: Text2TextRecipe) -> int:
    """Most tokens of an answer; one of the decoder's positions is the start's."""
    given = model.generation_config
    stated = given.max_new_tokens
    if stated is None and given.max_length not in (None, GenerationConfig().max_length):
        stated = given.max_length - 1
    longest = recipe.max_new_tokens or stated or DEFAULT_NEW_TOKENS
    return min(int(longest), int(getattr(model.config, "max_position_embeddings", None) or longest))


def _suppressed(given: GenerationConfig, ends: tuple[int, ...]) -> tuple[int, ...]:
    """Ids that are never generated: `bad_words_ids` of one token each, and `suppress_tokens`."""
    words: list[Any] = given.bad_words_ids or []
    if any(len(word) != 1 for word in words):
        raise ExportError(
            "the generation config has bad_words_ids of several tokens, which is not supported",
            hint=TAKE_OUT % "bad_words_ids",
        )
    ids = {int(word[0]) for word in words} - set(ends)  # transformers leaves ends out of them too
    return tuple(sorted(ids | {int(token) for token in given.suppress_tokens or []}))


def _ids(value: int | list[int]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list) else (int(value),)
