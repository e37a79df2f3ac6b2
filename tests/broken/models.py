"""Models that are not what is exported, or lack what the task needs."""

from __future__ import annotations

import json

from tests import tiny
from tests.broken.damage import CONFIG, TOKENIZER, VISION, Case, another, cut, write
from tests.export.raw.served import edit

MODELS: dict[str, Case] = {
    "pictures without a head": (
        "vit",
        another("ViTModel", **VISION),
        [],
        1,
        "ViTModel, which reads image and no",
    ),
    "no image processor": (
        "vit",
        lambda f: (f / "preprocessor_config.json").unlink(),
        [],
        1,
        "image processor of",
    ),
    "half an image processor": (
        "vit",
        lambda f: cut(f / "preprocessor_config.json"),
        [],
        1,
        "image processor of",
    ),
    "an image processor of no known class": (
        "vit",
        lambda f: edit(f / "preprocessor_config.json", image_processor_type="BortImageProcessor"),
        [],
        1,
        "image processor of",
    ),
    "an image processor that does more": (
        "vit",
        lambda f: write(
            f / "preprocessor_config.json",
            json.dumps({"image_processor_type": "MobileViTImageProcessor", "size": {"shortest_edge": 36}}),
        ),
        [],
        1,
        "MobileViTImageProcessor in a way that is not supported: do_flip_channel_order",
    ),
    "pictures to text": (
        "vit",
        lambda f: edit(
            f / CONFIG, architectures=["VisionEncoderDecoderModel"], model_type="vision-encoder-decoder"
        ),
        [],
        1,
        "is a VisionEncoderDecoderModel for image text to text, which is not supported .supported: sentence-",
    ),
    "speech": (
        "bert",
        lambda f: edit(f / CONFIG, architectures=["WhisperForConditionalGeneration"], model_type="whisper"),
        [],
        1,
        "for speech seq to seq, which is not supported",
    ),
    "multiple choice": (
        "bert",
        lambda f: edit(f / CONFIG, architectures=["BertForMultipleChoice"]),
        [],
        1,
        "is a BertForMultipleChoice for multiple choice, which is not supported",
    ),
    "a class that transformers has not": (
        "bert",
        lambda f: edit(f / CONFIG, architectures=["BertForPoetry"]),
        [],
        1,
        "has the architecture BertForPoetry, which tells no task .--task, one of",
    ),
    "no attention mask": (
        "bert",
        another("FNetModel", **{k: v for k, v in tiny.SIZES.items() if k != "num_attention_heads"}),
        [],
        1,
        "is a FNetModel, which takes no attention mask",
    ),
    "a head for something else": (
        "classes",
        lambda f: None,
        ["--task", "fill-mask"],
        1,
        "is a BertForSequenceClassification, which has no head for fill-mask",
    ),
    "no head at all": (
        "bert",
        lambda f: None,
        ["--task", "token-classification"],
        1,
        "has no weights for token-",
    ),
    "no entailment": (
        "classes",
        lambda f: None,
        ["--task", "zero-shot-classification"],
        1,
        "no class named ent",
    ),
    "no mask": (
        "bert",
        lambda f: (
            another("BertForMaskedLM", **tiny.SIZES)(f),
            edit(f / TOKENIZER, mask_token=...),
            edit(f / "special_tokens_map.json", mask_token=...),
        ),
        [],
        1,
        "has no mask token",
    ),
}
