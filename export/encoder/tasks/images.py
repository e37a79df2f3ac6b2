"""Image classification: the bytes of a picture's file in, labels out."""

from __future__ import annotations

import csv
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image
from transformers import PreTrainedModel

from export.checkpoint.opened import Opened
from export.encoder.tasks import heads, labels
from export.encoder.tasks.task import Row, Task
from export.encoder.tasks.text import accuracy, in_order
from serving.models.images import Processor
from shoal import tasks
from shoal.errors import ExportError, UsageError


class ImageClassification(Task):
    """A PNG or JPEG to labels. `--eval-data`: CSV of path,label; paths are relative to the file."""

    name = tasks.IMAGES
    auto = "AutoModelForImageClassification"
    max_batch_size = 32

    def head(self, backbone: PreTrainedModel, opened: Opened) -> heads.Head:
        # As transformers' pipeline for pictures, which knows no regression.
        several = opened.config.problem_type != "multi_label_classification" and opened.config.num_labels > 1
        return heads.Classification(backbone, "softmax" if several else "sigmoid")

    def finish(self, model: onnx.ModelProto, head: heads.Head, opened: Opened, top_k: int) -> None:
        labels.name_classes(model, opened.labels, top=top_k)

    def row(self, passage: str, index: int, opened: Opened) -> Row:
        return {"image": [sample_image(index)]}

    def score(self, answers: Any, eval_data: Path, opened: Opened) -> float:
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
        return accuracy([opened.labels[index] for index in found.argmax(1)], wanted)


def processor_of(opened: Opened) -> Processor:
    """How the checkpoint wants its pictures, as transformers' image processor does it.

    What the processor's own settings mean is not taken on trust: pictures of several shapes are prepared by
    both, and must come out the same.

    Raises:
        ExportError: it does something else than resize, crop the centre, rescale and normalize.
    """
    library = opened.image_processor
    kind = type(library).__name__
    try:
        made = _derived(library)
        apart = max(_apart(made, library, picture) for picture in _shapes())
    except (AttributeError, KeyError, TypeError, ValueError):
        apart = float("inf")
    if not apart < _PIXEL:
        others = ", ".join(_others(library)) or f"pixels differ by {apart:.2g}"
        raise ExportError(
            f"{opened.checkpoint.id} prepares pictures with {kind} in a way that is not supported: {others}",
            hint="resize, crop of the centre, rescale and normalize are: choose a model that needs no more",
        )
    return made


_PIXEL = 1e-3  # largest difference of a prepared pixel, whose values are about 1
_DONE = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


def _others(library: Any) -> list[str]:
    """What a processor does besides, by the names of its settings."""
    named = [name for name in vars(library) if name.startswith("do_") and name not in _DONE]
    return [name for name in (*named, "rescale_offset", "include_top") if getattr(library, name, False)]


def _derived(library: Any) -> Processor:
    """The settings of a processor of transformers as ours."""
    size = _size(library.size) if library.do_resize else None
    crop = _height_width(library.crop_size) if getattr(library, "do_center_crop", False) else None
    if size and getattr(library, "crop_pct", None) is not None:  # ConvNeXT: small pictures lose their border
        edge = size[0]
        whole = edge >= 384  # and large ones do not, as its authors trained it
        size, crop = ((edge, edge), None) if whole else ((int(edge / library.crop_pct),), (edge, edge))
    normalizes = getattr(library, "do_normalize", False)  # MobileViT's has no such setting
    return Processor(
        size=size,
        resample=int(library.resample),
        crop=crop,
        scale=float(library.rescale_factor) if library.do_rescale else 1.0,
        mean=_channels(library.image_mean) if normalizes else (),
        std=_channels(library.image_std) if normalizes else (),
    )


def _size(size: Any) -> tuple[int, ...]:
    return (int(size["shortest_edge"]),) if "shortest_edge" in size else _height_width(size)


def _height_width(size: Any) -> tuple[int, int]:
    return int(size["height"]), int(size["width"])


def _channels(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list | tuple) else (float(value),) * 3


def _apart(made: Processor, library: Any, picture: Image.Image) -> float:
    """The largest difference of a pixel between a picture prepared by both."""
    expected = np.asarray(library(picture, return_tensors="np")["pixel_values"])[0]
    got = made.pixels(picture)
    return float(np.abs(got - expected).max()) if got.shape == expected.shape else float("inf")


def _shapes() -> list[Image.Image]:
    """Pictures that are wide, high, odd, tiny and large, of noise: what is shifted or flipped shows."""
    chance = np.random.default_rng(0)
    sizes = ((140, 60), (60, 140), (33, 71), (3, 2), (640, 481))
    return [Image.fromarray(chance.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


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
