import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sanitizer.data.pixels import check_channels, to_pixels
from sanitizer.data.source import Payload
from sanitizer.errors import CorruptImage, DataUnreadable

from .files import encode, pixels, png


def converted(
    payload: Payload, channels: int = 3, size: tuple[int, int] = (8, 8), max_pixels: int = 1 << 20
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return to_pixels(
        payload, "cat/a.png", input_size=size, channels=channels, max_pixels=max_pixels
    )[0]


def test_an_image_of_the_models_size_keeps_its_pixels() -> None:
    result, resized = to_pixels(png(1), "a", input_size=(8, 8), channels=3, max_pixels=1 << 20)
    np.testing.assert_array_equal(result, pixels(1).transpose(2, 0, 1))
    assert not resized


def test_arrays_and_files_of_the_same_pixels_agree() -> None:
    for size in ((8, 8), (5, 4)):
        np.testing.assert_array_equal(converted(png(1), 3, size), converted(pixels(1), 3, size))


def test_grey_becomes_three_equal_channels() -> None:
    grey = pixels(1, channels=1)
    np.testing.assert_array_equal(converted(encode(grey)), np.stack([grey] * 3))


def test_colours_become_grey_by_luma() -> None:
    result = converted(png(1), channels=1)
    luma = pixels(1).astype(float) @ [0.299, 0.587, 0.114]
    assert result.shape == (1, 8, 8)
    assert np.abs(result[0] - luma).max() <= 1


def test_alpha_is_dropped() -> None:
    rgba = np.dstack([pixels(1), np.zeros((8, 8), np.uint8)])
    np.testing.assert_array_equal(converted(encode(rgba)), pixels(1).transpose(2, 0, 1))


def test_a_palette_with_transparency_decodes_without_a_warning() -> None:
    image = Image.fromarray(pixels(1)).quantize(16)
    image.info["transparency"] = bytes(range(16))
    assert converted(encode(image)).shape == (3, 8, 8)


def test_sixteen_bit_grey_keeps_its_upper_bits() -> None:
    deep = (pixels(1, channels=1).astype(np.uint16) << 8) + 77
    result = converted(encode(Image.fromarray(deep)), channels=1)
    np.testing.assert_array_equal(result[0], pixels(1, channels=1))


def test_another_size_is_resized_with_antialiasing() -> None:
    # Stripes of one pixel: without antialiasing a quarter of the size shows stripes, with it grey.
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    result, resized = to_pixels(
        encode(stripes), "a", input_size=(16, 16), channels=1, max_pixels=1 << 20
    )
    assert resized
    assert result[0, 4:-4, 4:-4].min() > 120
    assert result[0, 4:-4, 4:-4].max() < 135


def test_exif_orientation_is_left_alone() -> None:
    image = Image.fromarray(pixels(1, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn by 90 degrees to look right.
    turned = encode_with_exif(image, exif)
    assert Image.open(turned).getexif()[0x0112] == 6
    np.testing.assert_array_equal(
        converted(turned.getvalue(), 3, (8, 4)), pixels(1, 8, 4).transpose(2, 0, 1)
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_image_is_corrupt(kind: str, share: float) -> None:
    whole = encode(pixels(1, 64, 64), kind)
    with pytest.raises(CorruptImage, match=r"cat/a\.png"):
        converted(whole[: int(len(whole) * share)])


@pytest.mark.parametrize(
    ("encoded", "reason"), [(b"", "the file is empty"), (b"GIF", "it is none of JPEG, PNG")]
)
def test_no_image_is_corrupt(encoded: bytes, reason: str) -> None:
    with pytest.raises(CorruptImage, match=reason):
        converted(encoded)


def test_a_formula_format_is_not_even_tried() -> None:
    with pytest.raises(CorruptImage, match="it is none of"):
        converted(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")


def test_too_many_pixels_are_refused_by_the_header_alone() -> None:
    with pytest.raises(CorruptImage, match="8 x 9 pixels, at most 71 are"):
        converted(png(1, 9, 8), max_pixels=71)


def test_a_decompression_bomb_is_refused() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(CorruptImage, match="too many pixels"):
        converted(bomb)


@pytest.mark.parametrize("channels", [2, 4])
def test_a_model_of_other_channels_is_refused(channels: int) -> None:
    with pytest.raises(DataUnreadable, match=f"takes {channels} channels"):
        check_channels(channels)


def encode_with_exif(image: Image.Image, exif: Image.Exif) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    return buffer
