"""Tiny random checkpoints of many architectures, each a normal Hugging Face folder with its own tokenizer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

# transformers 5 offers it at its top only beside torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from shoal import corpus

VOCABULARY = 800
SPREAD = 12.0
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 160,
}
# Two positions stand before the first token in these.
OFFSET = ("roberta", "xlm-roberta", "camembert", "data2vec-text")


@cache
def wordpiece() -> str:
    """BERT's kind of tokenizer over sample text, as JSON.

    Not trained: the trainer breaks ties otherwise in each process, and then no two runs compare.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Counter(re.findall(r"[a-z]+|[^a-z\s]", " ".join(corpus.passages()[:800]).lower()))
    letters = sorted({letter for word in words for letter in word})
    endings: Counter[str] = Counter()
    for word, count in words.items():
        for length in (2, 3):
            if len(word) > length:
                endings[f"##{word[-length:]}"] += count
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters)]
    for found, most in ((endings, len(pieces) + 150), (words, VOCABULARY)):
        ranked = sorted(found, key=lambda piece: (-found[piece], piece))
        pieces += [piece for piece in ranked if piece not in pieces][: most - len(pieces)]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return str(tokenizer.to_str())


@cache
def byte_level() -> str:
    """RoBERTa's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus.passages()[:800], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        sep=("</s>", 2), cls=("<s>", 0), add_prefix_space=False
    )
    return str(tokenizer.to_str())


WORDPIECE = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
BYTE_LEVEL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}


def make(folder: Path, architecture: str, *, seed: int = 0, **config: Any) -> Path:
    """Write a random model, its tokenizer and its config to a folder.

    Args:
        architecture: transformers' class, e.g. `BertForTokenClassification`.
        config: beside, or instead of, `SIZES`.
    """
    kind = getattr(transformers, architecture)
    family = kind.config_class.model_type
    bytes_ = family in (*OFFSET, "modernbert", "gte")
    extra = {"max_position_embeddings": 162, "type_vocab_size": 1} if family in OFFSET else {}
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    values = SIZES | ({**extra, **tokens} if bytes_ else {"pad_token_id": 0}) | config
    torch.manual_seed(seed)
    save(kind(kind.config_class(**values)), folder)
    raw = byte_level() if bytes_ else wordpiece()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(raw),
        model_max_length=160,
        # What the pipelines of transformers hand to the original.
        model_input_names=["input_ids", "attention_mask"]
        + (["token_type_ids"] if family in ("bert", "electra", "albert") else []),
        **(BYTE_LEVEL if bytes_ else WORDPIECE),
    )
    tokenizer.save_pretrained(folder)
    return folder


def make_encoder_decoder(folder: Path, architecture: str, *, spread: float = SPREAD, **config: Any) -> Path:
    """A random encoder-decoder with a fast tokenizer whose texts end in `</s>`, as `make`.

    Args:
        config: beside, or instead of, the sizes; what belongs to generation goes to its own config.
    """
    kind = getattr(transformers, architecture)
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "d_model": 32, "pad_token_id": 1, "eos_token_id": 2}
    if kind.config_class.model_type in ("t5", "mt5"):
        sizes |= {"d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 1}
    else:
        for side in ("encoder", "decoder"):
            sizes |= {f"{side}_layers": 2, f"{side}_attention_heads": 4, f"{side}_ffn_dim": 64}
        sizes |= {"max_position_embeddings": 160, "bos_token_id": 0, "decoder_start_token_id": 2}
    torch.manual_seed(0)
    model = kind(kind.config_class(**sizes | config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(spread)
    model.save_pretrained(folder)
    raw = Tokenizer.from_str(byte_level())
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=128, **BYTE_LEVEL)
    tokenizer.save_pretrained(folder)
    return folder


def teach(folder: Path, pairs: Mapping[str, str], *, steps: int = 100, rate: float = 0.02) -> None:
    """Train an encoder-decoder, in place, to answer some texts, so that none of its tokens is a close call.

    Args:
        pairs: text -> answer.
    """
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(list(pairs), return_tensors="pt", padding=True, truncation=True)
    labels = tokenizer(list(pairs.values()), return_tensors="pt", padding=True).input_ids
    labels[labels == tokenizer.pad_token_id] = -100
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for step in range(steps):
        # Without the slow start Marian learns it or not, by chance.
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 20) * (1 - step / steps)
        optimizer.zero_grad()
        inputs = {"input_ids": given.input_ids, "attention_mask": given.attention_mask}
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder, safe_serialization=True)


def make_vit(folder: Path, **config: Any) -> Path:
    """A random vision transformer with an image processor that resizes, crops and normalizes."""
    return make_image(folder, "ViTForImageClassification", **VISION, **config)


VISION = {k: v for k, v in SIZES.items() if k not in ("vocab_size", "max_position_embeddings")} | {
    "image_size": 32,
    "patch_size": 8,
}


def make_image(
    folder: Path,
    architecture: str,
    *,
    processor: str = "ViTImageProcessor",
    spread: float = SPREAD,
    **config: Any,
) -> Path:
    """Write a random image classifier and the settings of its image processor, for 32 x 32 pixels.

    Args:
        processor: transformers' class.
        spread: see `save`.
        config: of the model.
    """
    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    save(kind(kind.config_class(**config)), folder, spread)
    settings, sides = folder / "preprocessor_config.json", {"height": 32, "width": 32}
    # By its name in a file, since transformers 5 has two classes for each.
    settings.write_text(json.dumps({"image_processor_type": processor}))
    whole = "shortest_edge" not in AutoImageProcessor.from_pretrained(folder).size
    changes = {"size": sides if whole else {"shortest_edge": 32}, "crop_size": sides}
    settings.write_text(AutoImageProcessor.from_pretrained(folder, **changes).to_json_string())
    return folder


def make_decoder(folder: Path, architecture: str, **config: Any) -> Path:
    """Write a random decoder with a byte-level tokenizer.

    Args:
        config: beside, or instead of, `SIZES` with two heads of keys and values.
    """
    torch.manual_seed(0)
    kind = getattr(transformers, architecture)
    sizes = {"hidden_size": 64, "max_position_embeddings": 1024, "num_key_value_heads": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    save(kind(kind.config_class(**SIZES | sizes | tokens | config)), folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(byte_level()), **BYTE_LEVEL)
    tokenizer.save_pretrained(folder)
    return folder


def save(model: Any, folder: Path, spread: float = SPREAD) -> None:
    """Write a random model, its matrices multiplied by `spread`: as they are, its answers hardly differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(spread)
    model.eval().save_pretrained(folder)
