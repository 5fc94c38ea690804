"""The class a network gives an image: computed fast where that leaves no doubt, else again."""

import math

import torch
from torch import Tensor, nn

from sanitizer.compute import computing_in

CHECKED = 250
"""The first images of a set, whose drafts are all checked."""

LEAST_CERTAIN = 0.02
"""Share of every batch that goes through again in any case: a later image may be of another kind
than the first ones."""

CAUTION = 2
"""A draft counts where its margin is at least that many times the largest error seen. An error as
large as the margin is needed for another answer, between just the two classes in question."""


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    """The class a network gives each image.

    Args:
        network: In eval mode.
        images: [B, C, H, W], uint8.
        device: Where the network is.

    Returns:
        [B], int64, on the CPU.
    """
    return _logits(network, images.to(device)).argmax(dim=1).cpu()


class Predictor:
    """Predicts the classes of a set of images of one kind, batch after batch.

    The answers are those of the network in the precision of its weights. Where a lower precision is
    faster, it makes a draft: logits whose two largest values lie so far apart that the error of
    that precision cannot have swapped them. All other images go through the network again. How
    large the error is, is measured on the first `CHECKED` images and on all that go through again,
    the `LEAST_CERTAIN` of every batch among them.

    Args:
        network: In eval mode.
        device: Where the network is.
        draft: The lower precision; float32: there is no draft.

    Attributes:
        repeated: How many images went through the network again so far.
    """

    def __init__(
        self, network: nn.Module, device: torch.device, draft: torch.dtype = torch.float32
    ) -> None:
        self._network = network
        self._device = device
        self._draft = draft
        self._checked = 0
        self._error = 0.0
        self.repeated = 0

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Classes of a batch, [B], int64, on the CPU.

        Args:
            images: [B, C, H, W], uint8.
        """
        if self._draft == torch.float32 or not len(images):
            return predict(self._network, images, self._device)
        images = images.to(self._device)
        with computing_in(self._draft, self._device):
            drafts = _logits(self._network, images).float()
        answers, margins = drafts.argmax(dim=1), _margins(drafts)
        again = self._in_doubt(margins)
        again[: max(0, CHECKED - self._checked)] = True
        again[margins.argsort()[: math.ceil(LEAST_CERTAIN * len(images))]] = True
        done = torch.zeros_like(again)
        # What goes through again may show a larger error, which puts more in doubt.
        while again.any():
            exact = _logits(self._network, images[again])
            answers[again] = exact.argmax(dim=1)
            self._learn(drafts[again] - exact)
            done |= again
            again = self._in_doubt(margins) & ~done
        self._checked += len(images)
        self.repeated += int(done.sum())
        return answers.cpu()

    def _in_doubt(self, margins: Tensor) -> Tensor:
        # Not `<`: what is no number is in doubt.
        return ~(margins >= CAUTION * self._error)

    def _learn(self, difference: Tensor) -> None:
        """Notes the largest error of a difference of two logits of one image, [B, K]."""
        ranges = difference.amax(dim=1) - difference.amin(dim=1)
        largest = float(ranges.max())
        # After one that is no number no draft counts.
        self._error = max(self._error, largest) if math.isfinite(largest) else math.inf


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    return torch.as_tensor(network(images.float() / 255))


def _margins(logits: Tensor) -> Tensor:
    """How far the largest lies over the second largest, [B]; there is no doubt with one class."""
    if logits.shape[1] == 1:
        return torch.full_like(logits[:, 0], math.inf)
    first, second = logits.topk(2, dim=1).values.unbind(dim=1)
    return first - second
