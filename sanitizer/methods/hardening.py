"""Trains a network while its weights and its images are made worse, within bounds.

A backdoor is a shortcut: a small change of an image, the same for every image, that leads it
elsewhere. Training on images that carry the change which misleads the network most closes such
shortcuts (universal adversarial training, Shafahi et al., AAAI 2020, arXiv 1811.11304; against
backdoors: I-BAU, arXiv 2110.03735, and shared adversarial unlearning, Wei et al., NeurIPS 2023,
arXiv 2307.10562). Weights that are made worse do it for what a backdoor needs of them, see
`sharpness`.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from sanitizer.methods.lures import Lures
from sanitizer.methods.perturbed import PerturbedNetwork, root_mean_square, within
from sanitizer.methods.random_triggers import Near, with_random_triggers
from sanitizer.methods.sharpness import SharpnessAwareStep, part_of
from sanitizer.methods.step import Step, StepOutput
from sanitizer.randomness import make_generator
from sanitizer.spec import Hardening

ASCENT = 0.25
"""How far the perturbation moves in a step, in multiples of its bound. At a quarter it can turn
around within an epoch of forty steps."""
BEGINNING = 0.5
"""How large it begins, likewise."""


class HardenedStep(SharpnessAwareStep):
    """Another step's losses, and the cross-entropy of perturbed images, at worse weights.

    The perturbation is one for all images and is kept from step to step. With each it moves along
    the gradient of the cross-entropy, which the descent needs anyway, and back into its ball. The
    images that get it may get a random trigger each as well; see `random_triggers`. Batch norms
    keep statistics of clean images alone, and normalise perturbed ones by their own.

    Args:
        step: Whose network is trained, and on whose losses.
        hardening: Bounds and weights.
        seed_parts: What the first perturbation and all triggers are drawn from.
        pictures: What some triggers are made of, uint8 [m, C, H, W]; needed for random triggers.
        near: What some random triggers are to be near to.
        lures: Chooses among several random triggers; needed where there are.
    """

    network: PerturbedNetwork

    def __init__(
        self,
        step: Step,
        hardening: Hardening,
        seed_parts: tuple[int | str, ...],
        pictures: Tensor | None = None,
        near: Near | None = None,
        lures: Lures | None = None,
    ) -> None:
        network = PerturbedNetwork(step.network)
        super().__init__(
            network,
            hardening.rho,
            step.precision,
            step.group,
            ascent_share=hardening.ascent_share,
            least_ascent_images=hardening.least_ascent_images,
        )
        self.step = step
        self.hardening = hardening
        self._seed_parts = seed_parts
        self._pictures = pictures
        self._near = near
        self._lures = lures
        self._leaf: Tensor | None = None
        self._moment = (0, 0)
        self._changed: Tensor | None = None
        self._whole: int | None = None

    @property
    def bound(self) -> float:
        """Of the perturbation's root mean square, for pixels in [0, 1]."""
        return self.hardening.perturbation / 255

    def attached(self) -> AbstractContextManager[object]:
        return self.step.attached()

    def begin_epoch(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self.step.begin_epoch(batches)

    def begin_step(self, epoch: int, step: int) -> None:
        self.step.begin_step(epoch, step)
        self._moment = (epoch, step)
        self._changed = self._whole = None

    def updated(self) -> None:
        self.step.updated()

    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        output = self.step(images, labels)
        if not (self.bound or self.hardening.random_triggers):
            return output
        size = len(labels)
        count = self._perturbed_of(size)
        mine = self._mine(size, count)
        perturbed = images[:mine]
        if self.hardening.random_triggers:
            perturbed = self._with_triggers(perturbed, labels[:count], size)
        if self.bound:
            perturbed = (perturbed + self._perturbation(images)).clamp(0, 1)
        with no_statistics(self.step.network):
            logits = self.step.classify(perturbed)
        everywhere = logits.new_zeros((len(images), logits.shape[1]))
        everywhere[:mine] = logits
        (whole,) = self.group.gather([everywhere], size)
        loss = functional.cross_entropy(whole[:count], labels[:count])
        losses = {**output.losses, "perturbed": self.hardening.perturbed_weight * loss}
        return StepOutput(output.logits, losses)

    def at_weights(self, images: Tensor, labels: Tensor, count: int) -> StepOutput:
        size, self._whole = len(labels), len(labels)
        if count == size or not self.hardening.random_triggers:
            return super().at_weights(images, labels, count)
        many = self._perturbed_of(size)
        mine = self._mine(size, many)
        changed = self._with_triggers(images[:mine], labels[:many], size)
        everywhere = torch.zeros_like(images)
        everywhere[:mine] = changed
        first, first_changed = self.group.first([images, everywhere], size, count)
        self._changed = first_changed[: self._mine(count, many)]
        output = self(first, labels[:count])
        self._changed = changed
        return output

    def _perturbed_of(self, size: int) -> int:
        """How many images are perturbed, the first of the whole batch, which is in random order.

        Of a part of a batch, as many as of all of it.

        Args:
            size: Of the batch, or of the part.
        """
        return min(size, part_of(self._whole or size, self.hardening.perturbed_share))

    def _mine(self, size: int, count: int) -> int:
        """How many of the first images of a batch are this process's: the first of its own."""
        start, stop, _ = self.group.share(size).indices(size)
        return max(0, min(stop, count) - start)

    def _with_triggers(self, images: Tensor, labels: Tensor, size: int) -> Tensor:
        """The same in both passes of a step: an image's trigger is drawn once.

        Args:
            images: This process's.
            labels: Of all images that are perturbed, everybody's.
            size: Of the whole batch.
        """
        if self._changed is None:
            if self._pictures is None:
                raise RuntimeError("random triggers are made of pictures, and there are none")
            generator = make_generator(*self._seed_parts, "triggers", *self._moment)
            rows = torch.zeros(len(labels), dtype=torch.bool)
            rows[self.group.share(size)] = True
            self._pictures = self._pictures.to(images.device)
            drawn = [
                with_random_triggers(images, generator, rows, self._pictures, self._near)
                for _ in range(self.hardening.trigger_candidates)
            ]
            changed, kinds = (torch.stack(parts) for parts in zip(*drawn, strict=True))
            if len(drawn) == 1:
                self._changed = changed[0]
            elif self._lures is None:
                raise RuntimeError("nobody is there to choose among random triggers")
            else:
                mine = labels[self.group.share(size)]
                self._changed = self._lures.choose(changed, kinds, mine)
        return self._changed

    def gradients(self, output: StepOutput, parameters: Sequence[Tensor]) -> list[Tensor | None]:
        leaf, self._leaf = self._leaf, None
        if leaf is None:
            return super().gradients(output, parameters)
        *found, slope = super().gradients(output, [*parameters, leaf])
        if slope is None:
            raise RuntimeError("the losses do not depend on the perturbation")
        slope = self.group.sum(slope.clone())
        step = ASCENT * self.bound / root_mean_square(slope).clamp(min=1e-12)
        # From here on, in the pass at worse weights too, it is the new one.
        self.network.perturbation = within(leaf.detach() + step * slope, self.bound)
        return found

    def backward(self, images: Tensor, labels: Tensor) -> StepOutput:
        if self.bound:
            self._leaf = self._perturbation(images).clone().requires_grad_()
        return super().backward(images, labels)

    def _perturbation(self, images: Tensor) -> Tensor:
        if self._leaf is not None:
            return self._leaf
        if not self.network.perturbation.numel():
            drawn = torch.randn(1, *images.shape[1:], generator=make_generator(*self._seed_parts))
            drawn = drawn.to(images.device, images.dtype)
            self.network.perturbation = within(drawn, BEGINNING * self.bound)
        return self.network.perturbation


@contextmanager
def no_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms that train keep no statistics of what passes in the block."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    kept = [
        (module, {name: module._buffers[name] for name in names})
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.training
    ]
    try:
        for module, _ in kept:
            # Not by `track_running_stats`: `whole_batch_norm` goes by what is there.
            module._buffers.update(dict.fromkeys(names))
        yield
    finally:
        for module, buffers in kept:
            module._buffers.update(buffers)
