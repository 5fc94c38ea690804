"""Trains backdoored models, to try a defense on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from sanitizer.attacks.poison import poison
from sanitizer.attacks.trigger import Trigger
from sanitizer.data.image_set import ImageSet
from sanitizer.data.loader import Batches
from sanitizer.methods.finetune import FinetuneStep
from sanitizer.methods.loop import LoopHooks, LoopState, train
from sanitizer.spec import Training


@dataclass(frozen=True)
class VictimRecipe:
    """How a victim is made.

    Attributes:
        poison_fraction: Share of the other classes' images that get trigger and target label.
        training: With crop and flip where the images allow it: backdoors in models trained without
            augmentation die under plain fine-tuning, which proves nothing about a defense.
        seed: Of the draw of poisoned images and of the training.
    """

    poison_fraction: float
    training: Training
    seed: int = 0


def train_victim(
    network: nn.Module,
    clean: ImageSet,
    trigger: Trigger,
    recipe: VictimRecipe,
    *,
    device: torch.device,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda _epoch, _values: None,
) -> None:
    """Trains `network`, in place, on images of which some carry the trigger.

    Args:
        network: Takes float images in [0, 1].
        clean: Images and true labels.
        on_epoch: Called after each epoch with its number from 1 and its figures.
    """
    poisoned = poison(clean, trigger, recipe.poison_fraction, recipe.seed)

    class Hooks(LoopHooks):
        def on_epoch(self, epoch: int, values: dict[str, float]) -> None:
            on_epoch(epoch, values)

    train_on(
        network, poisoned.image_set, recipe.training, recipe.seed, device=device, hooks=Hooks()
    )


def train_on(
    network: nn.Module,
    image_set: ImageSet,
    training: Training,
    seed: int,
    *,
    device: torch.device,
    precision: torch.dtype = torch.float32,
    state: LoopState | None = None,
    hooks: LoopHooks | None = None,
) -> None:
    """Trains `network`, in place, on images and labels as they are, poisoned or clean.

    Args:
        network: Takes float images in [0, 1].
        seed: Of order, augmentation and what the network draws.
        precision: What the network computes in.
        state: Where to take up again; the result is the same as without the interruption.
        hooks: Progress, figures and checkpoints.
    """
    batches = Batches(image_set, training, training.batch_size, device, (seed, "victim"))
    train(
        FinetuneStep(network.to(device), precision),
        batches,
        training,
        (seed, "victim", "network"),
        state=state,
        hooks=hooks,
    )
