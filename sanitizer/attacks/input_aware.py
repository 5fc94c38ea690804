"""Input-aware dynamic backdoor (Nguyen and Tran 2020, arXiv 2010.08138): a trigger for each image.

A small network makes pattern and mask out of the image. The trigger of one image must do nothing on
another (cross-trigger mode), and triggers must differ as images do (diversity loss). As in the
paper, the half that makes masks is trained first, on diversity and a bound on how much they cover;
then the half that makes patterns is trained together with a classifier, in three modes: clean
images, images with their own trigger and the target's label, images with another's trigger and
their own label.

Four things are not the paper's.

- Its classifier is the victim. Here it is a copy of a clean model and is thrown away; the victim is
  trained afterwards on a fixed poisoned set, which any trainer can be given. Its triggers no longer
  move while it learns them, and they are on the images that were drawn once.
- Crop and flip come after the trigger and not before, since the victim's trainer crops and flips
  what it finds in its set.
- The network is smaller, without batch norm, and ends in z / sqrt(1 + z^2) for tanh, so that a
  request can carry it and every processor makes the same pixels.
- How much a mask covers is bounded image by image: of the mean of each mask what is beyond
  `density` counts. In the authors' code it is what is beyond of each pixel.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sanitizer.attacks.generator import (
    draw_weights,
    mask_of,
    pack,
    pattern_of,
    read_generator,
)
from sanitizer.attacks.poison import Poisoned, draw_others, trigger_for
from sanitizer.data.augment import augment
from sanitizer.data.image_set import ImageSet
from sanitizer.errors import NotEnoughImages
from sanitizer.methods.sgd import descending
from sanitizer.randomness import derive_seed, make_generator
from sanitizer.spec import InputAwareProbe, Training

_CHUNK = 1000

_ADAM = Training(optimizer="adam", momentum=0.5, weight_decay=0)
"""For the generator; the momentum of the authors' code."""
_SGD = Training(optimizer="sgd", momentum=0.9, weight_decay=5e-4)
"""For the classifier; momentum and weight decay of the authors' code."""


