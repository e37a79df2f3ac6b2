"""Sources that cannot be exported, and the line that says so: `tests/export/test_sources.py` tries them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.export.raw.served import edit

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
WEIGHTS = "model.safetensors"
SENTENCE = "config_sentence_transformers.json"


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def cut(path: Path) -> None:
    write(path, path.read_bytes()[: path.stat().st_size // 2])


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def modules(*types: str, **configs: Any) -> Callable[[Path], None]:
    def made(folder: Path) -> None:
        entries = [
            {"idx": index, "name": str(index), "path": "" if not index else f"{index}_M", "type": kind}
            for index, kind in enumerate(types)
        ]
        for index in range(1, len(types)):
            (folder / f"{index}_M").mkdir()
        for name, config in configs.items():
            write(folder / f"{name.removeprefix('_')}_M" / CONFIG, json.dumps(config))
        write(folder / "modules.json", json.dumps(entries))

    return made


def another(architecture: str, **config: Any) -> Callable[[Path], None]:
    """A random model of another class in the place of the one that is there."""

    def made(folder: Path) -> None:
        kind = getattr(transformers, architecture)
        torch.manual_seed(0)
        kind(kind.config_class(**config)).save_pretrained(folder)

    return made


FIRST, POOLING = "sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"
VISION = {k: v for k, v in tiny.VISION.items() if k != "vocab_size"}
MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}

# By name: which sound checkpoint, what is done to a copy of it, flags, exit code and the line.
CASES: dict[str, tuple[str, Callable[[Path], Any], list[str], int, str]] = {
    # Files that are missing, cut off or something else.
    "an empty folder": ("bert", lambda f: [p.unlink() for p in f.iterdir()], [], 1, "has no config.json"),
    "no weights": (
        "bert",
        lambda f: (f / WEIGHTS).unlink(),
        [],
        1,
        r"has no \*\.safetensors \(load it where",
    ),
    "a pickle": (
        "bert",
        lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
        [],
        1,
        r"only pytorch_model.bin, which is a pickle \(load it where you trust it and save it again",
    ),
    "an adapter": (
        "bert",
        lambda f: ((f / CONFIG).unlink(), (f / WEIGHTS).unlink(), write(f / "adapter_config.json", "{}")),
        [],
        1,
        "holds an adapter and no model .*merge_and_unload",
    ),
    "an empty config": (
        "bert",
        lambda f: write(f / CONFIG, ""),
        [],
        1,
        "config.json cannot be read: .*complete",
    ),
    "half a config": ("bert", lambda f: cut(f / CONFIG), [], 1, "config.json cannot be read"),
    "a list for a config": ("bert", lambda f: write(f / CONFIG, "[]"), [], 1, "holds no JSON object"),
    "a config that is not UTF-8": (
        "bert",
        lambda f: write(f / CONFIG, b"\xff\xfe{"),
        [],
        1,
        "cannot be read",
    ),
    "a config that nests": ("bert", lambda f: write(f / CONFIG, "[" * 100_000), [], 1, "cannot be read"),
    "no model_type": (
        "bert",
        lambda f: edit(f / CONFIG, model_type=...),
        [],
        1,
        "model_type None, unknown to",
    ),
    "an unknown model_type": (
        "bert",
        lambda f: edit(f / CONFIG, model_type="bort"),
        [],
        1,
        "model_type 'bort'",
    ),
    "code of its own": (
        "bert",
        lambda f: edit(f / CONFIG, model_type="bort", auto_map={"AutoModel": "bort.Bort"}),
        [],
        1,
        "the code of BertModel comes with the checkpoint and is not run",
    ),
    "a config of another width": (
        "bert",
        lambda f: edit(f / CONFIG, hidden_size=48),
        [],
        1,
        "cannot open|shape",
    ),
    "a config with text for a number": (
        "bert",
        lambda f: edit(f / CONFIG, hidden_size="wide"),
        [],
        1,
        "bert",
    ),
    "half the weights": (
        "bert",
        lambda f: cut(f / WEIGHTS),
        [],
        1,
        f"{WEIGHTS} is cut off or damaged .*copy",
    ),
    "empty weights": ("bert", lambda f: write(f / WEIGHTS, ""), [], 1, "is cut off or damaged"),
    "text for weights": (
        "bert",
        lambda f: write(f / WEIGHTS, "version https://git-lfs"),
        [],
        1,
        "is cut off or damaged .*git lfs pull",
    ),
    "a matrix is missing": (
        "bert",
        weights(lambda t: t.pop("encoder.layer.1.output.dense.weight")),
        [],
        1,
        "has no weights for sentence-similarity: encoder.layer.1.output.dense.weight is missing",
    ),
    "a matrix of another shape": (
        "bert",
        weights(lambda t: t.update({"embeddings.word_embeddings.weight": torch.zeros(9, 32)})),
        [],
        1,
        "cannot open .*bert: ",
    ),
    "a shard is missing": (
        "bert",
        lambda f: (
            (f / WEIGHTS).rename(f / "model-00001-of-00002.safetensors"),
            write(
                f / "model.safetensors.index.json",
                json.dumps({"metadata": {}, "weight_map": {"a": "model-00002-of-00002.safetensors"}}),
            ),
        ),
        [],
        1,
        "cannot open .*bert: ",
    ),
    "quantized by a library that is not here": (
        "bert",
        lambda f: edit(f / CONFIG, quantization_config={"quant_method": "awq", "bits": 4}),
        [],
        1,
        "cannot open .*bert: ",
    ),
    # Tokenizers.
    "no tokenizer": (
        "bert",
        lambda f: [(f / n).unlink() for n in ("tokenizer.json", TOKENIZER, "special_tokens_map.json")],
        [],
        1,
        "bert",
    ),
    "half a tokenizer": (
        "classes",
        lambda f: cut(f / "tokenizer.json"),
        [],
        1,
        "cannot load the tokenizer of",
    ),
    "an empty tokenizer": ("classes", lambda f: write(f / "tokenizer.json", "{}"), [], 1, "the tokenizer of"),
    "half a tokenizer's config": (
        "classes",
        lambda f: cut(f / TOKENIZER),
        [],
        1,
        "cannot load the tokenizer of",
    ),
    "a tokenizer of no known class": (
        "classes",
        lambda f: edit(f / TOKENIZER, tokenizer_class="BortTokenizer"),
        [],
        1,
        "cannot load the tokenizer of .*BortTokenizer",
    ),
    "a slow tokenizer that becomes no fast one": (
        "classes",
        lambda f: (
            edit(f / TOKENIZER, tokenizer_class="CanineTokenizer", tokenizer_file=...),
            (f / "tokenizer.json").unlink(),
        ),
        [],
        1,
        r"has the slow tokenizer CanineTokenizer only \(.*writes tokenizer.json",
    ),
    "a sentencepiece model that is none": (
        "writer",
        lambda f: (
            (f / "tokenizer.json").unlink(),
            edit(f / TOKENIZER, tokenizer_class="T5Tokenizer"),
            write(f / "spiece.model", "no model"),
        ),
        [],
        1,
        r"the tokenizer of .*writes tokenizer.json",
    ),
    "more tokens than vectors": (
        "classes",
        lambda f: (
            edit(f / CONFIG, vocab_size=50),
            weights(lambda t: t.update({"bert.embeddings.word_embeddings.weight": torch.zeros(50, 32)}))(f),
        ),
        [],
        1,
        "has 800 tokens and the model vectors for 50",
    ),
    # What sentence-transformers saves.
    "half a modules.json": (
        "bert",
        lambda f: write(f / "modules.json", '[{"idx"'),
        [],
        1,
        "cannot open .*bert: ",
    ),
    "an object for modules": ("bert", lambda f: write(f / "modules.json", "{}"), [], 1, "bert"),
    "a module of no known type": (
        "bert",
        modules(FIRST, "sentence_transformers.models.Poling"),
        [],
        1,
        "Poling",
    ),
    "a module with code of its own": (
        "bert",
        modules(FIRST, "custom.Pooling"),
        [],
        1,
        "cannot open .*bert: ",
    ),
    "a module that is not supported": (
        "bert",
        modules(
            FIRST,
            POOLING,
            "sentence_transformers.models.WordWeights",
            _1=MEAN,
            _2={"vocab": [], "word_weights": {}, "unknown_word_weight": 1},
        ),
        [],
        1,
        "uses the module .*WordWeights, which is not supported .*Pooling, Dense",
    ),
    "no pooling": ("bert", modules(FIRST), [], 1, "has no Pooling behind its transformer"),
    "pooling without a config": ("bert", modules(FIRST, POOLING), [], 1, "cannot open .*bert: "),
    "pooling of no known mode": (
        "bert",
        modules(FIRST, POOLING, _1={"embedding_dimension": 32, "pooling_mode": "median"}),
        [],
        1,
        "cannot open .*bert: .*median",
    ),
    "a dense layer as a pickle": (
        "bert",
        lambda f: (
            modules(FIRST, POOLING, "sentence_transformers.models.Dense", _1=MEAN, _2={})(f),
            write(f / "2_M" / "pytorch_model.bin", "pickle"),
        ),
        [],
        1,
        "pytorch_model.bin is a pickle, which is not read",
    ),
    "half a config of sentence-transformers": (
        "bert",
        lambda f: write(f / SENTENCE, "{"),
        [],
        1,
        "cannot be read",
    ),
    "a default prompt that there is not": (
        "bert",
        lambda f: (
            modules(FIRST, POOLING, _1=MEAN)(f),
            edit(f / SENTENCE, prompts={}, default_prompt_name="q"),
        ),
        [],
        1,
        "cannot open .*bert: Default prompt name 'q' not found",
    ),
    "a sparse encoder": (
        "bert",
        lambda f: edit(f / SENTENCE, model_type="SparseEncoder"),
        [],
        1,
        "is a BertModel for sparse vectors, which is not supported",
    ),
    "a ranker with three classes": (
        "classes",
        lambda f: None,
        ["--task", "text-ranking"],
        1,
        "a reranker has one",
    ),
    "an activation that runs code": (
        "bert",
        lambda f: (
            another("BertForSequenceClassification", num_labels=1, **tiny.SIZES)(f),
            edit(f / CONFIG, sentence_transformers={"activation_fn": "torch.nn.Nope"}),
        ),
        [],
        1,
        "cannot open .*bert as a cross-encoder: .*Nope",
    ),
    # What a model is.
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
    # Models that write.
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
    # The command itself.
    "an unknown task": ("bert", lambda f: None, ["--task", "poetry"], 2, "unknown task poetry"),
    "labelled data that are not there": (
        "bert",
        lambda f: None,
        ["--eval-data", "/nowhere.csv"],
        2,
        "/nowhere.csv",
    ),
    "components for a decoder": (
        "decoder",
        lambda f: None,
        ["--truncate-dim", "8"],
        2,
        "--truncate-dim is for",
    ),
}
