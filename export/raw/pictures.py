"""Pictures that hurt: turned by their EXIF data, of other colours, of odd sizes."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112  # EXIF
# Width and height. None is 1 or 3 pixels high: transformers takes such a height for the number of channels.
_SIZES = (
    *((1, 2), (3, 2), (1, 64), (64, 2), (31, 33), (225, 223)),
    *((224, 224), (640, 480), (37, 411), (1, 300), (1, 3000)),
)


@cache
def hard_pictures() -> tuple[bytes, ...]:
    """The contents of some 40 PNG and JPEG files."""
    base = _scene(96, 64)
    files = [_jpeg(base, orientation) for orientation in range(1, 9)]
    files += [_png(base, orientation) for orientation in (3, 6)]
    files += [_png(base.convert(mode)) for mode in ("L", "P", "1", "RGBA", "LA", "I;16")]
    files += [_png(_transparent(base)), _png(base.convert("P", palette=Image.Palette.ADAPTIVE, colors=7))]
    files += [_jpeg(base.convert(mode)) for mode in ("L", "CMYK", "YCbCr")]
    files += [_png(_scene(width, height)) for width, height in _SIZES]
    files += [_png(Image.new("RGB", (50, 40), colour)) for colour in ("black", "white", (128, 0, 255))]
    chance = np.random.default_rng(3)
    files += [_png(Image.fromarray(chance.integers(0, 256, (48, 80, 3), np.uint8))) for _ in range(6)]
    return tuple(files)


def _scene(width: int, height: int) -> Image.Image:
    """A picture whose four corners differ, so that a turn or a flip shows."""
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    channels = np.stack([x, y, (x + 2 * y) % 256], axis=2)
    channels[: height // 3, : width // 4] = (250, 20, 20)
    return Image.fromarray(channels.astype(np.uint8))


def _transparent(picture: Image.Image) -> Image.Image:
    made = picture.convert("RGBA")
    made.putalpha(Image.linear_gradient("L").resize(picture.size))
    return made


def _jpeg(picture: Image.Image, orientation: int | None = None) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, exif=_exif(orientation))
    return file.getvalue()


def _png(picture: Image.Image, orientation: int | None = None) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", exif=_exif(orientation))
    return file.getvalue()


def _exif(orientation: int | None) -> Image.Exif:
    exif = Image.Exif()
    if orientation is not None:
        exif[_ORIENTATION] = orientation
    return exif
