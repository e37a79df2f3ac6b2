"""The bytes of a PNG or JPEG file to the pixels a network reads: the first step of image classification.

Does with Pillow and numpy what transformers does: turn a picture as its EXIF data say, make it RGB, resize,
crop the centre, rescale, normalize. What cannot be decoded, or would be too large in memory, is an error of
its request.

Parameters in config.pbtxt: `processor` (JSON: `size`, `resample`, `crop`, `scale`, `mean`, `std`; see
`Processor`), `max_image_bytes` and `max_image_pixels`.
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from serving import heartbeat
from serving.models.responses import answers, inputs

FORMATS = ("PNG", "JPEG")


class BadImage(ValueError):
    """An image that cannot be read; the message says why."""


@dataclass(frozen=True)
class Processor:
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
        """For the parameter `processor`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Processor:
        """From the parameter `processor`."""
        values: dict[str, Any] = json.loads(text)
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**values)

    def pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """float32 [3, height, width] of a picture in RGB."""
        if self.size is not None:
            image = image.resize(self._resized(image), resample=Image.Resampling(self.resample))
        array = np.asarray(image)
        if self.crop is not None:
            array = _centre(array, *self.crop)
        values = array.astype(np.float32) * np.float32(self.scale)
        if self.mean:
            values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))

    def _resized(self, image: Image.Image) -> tuple[int, int]:
        assert self.size is not None  # noqa: S101 - the caller has looked
        if len(self.size) == 2:
            return self.size[1], self.size[0]
        short, long = sorted(image.size)
        longer = int(self.size[0] * long / short)
        return (self.size[0], longer) if image.width <= image.height else (longer, self.size[0])


def _centre(array: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle of [rows, columns, channels]; black around an image that is too small."""
    rows, columns = array.shape[:2]
    top, left = (rows - height) // 2, (columns - width) // 2
    canvas = np.zeros((height, width, array.shape[2]), array.dtype)
    inside = array[max(0, top) : top + height, max(0, left) : left + width]
    begin = (max(0, -top), max(0, -left))
    canvas[begin[0] : begin[0] + inside.shape[0], begin[1] : begin[1] + inside.shape[1]] = inside
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
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        # Before a pixel is decoded: a file of some kilobytes can hold a picture of gigabytes.
        if image.width * image.height > max_pixels:
            raise BadImage(f"{what} has {image.width} x {image.height} pixels, at most {max_pixels} in all")
        image.load()
        image = ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise BadImage(f"{what} is not the content of a PNG or JPEG file") from None
    except BadImage:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error) as error:
        raise BadImage(f"{what} is a broken file: {error}") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"{what} is too large: {error}") from None
    return image


class TritonPythonModel:
    """Triton's interface: `image` BYTES [n, 1] to `pixel_values` FP32 [n, 3, height, width]."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the parameters."""
        heartbeat.start()
        parameters = {
            key: value["string_value"]
            for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        self._processor = Processor.from_json(parameters["processor"])
        self._max_bytes = int(parameters["max_image_bytes"])
        self._max_pixels = int(parameters["max_image_pixels"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order; a bad image fails its own request only."""
        return answers(requests, self._answer)

    def _answer(self, request: Any) -> dict[str, NDArray]:
        files = inputs(request, "image")[0].reshape(-1)
        images = [
            decode(content, f"image {index}", max_bytes=self._max_bytes, max_pixels=self._max_pixels)
            for index, content in enumerate(files)
        ]
        pixels = [self._processor.pixels(image) for image in images]
        sizes = sorted({f"{array.shape[2]} x {array.shape[1]}" for array in pixels})
        if len(sizes) > 1:
            raise BadImage(f"the pictures become {' and '.join(sizes[:2])} pixels: send each size by itself")
        return {"pixel_values": np.stack(pixels)}
