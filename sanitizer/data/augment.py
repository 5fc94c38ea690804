"""Random crop, flip and cutout of a whole batch in one gather.

Random numbers are drawn on the CPU and moved, and pixels are only copied or zeroed, so every device
gives the same result.
"""

import torch
from torch import Tensor

from sanitizer.spec import Training


def augment(
    images: Tensor,
    training: Training,
    generator: torch.Generator,
    *,
    share: slice = slice(None),
    of: int | None = None,
) -> Tensor:
    """Crops, flips and cuts a hole, each image on its own.

    - Crop: the image, padded with `crop_padding` zeros on each side, is cut back to its size at a
      random place.
    - Flip: left to right, for half of the images.
    - Cutout (arXiv 1708.04552): one square hole of `cutout_size`, filled with zeros; its centre may
      lie on any pixel, so the borders clip it. The centre of an even side is the pixel below and
      right of the middle.

    Args:
        images: [B, C, H, W], of any type.
        generator: On the CPU. What is switched off draws nothing.
        share: Which rows of a batch these images are; all of it, unless another process has some.
        of: How many images that batch has: numbers are drawn for all of them. None: these alone.

    Returns:
        A new tensor of the same shape, type and device; `images` itself if all is switched off.
    """
    count, channels, height, width = images.shape
    padding, hole = training.crop_padding, training.cutout_size
    if not (padding or training.horizontal_flip or hole):
        return images

    def draw(high: int) -> Tensor:
        return torch.randint(high, (of or count, 1), generator=generator)[share]

    rows = torch.arange(height).expand(count, height)
    columns = torch.arange(width).expand(count, width)
    filled = torch.ones(count, height, width, dtype=torch.bool)
    if hole:
        top, left = draw(height) - hole // 2, draw(width) - hole // 2
        in_rows = (rows >= top) & (rows < top + hole)
        in_columns = (columns >= left) & (columns < left + hole)
        filled &= ~(in_rows[:, :, None] & in_columns[:, None, :])
    if training.horizontal_flip:
        columns = torch.where(draw(2) == 1, width - 1 - columns, columns)
    if padding:
        rows = rows + draw(2 * padding + 1) - padding
        columns = columns + draw(2 * padding + 1) - padding
        in_rows = (rows >= 0) & (rows < height)
        in_columns = (columns >= 0) & (columns < width)
        filled &= in_rows[:, :, None] & in_columns[:, None, :]
    place = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    place = place.view(count, 1, -1).to(images.device, non_blocking=True)
    filled = filled[:, None].to(images.device, non_blocking=True)
    gathered = images.flatten(2).gather(2, place.expand(-1, channels, -1)).view_as(images)
    return gathered * filled
