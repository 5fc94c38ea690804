"""Adversarial neuron pruning (ANP; Wu and Wang, NeurIPS 2021, arXiv 2110.14430).

Channels that a backdoor uses are those by which a small change of the weights changes the outcome
most. Masks on the channels are trained to keep the clean images right while the channels are
perturbed for the worst; what a mask closes is taken away.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from sanitizer.compute import computing_in
from sanitizer.data.image_set import ImageSet
from sanitizer.errors import InvalidSpec
from sanitizer.methods.heldout import Tell, apart_to_prune_by, count_right
from sanitizer.methods.step import Step, StepOutput
from sanitizer.parallel.group import ALONE, Group
from sanitizer.randomness import make_generator
from sanitizer.spec import AnpConfig

MIN_CONVOLUTIONS = 2
"""Without batch norms. A transformer's one convolution cuts the image into patches."""


@dataclass(frozen=True)
class MaskedLayer:
    """A layer whose first axis is channels."""

    path: str
    module: _BatchNorm | nn.Conv2d

    @property
    def channels(self) -> int:
        """How many masks it has."""
        return self.module.weight.shape[0]

    def along_channels(self, values: Tensor) -> Tensor:
        """[C] in a shape that multiplies the weight."""
        return values.view(-1, *[1] * (self.module.weight.dim() - 1))


def masked_layers(network: nn.Module) -> list[MaskedLayer]:
    """Where masks lie: on the batch norms, as in the paper; where there are none, on convolutions.

    A batch norm would undo a perturbation of the convolution before it.

    Raises:
        InvalidSpec: There are neither batch norms nor two convolutions.
    """
    named = list(network.named_modules())
    norms = [MaskedLayer(p, m) for p, m in named if isinstance(m, _BatchNorm) and m.affine]
    if norms:
        return norms
    convolutions = [MaskedLayer(p, m) for p, m in named if isinstance(m, nn.Conv2d)]
    if len(convolutions) < MIN_CONVOLUTIONS:
        raise InvalidSpec(
            "method anp masks the channels of batch norms or convolutions, and this network has no "
            f"batch norm and {len(convolutions)} convolutions. Use finetune, nad or argd instead.",
            method="anp",
            convolutions=len(convolutions),
        )
    return convolutions


def by_layer(layers: Sequence[MaskedLayer], values: Tensor) -> tuple[Tensor, ...]:
    """One value a channel, [N], as a [C] for each layer."""
    sizes = [layer.channels for layer in layers]
    return tuple(torch.split_with_sizes(values, sizes))


class MaskedNetwork(nn.Module):
    """A network in which each channel has a mask, and nothing but the masks can be trained.

    Args:
        network: Stays as it is, but that its weights get no gradient, and its batch norms keep
            their running statistics whatever passes through.

    Attributes:
        masks: [N], in [0, 1]; they start at 1.
    """

    draws: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        self.layers = masked_layers(network)
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                # The perturbed passes are none that the statistics should tell of.
                module.momentum = 0.0
        like = self.layers[0].module.weight
        masks = torch.ones(
            sum(layer.channels for layer in self.layers), dtype=like.dtype, device=like.device
        )
        self.masks = nn.Parameter(masks)
        # On the CPU and part of the state: a run that is taken up again draws what it would have.
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def by_layer(self, values: Tensor) -> tuple[Tensor, ...]:
        """[N] as a [C] for each layer."""
        return by_layer(self.layers, values)

    def forward(self, images: Tensor, perturbation: Tensor | None = None) -> Tensor:
        """Logits [B, classes] of images [B, C, H, W].

        With masks m, delta and xi: f(x; (m + delta) * w, (1 + xi) * b).

        Args:
            perturbation: delta and xi, [2, N]. None: both are 0.
        """
        masks: Tensor = self.masks
        if perturbation is not None:
            masks = masks + perturbation[0]
        tensors: dict[str, Tensor] = {}
        for layer, mask in zip(self.layers, self.by_layer(masks), strict=True):
            tensors[f"{layer.path}.weight"] = layer.module.weight * layer.along_channels(mask)
        if perturbation is not None:
            for layer, xi in zip(self.layers, self.by_layer(perturbation[1]), strict=True):
                if layer.module.bias is not None:
                    tensors[f"{layer.path}.bias"] = layer.module.bias * (1 + xi)
        logits: Tensor = torch.func.functional_call(self.network, tensors, (images,))
        return logits