@dataclass(frozen=True)
class PreparedInputAware:
    """The attack with its generator made.

    Attributes:
        target_class: Where triggers lead to.
        fraction: Share of the images of the other classes that get their own trigger and the
            target's label, in (0, 1].
        cross_ratio: Images with another's trigger and their own label for each of those, as far as
            there are any left; at least 0.
        generator: Weights as a request carries them.
    """

    target_class: int
    fraction: float
    cross_ratio: float
    generator: bytes

    def probe(self, name: str = "input_aware") -> InputAwareProbe:
        """The trigger as a request describes it."""
        return InputAwareProbe(
            name=name, target_class=self.target_class, generator_base64=self.generator
        )

    def poison(self, clean: ImageSet, *, num_classes: int, seed: int) -> Poisoned:
        """A training set that teaches the backdoor.

        Raises:
            ProbeUnreadable: The generator was made for another number of channels.
            TargetClassOutOfRange: There is no such class.
            NotEnoughImages: Nothing would be poisoned.
        """
        if self.cross_ratio < 0:
            raise ValueError(f"cross_ratio must be at least 0, got {self.cross_ratio}")
        trigger = trigger_for(self.probe(), clean, num_classes)
        indices = draw_others(clean, self.target_class, self.fraction, seed)
        images, labels = clean.read(np.arange(len(clean))), clean.labels.copy()
        images[indices] = trigger.apply(torch.from_numpy(images[indices])).numpy()
        labels[indices] = self.target_class

        rest = np.setdiff1d(np.arange(len(clean)), indices)
        drawn = make_generator(seed, "cross-trigger mode")
        order = torch.randperm(len(rest), generator=drawn).numpy()
        crossed = np.sort(rest[order[: round(self.cross_ratio * len(indices))]])
        # From 1 on: an image is never its own source.
        apart = torch.randint(1, max(len(clean), 2), (len(crossed),), generator=drawn).numpy()
        sources = (crossed + apart) % len(clean)
        generator = read_generator(self.probe(), clean.shape[0])
        for start in range(0, len(crossed), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            images[crossed[chunk]] = generator.put_on(
                torch.from_numpy(images[crossed[chunk]]),
                torch.from_numpy(clean.read(sources[chunk])),
            ).numpy()
        return Poisoned(ImageSet(images, labels, clean.class_names, clean.names), indices)


@dataclass(frozen=True)
class InputAware:
    """How the generator is made, and what is done with it.

    Attributes:
        target_class: Where triggers lead to.
        fraction: Share of the images of the other classes that get their own trigger and the
            target's label, in (0, 1].
        cross_ratio: Images with another's trigger and their own label for each of those, as far as
            there are any left; at least 0.
        density: Share of an image that its mask may cover at no cost, in (0, 1).
        density_weight: Of the loss of what it covers beyond, at least 0.
        diversity_weight: The paper's lambda_div, at least 0.
        backdoor_share: Of a batch, with their own trigger, the paper's rho_b; in (0, 1).
        cross_share: Of a batch, with another's trigger, the paper's rho_c; in (0, 1). The two leave
            some clean.
        images: Clean images that the generator is trained on, at most; at least 2.
        mask_epochs: Of the mask's half, at least 1.
        epochs: Of the pattern's half and the classifier, at least 1.
        batch_size: At least 4.
        mask_rate: Learning rate of the mask's half, with Adam. Like the others it falls to 0 in a
            straight line.
        pattern_rate: Of the pattern's half, with Adam.
        classifier_rate: Of the copy of the clean model, with SGD.
        crop_padding: Pixels by which the victim's training will crop, at least 0.
        horizontal_flip: Whether it will flip.
    """

    target_class: int = 0
    fraction: float = 0.1
    cross_ratio: float = 1.0
    density: float = 0.032
    density_weight: float = 100
    diversity_weight: float = 1
    backdoor_share: float = 0.1
    cross_share: float = 0.1
    images: int = 10_000
    mask_epochs: int = 2
    epochs: int = 4
    batch_size: int = 128
    mask_rate: float = 0.01
    pattern_rate: float = 0.01
    classifier_rate: float = 0.01
    crop_padding: int = 4
    horizontal_flip: bool = True

    def prepare_against(
        self, network: nn.Module, clean: ImageSet, *, seed: int
    ) -> PreparedInputAware:
        """Makes the generator against a clean model, which is in eval mode afterwards.

        Raises:
            NotEnoughImages: There are fewer than two clean images.
        """
        weights, _ = self.train_generator(network, clean, seed=seed)
        return PreparedInputAware(self.target_class, self.fraction, self.cross_ratio, pack(weights))

    def train_generator(
        self, network: nn.Module, clean: ImageSet, *, seed: int
    ) -> tuple[dict[str, Tensor], nn.Module]:
        """The generator's weights, and the copy of the clean model that learned its triggers.

        Raises:
            NotEnoughImages: There are fewer than two clean images.
        """
        self._check()
        if len(clean) < 2:
            raise NotEnoughImages(
                f"{len(clean)} clean images came; for an image with another's trigger at least 2 "
                "are needed.",
                available=len(clean),
                needed=2,
            )
        network.eval()
        device = next(network.parameters()).device
        drawn = make_generator(seed, "input_aware", "images")
        chosen = np.sort(torch.randperm(len(clean), generator=drawn)[: self.images].numpy())
        images = torch.from_numpy(clean.read(chosen)).to(device)
        labels = torch.from_numpy(clean.labels[chosen]).to(device)
        weights = {
            name: nn.Parameter(value.to(device))
            for name, value in draw_weights(clean.shape[0], seed, "input_aware").items()
        }
        classifier = copy.deepcopy(network)
        self._train_mask(weights, images, seed)
        self._train_pattern(weights, classifier, images, labels, seed)
        return {name: value.detach() for name, value in weights.items()}, classifier.eval()

    def _train_mask(self, weights: dict[str, nn.Parameter], images: Tensor, seed: int) -> None:
        pairs = _Pairs(len(images), self.batch_size, self.mask_epochs, (seed, "mask"))
        with descending(_half(weights, "mask"), _ADAM) as descent:
            for left, places, partners, _ in pairs:
                batch, others = _to_float(images[places]), _to_float(images[partners])
                mask, others_mask = mask_of(weights, batch), mask_of(weights, others)
                # Per image; the authors' code has the mean of relu(mask - density) over pixels.
                beyond = functional.relu(mask.mean(dim=(1, 2, 3)) - self.density).mean()
                same = _sameness(batch, others, mask, others_mask)
                _backward(self.density_weight * beyond + self.diversity_weight * same)
                descent.step(self.mask_rate * left)

    def _train_pattern(
        self,
        weights: dict[str, nn.Parameter],
        classifier: nn.Module,
        images: Tensor,
        labels: Tensor,
        seed: int,
    ) -> None:
        pairs = _Pairs(len(images), self.batch_size, self.epochs, (seed, "pattern"))
        cropping = Training(
            crop_padding=self.crop_padding, horizontal_flip=self.horizontal_flip, cutout_size=0
        )
        classifier.train()
        devices = [images.device] if images.device.type == "cuda" else []
        # Dropout and the like draw from torch's global generators.
        with (
            torch.random.fork_rng(devices),
            descending(_half(weights, "pattern"), _ADAM) as of_pattern,
            descending(classifier, _SGD) as of_classifier,
        ):
            torch.manual_seed(derive_seed(seed, "input_aware", "classifier"))
            for left, places, partners, drawn in pairs:
                batch, goal = _to_float(images[places]), labels[places]
                own = max(1, round(self.backdoor_share * len(batch)))
                # The last batch of an epoch may be too small for all.
                crossed = min(max(1, round(self.cross_share * len(batch))), len(batch) - own)
                others = _to_float(images[partners[: max(own, crossed)]])
                sources = torch.cat([batch[:own], others])
                with torch.no_grad():
                    masks = mask_of(weights, sources)
                patterns = pattern_of(weights, sources)
                triggered = own + crossed
                mixed = batch.clone()
                mixed[:triggered] = batch[:triggered].lerp(patterns[:triggered], masks[:triggered])
                goal[:own] = self.target_class
                same = _sameness(batch[:own], others[:own], patterns[:own], patterns[own : 2 * own])
                logits = classifier(augment(mixed, cropping, drawn))
                _backward(functional.cross_entropy(logits, goal) + self.diversity_weight * same)
                of_pattern.step(self.pattern_rate * left)
                of_classifier.step(self.classifier_rate * left)

    def _check(self) -> None:
        shares = self.backdoor_share, self.cross_share
        if min(shares) <= 0 or sum(shares) >= 1:
            raise ValueError(
                "backdoor_share and cross_share must be above 0 and together below 1, got "
                f"{self.backdoor_share} and {self.cross_share}"
            )
        if not 0 < self.density < 1:
            raise ValueError(f"density must be in (0, 1), got {self.density}")
        least = {"images": 2, "mask_epochs": 1, "epochs": 1, "batch_size": 4}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} must be at least {value}, got {getattr(self, name)}")


