"""How many images the triggers lead that a search found a model to fall for."""

import torch
from torch import nn

from sanitizer.data.image_set import ImageSet
from sanitizer.data.splits import draw
from sanitizer.evaluation.metrics import attack_success_rate
from sanitizer.evaluation.predict import predict
from sanitizer.methods.random_triggers import put_each_on_all
from sanitizer.methods.trigger_search import FoundTriggers
from sanitizer.randomness import derive_seed
from sanitizer.report.model import Proportion

TOLD_TARGETS = 3
"""Classes of each kind that are told of."""
MEASURED = 200
"""Images, at most, that it is told by: of so many a rate is known to 7 points."""
AT_ONCE = 50

Found = tuple[int, int]
"""Kind and place of a trigger among those that were found."""


def rates_of_strongest(
    network: nn.Module,
    found: FoundTriggers,
    images: ImageSet,
    pictures: torch.Tensor,
    *,
    seed: int,
    device: torch.device,
) -> list[tuple[Found, Proportion]]:
    """Of the strongest triggers, how many images of other classes each leads to its own.

    Args:
        network: Is put into eval mode.
        found: Of this network, or of what it was before it was trained.
        images: With the right labels; none that the search used.
        pictures: As of `with_random_triggers`.
        seed: Of the choice of images.
        device: Where the network is.
    """
    network.eval()
    places = draw(images.labels, min(MEASURED, len(images)), derive_seed(seed, "misleading"))
    clean = torch.from_numpy(images.read(places)).float() / 255
    labels = torch.from_numpy(images.labels[places].copy())
    rates = []
    for kind, place in found.strongest(TOLD_TARGETS):
        target = int(found.kinds[kind].targets[place])
        if (labels == target).all():
            continue
        numbers = tuple(each[[place]] for each in found.kinds[kind].numbers)
        answers = []
        for start in range(0, len(clean), AT_ONCE):
            part = clean[start : start + AT_ONCE]
            changed = 255 * put_each_on_all(part, kind, numbers, pictures)
            answers.append(predict(network, changed.round().to(torch.uint8), device))
        rates.append(((kind, place), attack_success_rate(torch.cat(answers), labels, target)))
    return rates