class AnpStep(Step):
    """The objective of arXiv 2110.14430, minimised over the masks m in [0, 1]:

    alpha L(m * w, b) + (1 - alpha) max over delta and xi in [-epsilon, epsilon] of
    L((m + delta) * w, (1 + xi) * b), L being the cross-entropy.

    The authors descend with plain momentum; the loop's is Nesterov's, of the same strength. As in
    their code batch norms take the statistics of the batch.

    Args:
        network: Gets masks, see `MaskedNetwork`.
        config: Settings.
        seed: Of the run.
        precision: What the network computes in.
        group: Who shares each batch.
    """

    network: MaskedNetwork

    def __init__(
        self,
        network: nn.Module,
        config: AnpConfig,
        seed: int,
        precision: torch.dtype = torch.float32,
        group: Group = ALONE,
    ) -> None:
        super().__init__(MaskedNetwork(network), precision, group)
        self.budget = config.perturbation
        self.clean_weight = config.clean_weight
        self.seed = seed

    def __call__(self, images: Tensor, labels: Tensor) -> StepOutput:
        perturbation = self.worst_perturbation(images, labels)
        clean = self.classify(images)
        perturbed = self._classify_perturbed(images, perturbation)
        clean, perturbed = self.group.gather([clean, perturbed], len(labels))
        loss = functional.cross_entropy
        return StepOutput(
            clean,
            {
                "cross_entropy": self.clean_weight * loss(clean, labels),
                "perturbed": (1 - self.clean_weight) * loss(perturbed, labels),
            },
        )

    def worst_perturbation(self, images: Tensor, labels: Tensor) -> Tensor:
        """delta and xi, [2, N]: one step up the loss from a random start within the budget.

        p = clip(p_0 + epsilon sign(gradient)), p_0 uniform in [-epsilon, epsilon]. The clip to that
        interval is the bound of the paper's objective; the authors' code takes the same step and
        does not clip, so that theirs reach up to 2 epsilon.
        """
        masks = self.network.masks
        start = self._random_start().to(masks).requires_grad_()
        logits = self._classify_perturbed(images, start)
        (logits,) = self.group.gather([logits], len(labels))
        (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, labels), start)
        # Each process has what its own images say.
        gradient = self.group.sum(gradient)
        return (start.detach() + self.budget * gradient.sign()).clamp(-self.budget, self.budget)

    @torch.no_grad()
    def updated(self) -> None:
        """Masks stay in [0, 1]."""
        self.network.masks.clamp_(0, 1)

    def _random_start(self) -> Tensor:
        draws = self.network.draws
        generator = make_generator(self.seed, "mask", "perturbation", int(draws))
        draws += 1
        shape = (2, self.network.masks.numel())
        # On the CPU and in 32 bits: every device and precision starts from the same.
        return (2 * torch.rand(shape, generator=generator) - 1) * self.budget

    def _classify_perturbed(self, images: Tensor, perturbation: Tensor) -> Tensor:
        with computing_in(self.precision, images.device):
            logits: Tensor = self.network(images, perturbation)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


@torch.no_grad()
def leave_masks(carrier: nn.Module, step: Step) -> None:
    """Puts trained masks where the weights were that they belong to.

    Between two stages a run keeps the weights of its networks and nothing else, so one of them
    carries the masks: a copy of the suspect that is of no other use.

    Args:
        carrier: The network that the step has put masks on.
    """
    if not isinstance(step, AnpStep):
        raise TypeError(f"masks are of an AnpStep, not of a {type(step).__name__}")
    masks = step.network.by_layer(step.network.masks)
    for layer, mask in zip(masked_layers(carrier), masks, strict=True):
        layer.module.weight.copy_(layer.along_channels(mask).expand_as(layer.module.weight))


def carried_masks(carrier: nn.Module) -> list[Tensor]:
    """What `leave_masks` left, [C] of each layer."""
    return [
        layer.module.weight.detach().reshape(layer.channels, -1)[:, 0]
        for layer in masked_layers(carrier)
    ]


def prune_by_masks(
    network: nn.Module,
    masks: Sequence[Tensor],
    images: ImageSet,
    tell: Tell,
    config: AnpConfig,
    seed: int,
) -> dict[str, float]:
    """Takes away the channels whose mask is below the threshold: w becomes 0, b stays.

    The guard is not of the paper: if too many of the held-out images went wrong, fewer channels go,
    those with the smallest masks first, as many as bisection finds to be harmless. Of few images
    none are held out and all are counted. The masks have seen these images, as they have seen all
    clean ones.

    Args:
        network: Changed in place, and put into eval mode.
        masks: [C] of each layer.
        images: The clean images; some are held out to measure on.
        tell: Hears of each image that goes through the network.
        seed: Of the run.

    Returns:
        `pruned_channels`, `below_threshold` (what the paper takes away), `channels`,
        `heldout_images`, `heldout_accuracy_before` and `heldout_accuracy`, of all images where none
        are held out.

    Raises:
        InvalidSpec: The network has nothing to mask.
    """
    pruning = _Pruning(masked_layers(network), masks)
    _, heldout = apart_to_prune_by(images, seed)
    before = count_right(network, heldout, tell)
    allowed = config.max_accuracy_drop * len(heldout) + 1e-9
    below = int((torch.cat([m.cpu() for m in masks]) < config.threshold).sum())

    def right_without(channels: int) -> int:
        pruning.take_away(channels)
        return count_right(network, heldout, tell)

    taken, right = below, right_without(below) if below else before
    if before - right > allowed:
        taken, right = 0, before
        too_many = below
        while too_many - taken > 1:
            middle = (taken + too_many) // 2
            if before - (now := right_without(middle)) <= allowed:
                taken, right = middle, now
            else:
                too_many = middle
        pruning.take_away(taken)
    return {
        "pruned_channels": float(taken),
        "below_threshold": float(below),
        "channels": float(pruning.channels),
        "heldout_images": float(len(heldout)),
        "heldout_accuracy_before": before / len(heldout),
        "heldout_accuracy": right / len(heldout),
    }


class _Pruning:
    """Takes away channels by the order of their masks, from the weights as they were."""

    def __init__(self, layers: Sequence[MaskedLayer], masks: Sequence[Tensor]) -> None:
        self._layers = layers
        self._original = [layer.module.weight.detach().clone() for layer in layers]
        # On the CPU, and ties to the first: every device has the same order.
        self._order = torch.cat([mask.cpu() for mask in masks]).argsort(stable=True)
        self.channels = len(self._order)

    @torch.no_grad()
    def take_away(self, channels: int) -> None:
        """So many, and no others."""
        gone = torch.zeros(self.channels, dtype=torch.bool)
        gone[self._order[:channels]] = True
        of_layers = by_layer(self._layers, gone)
        for layer, original, here in zip(self._layers, self._original, of_layers, strict=True):
            layer.module.weight.copy_(original)
            layer.module.weight[here.to(original.device)] = 0
