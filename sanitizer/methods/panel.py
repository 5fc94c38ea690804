"""Clean images that triggers are tried on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.compute import computing_in, images_at_once
from sanitizer.data.image_set import ImageSet
from sanitizer.methods.random_triggers import Numbers, put_each_on_all

AT_ONCE = 256
"""Images with triggers that go through a network together."""


@dataclass(frozen=True)
class Panel:
    """Clean images that triggers are tried on.

    Attributes:
        images: [n, C, H, W], in [0, 1], as the networks take them.
        labels: [n].
        pictures: What triggers are made of, as of `with_random_triggers`.
        precision: What networks compute in.
    """

    images: Tensor
    labels: Tensor
    pictures: Tensor
    precision: torch.dtype

    @classmethod
    def of(
        cls,
        clean: ImageSet,
        count: int,
        generator: torch.Generator,
        pictures: Tensor,
        network: nn.Module,
        precision: torch.dtype,
        device: torch.device,
    ) -> "Panel":
        """So many of the images, at most, drawn at random.

        Args:
            network: One of those that are to be tried.
        """
        places = torch.randperm(len(clean), generator=generator)[:count].numpy()
        dtype = next(network.parameters()).dtype
        images = torch.from_numpy(clean.read(places)).to(device, dtype) / 255
        labels = torch.from_numpy(clean.labels[places]).to(device)
        return cls(images, labels, pictures.to(device), precision)

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Of images as large as the panel's, [n, classes], float32."""
        with computing_in(self.precision, images.device):
            parts = torch.split(images, images_at_once(images.shape[1:], AT_ONCE))
            return torch.cat([network(part) for part in parts]).float()

    @torch.no_grad()
    def rates(
        self, network: nn.Module, kind: int, numbers: Numbers, on_images: Callable[[int], None]
    ) -> Tensor:
        """What a network makes of triggers of a kind.

        Returns:
            [m, classes], of m triggers: the mean probability of each class, over the images of
            others.
        """
        rates = []
        images = self.images
        at_once = max(1, AT_ONCE // len(images))
        for start in range(0, len(numbers[0]), at_once):
            some = tuple(each[start : start + at_once] for each in numbers)
            count = len(some[0])
            changed = put_each_on_all(images, kind, some, self.pictures)
            chances = self.logits(network, changed).softmax(dim=1).view(count, len(images), -1)
            others = 1 - functional.one_hot(self.labels, chances.shape[2]).to(chances.dtype)
            rates.append((chances * others).sum(dim=1) / others.sum(dim=0).clamp(min=1))
            on_images(len(changed))
        return torch.cat(rates).cpu()
