"""The bytes of a PNG or JPEG file to the pixels a network reads: the first step of image classification.

Does with Pillow and numpy what transformers does: turn a picture as its EXIF data say, make it RGB, resize,
crop the centre, rescale, normalize. What cannot be decoded, or would be too large in memory, is an error of
its request. The pictures of a request are decoded one after the other, so that one of them is in memory at a
time.

Parameters in config.pbtxt: `processor` (JSON: `size`, `resample`, `crop`, `scale`, `mean`, `std`; see
`Processor`), `max_image_bytes` and `max_image_pixels` of a file, `max_resized_pixels` of what resizing needs
(optional, `MAX_RESIZED_PIXELS` where it is absent).
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import MARKER

from serving import heartbeat
from serving.models.admission import Admission
from serving.models.responses import answers, inputs
from serving.parameters import parameters_of

FORMATS = ("PNG", "JPEG")
# Of one picture while it is resized: 64 MiB in Pillow. The ratio of its sides may be 1 to 330 where its
# shorter side becomes 224 pixels.
MAX_RESIZED_PIXELS = 1 << 24
# Of one prepared picture where the config does not say its size. Triton joins the pictures of many requests,
# each of 12 bytes a pixel.
MAX_PREPARED_PIXELS = 1 << 20
# EXIF data fit into one segment of a JPEG. Pillow copies what each of their entries points to, and thousands
# of entries may point to the same bytes.
MAX_EXIF_BYTES = 1 << 16
# What Pillow keeps for each pixel of a side, in pixels of 4 bytes: up to 9 weights of 8 bytes, with Lanczos.
_WEIGHTS = 18


class BadImage(ValueError):
    """An image that cannot be read; the message says why."""


class Processor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From any picture to one of fixed size.

    Attributes:
        size: [height, width] in pixels to which it is resized, or [shortest edge]; None: not resized.
        resample: Pillow's filter, e.g. 2 for bilinear, 3 for bicubic.
        crop: [height, width] of the centre that is kept; None: all.
        scale: what a value of 0 to 255 is multiplied by.
        mean, std: of each channel, after scaling; empty: not normalized.
    """

    size: tuple[int, ...] | None
    resample: int
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def to_json(self) -> str:
        """Write the settings as the parameter `processor`."""
        return json.dumps(msgspec.structs.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Processor:
        """Read the settings from the parameter `processor`.

        Raises:
            ValueError: it is not JSON, or a setting is missing, unknown or has the wrong type.
        """
        return msgspec.json.decode(text, type=cls)

    def pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """float32 [3, height, width] of a picture in RGB."""
        if self.size is not None:
            image = image.resize(self.resized(*image.size), resample=Image.Resampling(self.resample))
        array = np.asarray(image) if self.crop is None else _centre(image, *self.crop)
        values = array.astype(np.float32) * np.float32(self.scale)
        if self.mean:
            values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of a picture once it is resized, in pixels."""
        if self.size is None:
            return width, height
        if len(self.size) == 2:
            return self.size[1], self.size[0]
        short, long = sorted((width, height))
        longer = int(self.size[0] * long / short)
        return (self.size[0], longer) if width <= height else (longer, self.size[0])

    def check_size(self, width: int, height: int, what: str, *, max_pixels: int) -> None:
        """Refuse a picture, before it is resized, for which resizing needs too much memory.

        Pillow resizes the width first and then the height, so that there is a picture of the new width and
        the old height between. For each side it keeps the weights of all pixels that it reads.

        Args:
            width, height: in pixels, turned as its EXIF data say.
            what: names it in an error.
            max_pixels: of the resized picture, and of the one between.

        Raises:
            BadImage: it needs more.
        """
        if self.size is not None:
            wide, high = self.resized(width, height)
            weights = _WEIGHTS * max(wide, high, width, height)
            most = max(wide * high, wide * height, weights)
            if most > max_pixels:
                raise BadImage(
                    f"{what} has {width} x {height} pixels; to resize it to {wide} x {high} takes the memory"
                    f" of {most} pixels, at most {max_pixels} are accepted: send a less narrow picture"
                )
        if self.crop is None and len(self.size or ()) < 2:
            wide, high = self.resized(width, height)
            if wide * high > MAX_PREPARED_PIXELS:
                raise BadImage(
                    f"{what} becomes {wide} x {high} pixels, at most {MAX_PREPARED_PIXELS} are accepted"
                )


def _centre(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """The middle of a picture [height, width, channels]; black around one that is too small."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    box = (max(0, left), max(0, top), min(left + width, image.width), min(top + height, image.height))
    inside = np.asarray(image.crop(box))  # before it is an array, of which what is cut off would be a part
    canvas = np.zeros((height, width, inside.shape[2]), inside.dtype)
    row, column = max(0, -top), max(0, -left)
    canvas[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return canvas


def decode(content: bytes, what: str, *, max_bytes: int, max_pixels: int) -> Image.Image:
    """A picture in RGB from the bytes of its file, turned as its EXIF data say.

    Args:
        what: names it in an error.

    Raises:
        BadImage: it is too large, no PNG or JPEG, or broken.
    """
    if len(content) > max_bytes:
        raise BadImage(f"{what} has {len(content)} bytes, at most {max_bytes} are accepted")
    try:
        _check_exif(_joined_exif(content), what)  # Pillow reads a JPEG's when it opens it
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        # Before a pixel is decoded: a file of some kilobytes can hold a picture of gigabytes.
        if image.width * image.height > max_pixels:
            raise BadImage(f"{what} has {image.width} x {image.height} pixels, at most {max_pixels} in all")
        image.load()
        # Of a PNG, in whose text they are written as hexadecimal digits by some tools.
        _check_exif(len(image.info.get("exif", b"")), what)
        _check_exif(len(image.info.get("Raw profile type exif", "")) // 2, what)
        ImageOps.exif_transpose(image, in_place=True)
        return image if image.mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError:
        raise BadImage(f"{what} is not the content of a PNG or JPEG file") from None
    except BadImage:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error) as error:
        raise BadImage(f"{what} is a broken file: {error}") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"{what} is too large: {error}") from None


def _check_exif(size: int, what: str) -> None:
    if size > MAX_EXIF_BYTES:
        raise BadImage(
            f"{what} has {size} bytes of EXIF data, at most {MAX_EXIF_BYTES} are accepted: remove them"
        )


def _joined_exif(content: bytes) -> int:
    """Bytes of the EXIF data of a JPEG, whose segments before the picture Pillow joins; 0 of another file."""
    if not content.startswith(b"\xff\xd8\xff"):
        return 0
    place = size = 0
    while (place := content.find(b"\xff", place)) >= 0:
        marker = int.from_bytes(content[place : place + 2], "big")
        _, _, reads = MARKER.get(marker, ("", "", None))
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == 0xFFE1 and content[place + 4 : place + 10] == b"Exif\0\0":
            size += length - 2
        if marker == 0xFFDA:  # the picture begins
            break
        # As Pillow does: a segment is skipped by its length, and what is none byte by byte.
        place += 2 + max(length, 2) if reads else 2 if marker in MARKER else 1
    return size


class TritonPythonModel:
    """Triton's interface: `image` BYTES [n, 1] to `pixel_values` FP32 [n, 3, height, width]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters."""
        heartbeat.start()
        config = json.loads(args["model_config"])
        parameters = parameters_of(config)
        self._processor = Processor.from_json(parameters["processor"])
        self._max_bytes = int(parameters["max_image_bytes"])
        self._max_pixels = int(parameters["max_image_pixels"])
        self._max_resized = int(parameters.get("max_resized_pixels", MAX_RESIZED_PIXELS))
        self._admission = Admission.of(args["model_name"], config)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order; a bad image fails its own request only."""
        return answers(requests, self._answer, self._admission)

    def _answer(self, request: Any) -> dict[str, NDArray]:
        files = inputs(request, "image")[0].reshape(-1)
        return {"pixel_values": self._pixels(files, len(files))}

    def _pixels(self, files: Iterable[bytes], count: int) -> NDArray[np.float32]:
        """The pictures of a request, `count` of them, each prepared before the next is decoded."""
        made: NDArray[np.float32] | None = None
        for index, content in enumerate(files):
            what = f"image {index}"
            image = decode(content, what, max_bytes=self._max_bytes, max_pixels=self._max_pixels)
            self._processor.check_size(*image.size, what, max_pixels=self._max_resized)
            pixels = self._processor.pixels(image)
            del image
            if made is None:
                made = np.empty((count, *pixels.shape), np.float32)
            if pixels.shape != made.shape[1:]:
                sizes = sorted(f"{width} x {height}" for _, height, width in (pixels.shape, made.shape[1:]))
                raise BadImage(f"the pictures become {' and '.join(sizes)} pixels: send each size by itself")
            made[index] = pixels
        assert made is not None  # noqa: S101 - Triton knows no request without rows
        return made
