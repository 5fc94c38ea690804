"""Which of several random triggers a suspect model falls for: that one is worth training against.

Of all triggers of a kind only those near to a backdoor's own lead where the backdoor leads, and a
random one seldom is. Choosing the worst of several changed copies of an image to train on is the
idea of MaxUp (Gong et al., CVPR 2021, arXiv 2002.09024). Its measure, the loss of the network that
is trained, finds what is hard for any network: the strongest changes. Here the suspect model
judges, which keeps its backdoor while that of the network trained goes, and what counts is how far
it is led to those classes that triggers of this kind lead it to.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.compute import computing_in, images_at_once
from sanitizer.data.image_set import ImageSet
from sanitizer.methods.random_triggers import KINDS, pictures_of, with_random_triggers
from sanitizer.randomness import make_generator

LOOKED_AT = 500
"""Images that tell where a kind of trigger leads: a hundred for each kind."""
BATCH_SIZE = 250
AT_ONCE = 512
"""Images that go through the suspect model together; four copies of 96 are 384."""


class Lures:
    """What triggers lead a suspect model to.

    Args:
        suspect: As it came; stays as it is, and is put into eval mode.
        clean: Images with their labels.
        seed: Of the images and triggers that are looked at.
        precision: What the network computes in.
        device: Where it is.
    """

    def __init__(
        self,
        suspect: nn.Module,
        clean: ImageSet,
        seed: int,
        precision: torch.dtype,
        device: torch.device,
    ) -> None:
        self._suspect = suspect.eval()
        self._precision = precision
        self._dtype = next(suspect.parameters()).dtype
        self.shares = self._shares(clean, seed, device)
        """[KINDS, classes]: of what triggers of a kind make the model believe that is wrong, the
        share of each class. Rows add up to 1."""

    def choose(self, candidates: Tensor, kinds: Tensor, labels: Tensor) -> Tensor:
        """Of each image's changed copies the one by which the model is led farthest.

        How far is the sum over the wrong classes of the probability that the model gives each,
        times the class's share of the copy's kind.

        Args:
            candidates: [m, n, C, H, W], in [0, 1]; m copies of n images.
            kinds: [m, n], of the triggers on them.
            labels: [n], of the images.

        Returns:
            [n, C, H, W], of the candidates.
        """
        wrong = self._wrong(candidates.flatten(0, 1), labels.repeat(len(candidates)))
        led = (wrong * self.shares[kinds.flatten()]).sum(dim=1).view(kinds.shape)
        rows = torch.arange(kinds.shape[1], device=led.device)
        return candidates[led.argmax(dim=0), rows]

    def _shares(self, clean: ImageSet, seed: int, device: torch.device) -> Tensor:
        generator = make_generator(seed, "lures")
        places = torch.randperm(len(clean), generator=generator)[:LOOKED_AT]
        pictures = pictures_of(clean, seed).to(device)
        by_kind: Tensor | None = None
        for start in range(0, len(places), BATCH_SIZE):
            part = places[start : start + BATCH_SIZE].numpy()
            images = torch.from_numpy(clean.read(part)).to(device, self._dtype) / 255
            labels = torch.from_numpy(clean.labels[part]).to(device)
            everybody = torch.ones(len(part), dtype=torch.bool)
            changed, kinds = with_random_triggers(images, generator, everybody, pictures)
            wrong = self._wrong(changed, labels)
            if by_kind is None:
                by_kind = wrong.new_zeros((KINDS, wrong.shape[1]))
            by_kind.index_add_(0, kinds, wrong)
        if by_kind is None:
            raise ValueError("there is no image to put a trigger on")
        return by_kind / by_kind.sum(dim=1, keepdim=True).clamp(min=1e-12)

    @torch.no_grad()
    def _wrong(self, images: Tensor, labels: Tensor) -> Tensor:
        """Probabilities of the classes, [n, classes], the right one's left out."""
        with computing_in(self._precision, images.device):
            parts = torch.split(images, images_at_once(images.shape[1:], AT_ONCE))
            logits = torch.cat([self._suspect(part) for part in parts])
        probabilities = logits.float().softmax(dim=1)
        right = functional.one_hot(labels, probabilities.shape[1]).bool()
        return probabilities.masked_fill(right, 0)
