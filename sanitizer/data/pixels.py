"""One image, encoded or not, to the pixels of a model's input."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sanitizer.data.source import Payload
from sanitizer.errors import CorruptImage, DataUnreadable

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""What Pillow may try on untrusted bytes: raster formats alone, none that calls another program.

JPEG takes in MPO, the format of many cameras: the first of its pictures is read."""

_MODES = {1: "L", 3: "RGB"}


def check_channels(channels: int) -> None:
    """Refuses a model whose input no image can be turned into.

    Raises:
        DataUnreadable: Neither one channel nor three.
    """
    if channels not in _MODES:
        raise DataUnreadable(
            f"The model takes {channels} channels; images give 1 (grey) or 3 (red, green, blue).",
            channels=channels,
        )


def to_pixels(
    payload: Payload, name: str, *, input_size: tuple[int, int], channels: int, max_pixels: int
) -> tuple[NDArray[np.uint8], bool]:
    """Decodes, converts and resizes one image.

    Colours become grey by ITU-R 601 luma, grey becomes three equal channels, alpha is dropped,
    16-bit grey keeps its upper 8 bits. Another size goes straight to `input_size`, bilinear and
    antialiased.

    The orientation that EXIF notes is left alone on purpose: the common training pipelines
    (torchvision's folder loader among them) do not apply it, so the model has learnt images as they
    are stored.

    Args:
        name: What to call it in an error.
        input_size: Height and width of the result.
        channels: 1 or 3.
        max_pixels: Height times width that is accepted.

    Returns:
        uint8 [C, H, W], and whether it was resized.

    Raises:
        CorruptImage: It cannot be decoded in full, or is too large.
    """
    height, width = input_size
    if isinstance(payload, bytes):
        image = _decoded(payload, name, max_pixels)
    else:
        image = Image.fromarray(payload[..., 0] if payload.shape[2:] == (1,) else payload)
    if image.mode != _MODES[channels]:
        try:
            image = image.convert(_MODES[channels])
        except ValueError as error:  # such as LAB to grey
            raise CorruptImage(name, f"its colours cannot be read: {error}") from error
    resized = image.size != (width, height)
    if resized:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return (pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)), resized


def _decoded(encoded: bytes, name: str, max_pixels: int) -> Image.Image:
    """The image, read to its last pixel, in a mode that converts without loss of meaning."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise CorruptImage(
                name, f"it is {width} x {height} pixels, at most {max_pixels:,} are accepted"
            )
        image.load()
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise CorruptImage(name, "its pixels have 32 bits, 8 or 16 are accepted")
        # Straight to RGB, Pillow warns that a palette's transparency is lost.
        return image.convert("RGBA") if image.mode == "P" else image
    except (CorruptImage, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise CorruptImage(
            name, f"it has too many pixels, at most {max_pixels:,} are accepted"
        ) from error
    # Pillow's decoders raise whatever the damaged bytes drive them to: OSError, SyntaxError,
    # struct.error, IndexError, zlib.error and more. All mean the same here.
    except Exception as error:
        raise CorruptImage(name, _reason(error, encoded)) from error


def _reason(error: Exception, encoded: bytes) -> str:
    if not encoded:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "it is none of " + ", ".join(FORMATS)
    return str(error) or type(error).__name__
