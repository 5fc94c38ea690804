"""Networks that methods are tried on."""

from copy import deepcopy
from functools import cache

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from sanitizer.data.image_set import ImageSet
from sanitizer.data.loader import Batches
from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.loop import train
from sanitizer.networks.registry import build_network
from sanitizer.randomness import make_generator
from sanitizer.spec import Phase, Training
from tests.sanitizer.builders import digits

SHAPE = (1, 8, 8)
"""Of a digit."""


def fresh(name: str = "wrn-10-1") -> nn.Module:
    """An untrained network for digits, in eval mode."""
    return build_network(name, 10, 1, generator=make_generator(0)).eval()


def in_doubles(seed: int = 0) -> nn.Module:
    """An untrained WRN-10-1 in 64 bits, in training mode."""
    return build_network("wrn-10-1", 10, 1, generator=make_generator(seed)).double().train()


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    """Images of noise in 64 bits, and a class each, 0 first."""
    images = torch.rand(size, *SHAPE, generator=make_generator(1), dtype=torch.float64)
    return images, torch.arange(size)


def trained() -> nn.Module:
    """A WRN-10-1 that tells most digits; each caller gets a network of its own."""
    return deepcopy(_trained())


@cache
def _trained() -> nn.Module:
    network = fresh()
    training = Training(
        phases=(Phase(epochs=3, learning_rate=0.05), Phase(epochs=1, learning_rate=0.01)),
        batch_size=32,
        crop_padding=0,
        horizontal_flip=False,
        cutout_size=0,
    )
    batches = Batches(digit_set(0, 800), training, 32, torch.device("cpu"), (0, "trained"))
    train(FinetuneStep(network), batches, training, (0, "trained"))
    return network


def digit_set(start: int, end: int) -> ImageSet:
    """Digits as a set of images."""
    return ImageSet.from_arrays(*digits(start, end))


@torch.no_grad()
def share_right(network: nn.Module, start: int = 1000, end: int = 1400) -> float:
    """Share of digits, not trained on, that a network tells right."""
    images, labels = digits(start, end)
    logits: Tensor = network.eval()(torch.from_numpy(images).float() / 255)
    return float((logits.argmax(dim=1) == torch.from_numpy(labels)).double().mean())


def small_transformer() -> nn.Module:
    """A vision transformer: its one convolution cuts images into patches."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = VisionTransformer(
            image_size=8,
            patch_size=4,
            num_layers=1,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=32,
            num_classes=10,
        )
    return network
