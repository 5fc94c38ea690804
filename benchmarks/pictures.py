"""Data sets that are drawn: traffic signs and house numbers, as no file of them comes with us.

Each image is drawn large with its own place, turn, colours, light and background (a photograph of
CIFAR-10, out of focus), made small, and given noise. A drawn data set is easier than a
photographed one of its kind, and it has what matters here: classes that are not objects, a left
turn and a right turn that are no mirror images of one class, digits, and borders.
"""

from collections.abc import Callable, Sequence
from functools import cache
from math import cos, pi, sin
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

LARGE = 96
"""Side, pixels, that images are drawn at."""
NOISE = 6.0
"""Standard deviation of the noise, in pixel values."""
FACES = "DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSansMono"
"""Fonts, of those that come with matplotlib."""

Color = tuple[int, int, int]
RED, BLUE, YELLOW, WHITE, BLACK = (
    (190, 30, 40),
    (30, 70, 170),
    (235, 190, 40),
    (240, 240, 240),
    (20, 20, 20),
)
SIGNS: Sequence[tuple[str, str]] = (
    ("ring", "30"),
    ("ring", "50"),
    ("ring", "80"),
    ("ring", ""),
    ("warning", "!"),
    ("warning", "left"),
    ("warning", "right"),
    ("order", "left"),
    ("order", "right"),
    ("order", "up"),
    ("diamond", ""),
    ("stop", "STOP"),
)
"""Board and what is on it: a class each."""
DIGITS = 10

Draw = Callable[[ImageDraw.ImageDraw, int, np.random.Generator], None]


def signs(
    count: int, side: int, seed: int, backgrounds: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Traffic signs of 12 classes, as many of each as can be.

    Args:
        count: Of images.
        side: Height and width of each, pixels.
        seed: Other seeds draw other images.
        backgrounds: uint8 [n, 3, h, w]; one is taken for each image.

    Returns:
        uint8 [count, 3, side, side] and labels, in random order.
    """
    return _drawn(count, side, [seed, 1], backgrounds, len(SIGNS), _sign)


def house_numbers(
    count: int, side: int, seed: int, backgrounds: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Digits of several fonts on coloured walls, parts of their neighbours beside them; otherwise
    as `signs`."""
    return _drawn(count, side, [seed, 2], backgrounds, DIGITS, _house_number)


def _drawn(
    count: int,
    side: int,
    seed: Sequence[int],
    backgrounds: NDArray[np.uint8],
    classes: int,
    draw: Draw,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.arange(count) % classes).astype(np.int64)
    images = np.empty((count, 3, side, side), np.uint8)
    for place, label in enumerate(labels.tolist()):
        behind = backgrounds[generator.integers(len(backgrounds))].transpose(1, 2, 0)
        image = Image.fromarray(np.ascontiguousarray(behind)).resize((LARGE, LARGE))
        image = image.filter(ImageFilter.GaussianBlur(3))
        layer = Image.new("RGBA", (LARGE, LARGE))
        draw(ImageDraw.Draw(layer), label, generator)
        layer = layer.rotate(
            float(generator.uniform(-10, 10)),
            resample=Image.Resampling.BILINEAR,
            translate=(int(generator.integers(-7, 8)), int(generator.integers(-7, 8))),
        )
        image.paste(layer, mask=layer)
        blur = float(generator.uniform(0, 2.5))
        small = image.filter(ImageFilter.GaussianBlur(blur)).resize(
            (side, side), Image.Resampling.BOX
        )
        light = generator.uniform(0.45, 1.15) * generator.uniform(0.9, 1.1, 3)
        noisy = np.asarray(small) * light + generator.normal(0, NOISE, (side, side, 3))
        images[place] = noisy.round().clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
    return images, labels


@cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf"), size)


def _polygon(corners: int, radius: float, turn: float) -> list[tuple[float, float]]:
    middle = LARGE / 2
    angles = [turn + 2 * pi * corner / corners for corner in range(corners)]
    return [(middle + radius * cos(angle), middle + radius * sin(angle)) for angle in angles]


def _sign(draw: ImageDraw.ImageDraw, label: int, generator: np.random.Generator) -> None:
    board, symbol = SIGNS[label]
    radius = float(generator.uniform(30, 44))
    middle = LARGE / 2
    ink = BLACK
    if board == "ring":
        draw.circle((middle, middle), radius, fill=WHITE, outline=RED, width=int(radius / 4))
    elif board == "warning":
        draw.polygon(_polygon(3, radius * 1.1, -pi / 2), fill=RED)
        draw.polygon(_polygon(3, radius * 0.7, -pi / 2), fill=WHITE)
    elif board == "order":
        draw.circle((middle, middle), radius, fill=BLUE, outline=WHITE, width=2)
        ink = WHITE
    elif board == "diamond":
        draw.polygon(_polygon(4, radius, 0), fill=WHITE)
        draw.polygon(_polygon(4, radius * 0.75, 0), fill=YELLOW)
    else:
        draw.polygon(_polygon(8, radius, pi / 8), fill=RED, outline=WHITE)
        ink = WHITE
    if symbol in ("left", "right", "up"):
        _arrow(draw, symbol, radius * (0.35 if board == "warning" else 0.6), ink)
    elif symbol:
        size = int(radius * (1.6 / len(symbol) if len(symbol) > 2 else 0.9))
        draw.text((middle, middle), symbol, fill=ink, font=_font(FACES[1], size), anchor="mm")


def _arrow(draw: ImageDraw.ImageDraw, way: str, length: float, ink: Color) -> None:
    """Points: along the way, and across it."""
    shape = [(-1.0, -0.25), (0.1, -0.25), (0.1, -0.7), (1.0, 0.0), (0.1, 0.7), (0.1, 0.25)]
    shape.append((-1.0, 0.25))
    middle = LARGE / 2
    turned = {"right": 1, "left": -1, "up": -1}[way]
    points = [(turned * along, turned * across) for along, across in shape]
    if way == "up":
        points = [(across, along) for along, across in points]
    draw.polygon([(middle + length * x, middle + length * y) for x, y in points], fill=ink)


def _house_number(draw: ImageDraw.ImageDraw, label: int, generator: np.random.Generator) -> None:
    wall = tuple(int(value) for value in generator.integers(0, 256, 3))
    away = 1 if sum(wall) < 384 else -1
    ink = tuple(int(np.clip(value + away * generator.integers(90, 200), 0, 255)) for value in wall)
    if generator.random() < 0.7:
        draw.rectangle((0, 0, LARGE, LARGE), fill=(*wall, int(generator.integers(120, 256))))
    font = _font(str(generator.choice(FACES)), int(generator.integers(58, 88)))
    middle = LARGE / 2
    draw.text((middle, middle), str(label), fill=ink, font=font, anchor="mm")
    for shift in (-0.62, 0.62):
        if generator.random() < 0.5:
            other = str(generator.integers(DIGITS))
            draw.text((middle + shift * font.size, middle), other, fill=ink, font=font, anchor="mm")
