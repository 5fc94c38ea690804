"""Fine-pruning (Liu et al., RAID 2018, arXiv 1805.12185).

Channels that are idle on clean images may be there for a trigger alone. They are taken away, the
most idle first, for as long as the clean accuracy bears it; then the network is fine-tuned.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sanitizer.data.image_set import ImageSet
from sanitizer.errors import InvalidSpec
from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.heldout import Tell, apart_to_prune_by, batches_for
from sanitizer.networks.taps import unwrapped
from sanitizer.parallel.group import ALONE, Group

HEADS = ("classifier", "fc", "head", "heads", "linear")
"""What the networks of the catalog call their classifiers."""


@dataclass(frozen=True)
class Classifier:
    """The end of a network, behind its last feature map.

    Attributes:
        reader: Its first layer with weights. A channel whose weights here are 0 is gone, as if the
            last convolution did not make it. In a residual network that convolution is one of
            several that add to the channel, and setting its kernel to 0 would leave the others'.
        rest: What follows, up to the logits.
    """

    reader: nn.Linear | nn.Conv2d
    rest: nn.Sequential

    def __call__(self, features: Tensor) -> Tensor:
        """Logits [B, classes] of features [B, C, values a channel]."""
        # SqueezeNet's is a convolution of single pixels, to which their grid does not matter.
        linear = isinstance(self.reader, nn.Linear)
        read = features.flatten(1) if linear else features.unsqueeze(3)
        logits: Tensor = self.rest(self.reader(read)).flatten(1)
        return logits


def find_classifier(network: nn.Module) -> Classifier:
    """The end of a network of the catalog.

    Raises:
        InvalidSpec: It has none of the known names, or holds no layer.
    """
    layers, ((place, reader), *_) = _head_of(network)
    return Classifier(reader, nn.Sequential(*layers[place + 1 :]))


def find_logits_layer(network: nn.Module) -> nn.Linear | nn.Conv2d:
    """The layer whose outputs are the logits, of a network of the catalog.

    In a VGG or a MobileNetV3, say, others of its classifier lie before it.

    Raises:
        InvalidSpec: As of `find_classifier`.
    """
    _, (*_, (_, layer)) = _head_of(network)
    return layer


def _head_of(
    network: nn.Module,
) -> tuple[list[nn.Module], list[tuple[int, nn.Linear | nn.Conv2d]]]:
    """The layers of a classifier, and those of them that have weights with their places."""
    inner = unwrapped(network)
    for name in HEADS:
        head: nn.Module | None = getattr(inner, name, None)
        layers = [] if head is None else _in_turn(head)
        weighted = [
            (place, layer)
            for place, layer in enumerate(layers)
            if isinstance(layer, nn.Linear | nn.Conv2d)
        ]
        if weighted:
            return layers, weighted
    raise InvalidSpec(
        "method fine_pruning prunes what the classifier reads, and fst and the classifier_shift of "
        f"argd change it; this network has no layer called {', '.join(HEADS)}. Use finetune, nad "
        "or argd without a classifier_shift instead.",
    )


def _in_turn(module: nn.Module) -> list[nn.Module]:
    """The layers of a sequence, of the sequences within it, too; of anything else itself."""
    if not isinstance(module, nn.Sequential):
        return [module]
    return [layer for part in module for layer in _in_turn(part)]


def prune_idle_channels(
    network: nn.Module, images: ImageSet, tell: Tell, tolerance: float, seed: int
) -> dict[str, float]:
    """Takes away channels of the last feature map by their mean activation, the smallest first.

    Stops before the held-out accuracy has fallen by more than the tolerance. The activation is that
    which the classifier reads, its magnitude where it can be negative; the mean is over the images
    that are not held out. Of few images none are held out and all count for both.

    Args:
        network: Changed in place, and put into eval mode.
        images: The clean images.
        tell: Hears of each image that goes through the network.
        tolerance: Share of the held-out images, or of all, in [0, 1].
        seed: Of the run.

    Returns:
        `pruned_channels`, `channels`, `heldout_images`, `heldout_accuracy_before` and
        `heldout_accuracy`; the last three of all images where none are held out.

    Raises:
        InvalidSpec: There is no classifier to be found.
    """
    classifier = find_classifier(network)
    used, held = apart_to_prune_by(images, seed)
    read = list(_read(network, classifier, held, tell))
    sums = [
        features.abs().double().cpu().mean(dim=2).sum(dim=0)
        for features, _ in (read if used is held else _read(network, classifier, used, tell))
    ]
    idle = torch.stack(sums).sum(dim=0) / len(used)
    features = torch.cat([each for each, _ in read])
    labels = torch.cat([each for _, each in read])

    def count_right() -> int:
        logits = classifier(features)
        return int((logits.argmax(dim=1).cpu() == labels).sum())

    with torch.no_grad():
        before = right = count_right()
        order = idle.argsort(stable=True).tolist()
        allowed = tolerance * len(held) + 1e-9
        gone: list[int] = []
        for channel in order[:-1]:  # without any, nothing could be told apart
            features[:, channel] = 0
            now = count_right()
            if before - now > allowed:
                break
            right = now
            gone.append(channel)
        weight = classifier.reader.weight
        columns = torch.zeros(len(idle), dtype=torch.bool)
        columns[gone] = True
        columns = columns.repeat_interleave(weight.shape[1] // len(idle))
        weight[:, columns.to(weight.device)] = 0
    return {
        "pruned_channels": float(len(gone)),
        "channels": float(len(idle)),
        "heldout_images": float(len(held)),
        "heldout_accuracy_before": before / len(held),
        "heldout_accuracy": right / len(held),
    }


class FinePruneStep(FinetuneStep):
    """Fine-tuning in which a pruned channel stays pruned.

    Pruned is what the classifier does not read when the step is made.
    """

    def __init__(
        self, network: nn.Module, precision: torch.dtype = torch.float32, group: Group = ALONE
    ) -> None:
        super().__init__(network, precision, group)
        self._weight = find_classifier(network).reader.weight
        silent = self._weight.detach().eq(0).all(dim=0, keepdim=True)
        self._pruned = silent.expand_as(self._weight)

    @torch.no_grad()
    def updated(self) -> None:
        """Pruned weights are 0 again."""
        self._weight.masked_fill_(self._pruned, 0)


@dataclass
class _Reading:
    """What the reader got in the last forward pass, and the last feature map before it."""

    features: Tensor
    map_shape: torch.Size

    @property
    def channels(self) -> int:
        """Of the features: those of the map where it was flattened whole, as in VGG."""
        if self.features.dim() == 2 and self.map_shape[1:].numel() == self.features.shape[1]:
            return self.map_shape[1]
        return self.features.shape[1]


@torch.no_grad()
def _read(
    network: nn.Module, classifier: Classifier, images: ImageSet, tell: Tell
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the classifier reads of all images, [B, C, values a channel], and their labels."""
    network.eval()
    with _watching(network, classifier) as reading:
        for batch, labels in batches_for(network, images):
            network(batch)
            features = reading.features
            yield features.reshape(len(labels), reading.channels, -1), labels
            tell(len(labels))


@contextmanager
def _watching(network: nn.Module, classifier: Classifier) -> Iterator[_Reading]:
    reading = _Reading(torch.empty(0), torch.Size())
    inside = {classifier.reader, *classifier.rest.modules()}

    def note_map(_module: nn.Module, _given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4:
            reading.map_shape = output.shape

    def note_features(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        reading.features = given[0]

    handles = [
        module.register_forward_hook(note_map)
        for module in network.modules()
        if module not in inside and not list(module.children())
    ]
    handles.append(classifier.reader.register_forward_pre_hook(note_features))
    try:
        yield reading
    finally:
        for handle in handles:
            handle.remove()
