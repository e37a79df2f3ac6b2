"""Decoders and encoder-decoders that ask for what is not served."""

from __future__ import annotations

import json

from tests.broken.damage import CONFIG, Case, another, write
from tests.export.raw.served import edit

WRITERS: dict[str, Case] = {
    "a decoder without positions": (
        "decoder",
        lambda f: edit(
            f / CONFIG, model_type="mpt", architectures=["MptForCausalLM"], max_position_embeddings=...
        ),
        [],
        1,
        "decoder",
    ),
    "a generation config that is half": (
        "decoder",
        lambda f: write(f / "generation_config.json", "{"),
        [],
        1,
        "gener",
    ),
    "a generation config that asks for more": (
        "decoder",
        lambda f: edit(f / "generation_config.json", suppress_tokens=[3]),
        [],
        1,
        r"asks for suppress_tokens = \[3\], which is not supported \(take suppress_tokens out",
    ),
    "a decoder of an unknown build": (
        "decoder",
        another("GPT2LMHeadModel", vocab_size=800, n_embd=32, n_layer=1, n_head=2),
        [],
        1,
        "GPT2LMHeadModel",
    ),
    "an encoder for writing": (
        "bert",
        lambda f: None,
        ["--task", "text-generation"],
        1,
        "which is not a decoder's",
    ),
    "an encoder for rewriting": (
        "bert",
        lambda f: None,
        ["--task", "text2text-generation"],
        1,
        "not supported for",
    ),
    "two vocabularies": (
        "writer",
        lambda f: edit(f / CONFIG, share_encoder_decoder_embeddings=False),
        [],
        1,
        "has one vocabulary for texts and another for answers",
    ),
    "embeddings of tokens alone": (
        "bert",
        lambda f: (
            (f / CONFIG).unlink(),
            write(f / "modules.json", json.dumps([{"type": "sentence_transformers.models.StaticEmbedding"}])),
        )[0],
        [],
        1,
        "begins with the module StaticEmbedding.*a transformer, Pooling",
    ),
    "a decoder that searches with beams": (
        "decoder",
        lambda f: edit(f / "generation_config.json", num_beams=3),
        [],
        1,
        "asks for num_beams = 3, which is not supported.*take num_beams out",
    ),
    "a decoder with a short context": (
        "decoder",
        lambda f: edit(f / CONFIG, max_position_embeddings=128),
        [],
        1,
        "holds 128 tokens, and at least 512 are needed",
    ),
    "a writer that repeats nothing of its text": (
        "writer",
        lambda f: edit(f / "generation_config.json", encoder_no_repeat_ngram_size=2),
        [],
        1,
        "encoder_no_repeat_ngram_size = 2, which is not supported.*take encoder_no_repeat_ngram_size out",
    ),
}
