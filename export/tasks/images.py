"""Image classification: the bytes of a picture's file in, labels out."""

from __future__ import annotations

import csv
import io
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from PIL import Image
from transformers import PreTrainedModel

from export.source import Checkpoint, read_json
from export.tasks import heads, labels
from export.tasks.task import Row, Task, labels_of
from export.tasks.text import TOP, accuracy, in_order
from serving.models.images import Processor
from shoal.errors import ExportError, UsageError

# Image processors whose work is: resize, crop the centre, rescale, normalize.
_PLAIN = ("ViT", "DeiT", "BEiT", "Beit", "CLIP", "Bit", "Siglip")


class ImageClassification(Task):
    """A PNG or JPEG to labels. `--eval-data`: CSV of path,label; paths are relative to the file."""

    name = "image-classification"
    auto = "AutoModelForImageClassification"
    layout = None
    inputs: ClassVar = {"image": 1}
    outputs = ("label", "score")
    max_batch_size = 32

    def head(self, backbone: PreTrainedModel, checkpoint: Checkpoint) -> heads.Head:
        single = checkpoint.config.get("problem_type") != "multi_label_classification"
        return heads.Classification(backbone, "softmax" if single else "sigmoid")

    def finish(self, model: onnx.ModelProto, head: heads.Head, checkpoint: Checkpoint) -> None:
        labels.name_classes(model, labels_of(checkpoint), top=TOP)

    def row(self, passage: str, index: int, checkpoint: Checkpoint) -> Row:
        return {"image": [sample_image(index)]}

    def score(self, answers: Any, eval_data: Path, checkpoint: Checkpoint) -> float:
        hint = "a CSV file of path,label with that line at its top"
        try:
            with eval_data.open(encoding="utf-8", newline="") as file:
                entries = list(csv.DictReader(file))
            files = [(eval_data.parent / entry["path"]).read_bytes() for entry in entries]
            wanted = [entry["label"] for entry in entries]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"evaluation data {eval_data} cannot be read: {error}", hint=hint) from error
        if len(entries) < 10:
            raise UsageError(f"evaluation data {eval_data} has {len(entries)} rows, at least 10 are needed")
        found = in_order(answers, [{"image": [f]} for f in files], lambda out, _: out["probabilities"])
        return accuracy([labels_of(checkpoint)[index] for index in found.argmax(1)], wanted)


def processor_of(checkpoint: Checkpoint) -> Processor:
    """How the checkpoint wants its pictures, from `preprocessor_config.json`.

    Raises:
        ExportError: it is missing, or asks for something else than a plain resize and crop.
    """
    config = read_json(checkpoint.folder / "preprocessor_config.json")
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    if not kind.startswith(_PLAIN):
        raise ExportError(
            f"{checkpoint.id} prepares images with {kind or '(not stated)'}, which is not supported"
        )
    normalized = config.get("do_normalize", True)
    return Processor(
        size=_size(config["size"]) if config.get("do_resize", True) else None,
        resample=int(config.get("resample", 2)),
        crop=_height_width(config["crop_size"]) if config.get("do_center_crop") else None,
        scale=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
        mean=tuple(config["image_mean"]) if normalized else (),
        std=tuple(config["image_std"]) if normalized else (),
    )


def _size(size: Any) -> tuple[int, ...]:
    if isinstance(size, dict) and "shortest_edge" in size:
        return (int(size["shortest_edge"]),)
    return _height_width(size)


def _height_width(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        return int(size["height"]), int(size["width"])
    return int(size), int(size)


@cache
def _photographs() -> tuple[Image.Image, ...]:
    from sklearn.datasets import load_sample_images  # noqa: PLC0415 - slow to import, rarely needed

    return tuple(Image.fromarray(array) for array in load_sample_images().images)


@cache
def sample_image(index: int) -> bytes:
    """A part of one of scikit-learn's two photographs, as PNG or JPEG; the index decides which."""
    chance = np.random.default_rng(index)
    photograph = _photographs()[index % 2]
    width, height = (int(chance.integers(64, side)) for side in photograph.size)
    left = int(chance.integers(photograph.width - width + 1))
    top = int(chance.integers(photograph.height - height + 1))
    file = io.BytesIO()
    photograph.crop((left, top, left + width, top + height)).save(file, "PNG" if index % 3 else "JPEG")
    return file.getvalue()


def smallest_image() -> bytes:
    """A PNG of one grey pixel."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()