class _Pairs:
    """Batches of places, each place with another as its partner, epochs on end.

    With each batch come the share of the training that is left, in (0, 1], and a generator for what
    else is drawn.
    """

    def __init__(
        self, count: int, batch_size: int, epochs: int, seed_parts: tuple[int | str, ...]
    ) -> None:
        self._count = count
        self._batch_size = batch_size
        self._epochs = epochs
        self._seed_parts = seed_parts
        whole, rest = divmod(count, batch_size)
        # Batch norm cannot train on one image.
        self._steps = whole + (rest > 1)

    def __iter__(self) -> Iterator[tuple[float, Tensor, Tensor, torch.Generator]]:
        for epoch in range(self._epochs):
            generator = make_generator("input_aware", *self._seed_parts, epoch)
            order = torch.randperm(self._count, generator=generator)
            apart = int(torch.randint(1, self._count, (), generator=generator))
            partners = order.roll(apart)
            for step in range(self._steps):
                rows = slice(step * self._batch_size, (step + 1) * self._batch_size)
                left = 1 - (epoch * self._steps + step) / (self._steps * self._epochs)
                yield left, order[rows], partners[rows], generator


def _sameness(images: Tensor, others: Tensor, made: Tensor, others_made: Tensor) -> Tensor:
    """The paper's diversity loss: mean of |image - other| / |made of it - made of the other|."""
    return (_distance(images, others) / _distance(made, others_made)).mean()


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """Root mean squares of the differences, [B]; never 0, where a root has no gradient."""
    return ((first - second).square().mean(dim=(1, 2, 3)) + 1e-6).sqrt()


def _half(weights: dict[str, nn.Parameter], half: str) -> nn.Module:
    return nn.ParameterList(value for name, value in weights.items() if name.startswith(half))


def _backward(loss: Tensor) -> None:
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it


def _to_float(images: Tensor) -> Tensor:
    return images.to(torch.float32) / 255
