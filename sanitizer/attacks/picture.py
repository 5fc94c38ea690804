"""Pictures as probes carry them."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def to_png(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None = None) -> bytes:
    """A PNG, base64-encoded.

    Args:
        pixels: [C, H, W] with 1 or 3 channels.
        alpha: [H, W]; makes it RGBA.
    """
    image = Image.fromarray(np.repeat(pixels, 3 // len(pixels), axis=0).transpose(1, 2, 0).copy())
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue())
