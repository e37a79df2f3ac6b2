"""Pictures that are small as files and large in memory are refused, others prepared as by the original."""

from __future__ import annotations

import io
import struct
import tracemalloc
import weakref
import zlib
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image, ImageOps
from transformers import CLIPImageProcessor

from serving.models import images
from serving.models.images import MAX_RESIZED_PIXELS, BadImage, Processor, decode

SHORTEST = Processor(size=(224,), resample=3, crop=(224, 224), scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3)
FIXED = Processor(size=(224, 224), resample=2, crop=None, scale=1.0)


def _file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _decode(content: bytes) -> Image.Image:
    return decode(content, "image 0", max_bytes=1 << 24, max_pixels=50_000_000)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _with_chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG of one pixel with one more chunk before its pixels."""
    content = _file(Image.new("RGB", (1, 1)))
    return content[:33] + _chunk(kind, data) + content[33:]


def exif_bomb(size: int) -> bytes:
    """EXIF data of which half are entries, each of which points to the other half."""
    count = size // 2 // 12
    place = 8 + 2 + 12 * count + 4
    entries = b"".join(struct.pack("<HHII", tag + 1, 7, size - place, place) for tag in range(count))
    head = b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4)
    return head + bytes(size - len(head))


def jpeg_with(exif: bytes, between: bytes = b"") -> bytes:
    """A JPEG whose EXIF data take as many segments as they need."""
    content = _file(Image.new("RGB", (8, 8)), "JPEG")
    segments = b""
    for place in range(0, len(exif), 65_000):
        data = b"Exif\0\0" + exif[place : place + 65_000]
        segments += b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + between
    return content[:2] + segments + content[2:]


@pytest.mark.parametrize(
    ("processor", "width", "height", "said"),
    [
        (SHORTEST, 1, 60_000, "1 x 60000 pixels; to resize it to 224 x 13440000 takes .* at most 16777216"),
        (SHORTEST, 60_000, 1, "to resize it to 13440000 x 224"),
        # Of the width first: 224 x 200,000 pixels lie between 1 x 200,000 and 224 x 224.
        (FIXED, 1, 200_000, "takes the memory of 44800000 pixels"),
        # The weights of 2,000,000 pixels, though there is no picture of more pixels.
        (FIXED, 2_000_000, 1, "takes the memory of 36000000 pixels"),
        (Processor(size=None, resample=2, crop=None, scale=1.0), 2000, 2000, "becomes 2000 x 2000 pixels"),
        (Processor(size=(1024,), resample=2, crop=None, scale=1.0), 1, 2, "becomes 1024 x 2048 pixels"),
    ],
)
def test_a_size_is_refused_before_it_is_made(
    processor: Processor, width: int, height: int, said: str
) -> None:
    with pytest.raises(BadImage, match=said):
        processor.check_size(width, height, "image 0", max_pixels=MAX_RESIZED_PIXELS)


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (2, 601), (97, 211), (40, 9000)])
def test_what_is_taken_is_prepared_as_by_transformers(size: tuple[int, int]) -> None:
    chance = np.random.default_rng(1)
    picture = Image.fromarray(chance.integers(0, 256, (*size[::-1], 3), np.uint8))
    SHORTEST.check_size(*size, "", max_pixels=MAX_RESIZED_PIXELS)
    original = CLIPImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    expected = original(picture, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
    np.testing.assert_allclose(SHORTEST.pixels(picture), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(3, 2), (33, 71), (8, 5), (7, 40), (640, 9)])
def test_a_crop_that_is_larger_than_the_picture(size: tuple[int, int]) -> None:
    picture = Image.fromarray(np.random.default_rng(2).integers(1, 256, (*size[::-1], 3), np.uint8))
    original = CLIPImageProcessor(
        do_resize=False, do_rescale=False, do_normalize=False, crop_size={"height": 31, "width": 44}
    )
    expected = original(picture, return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
    got = Processor(size=None, resample=2, crop=(31, 44), scale=1.0).pixels(picture)
    np.testing.assert_array_equal(got, expected)


def test_the_pictures_of_a_request_are_not_in_memory_at_once() -> None:
    model: Any = images.TritonPythonModel()
    model._max_bytes, model._max_pixels, model._max_resized = 1 << 24, 50_000_000, MAX_RESIZED_PIXELS
    content = _file(Image.new("L", (20, 20)))
    kept: list[weakref.ref[Any]] = []
    alive: list[int] = []

    class Counted(Processor):
        def pixels(self, image: Image.Image) -> Any:
            alive.append(sum(1 for entry in kept if entry() is not None))
            return super().pixels(image)

    def noting(*args: Any, **options: Any) -> Image.Image:
        made = decode(*args, **options)
        kept.append(weakref.ref(made))
        return made

    model._processor = Counted(**msgspec.structs.asdict(FIXED))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "decode", noting)
        assert model._pixels([content] * 4, 4).shape == (4, 3, 224, 224)
    assert alive == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (jpeg_with(exif_bomb(400_000)), "image 0 has 400042 bytes of EXIF data, at most 65536"),
        # Pillow takes F0 for a marker without a length, and goes on right behind it.
        (jpeg_with(exif_bomb(400_000), b"\xff\xf0\xff\xff"), "image 0 has 400042 bytes of EXIF data"),
        (_with_chunk(b"eXIf", exif_bomb(400_000)), "image 0 has 400006 bytes of EXIF data"),
        (
            _with_chunk(
                b"zTXt",
                b"Raw profile type exif\0\0"
                + zlib.compress(
                    b"\nexif\n  200006\n" + b"Exif\0\0".hex().encode() + exif_bomb(200_000).hex().encode()
                ),
            ),
            "image 0 has 2000.. bytes of EXIF data",
        ),
        (_with_chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(1 << 26))), "image 0 is a broken file: Decompr"),
        (_with_chunk(b"iCCP", b"c\0\0" + zlib.compress(bytes(1 << 26))), "image 0 is a broken file: Decompr"),
        (_file(Image.new("I;16", (9000, 9000))), "9000 x 9000 pixels, at most 50000000"),
    ],
    ids=["exif", "exif-hidden", "eXIf", "exif-in-text", "zTXt", "iCCP", "16-bit"],
)
def test_files_that_grow(content: bytes, said: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadImage, match=said):
            _decode(content)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_data_of_the_usual_size_turn_the_picture(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x9286] = b"x" * 30_000
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (5, 9, 3), np.uint8))
    content = _file(picture, kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    np.testing.assert_array_equal(np.asarray(_decode(content)), np.asarray(expected))


def test_an_animation_is_its_first_picture() -> None:
    frames = [Image.new("RGB", (4, 3), (n, 0, 0)) for n in range(200)]
    content = _file(frames[0], save_all=True, append_images=frames[1:])
    assert np.asarray(_decode(content)).tolist() == np.asarray(frames[0]).tolist()
