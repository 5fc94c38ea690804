"""Measures a model: ACC on clean images, ASR and RA with each trigger on."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sanitizer.attacks.trigger import Trigger
from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation import metrics
from sanitizer.parallel.group import ALONE, Group
from sanitizer.report.model import Evaluation, ProbeResult

BATCH_SIZE = 500
BATCH_VALUES = BATCH_SIZE * 3 * 96 * 96
"""Larger images go through in smaller batches: 500 of 224 x 224 took gigabytes of feature maps."""


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
    logits = network(images.to(device).float() / 255)
    return torch.as_tensor(logits.argmax(dim=1)).cpu()


def evaluate(
    network: nn.Module,
    image_set: ImageSet,
    triggers: Sequence[Trigger],
    *,
    num_classes: int,
    device: torch.device,
    on_images: Callable[[int], None] = lambda _images: None,
    group: Group = ALONE,
) -> Evaluation:
    """All figures of one model. The network is put into eval mode.

    Args:
        on_images: Called with how many images went through the network since the last call, with
            those that others look at meanwhile.
        group: Each looks at a share of the images; everybody gets the figures of all.

    Raises:
        NotEnoughImages: There is no image, or none whose true class is not a trigger's target.
    """
    network.eval()
    labels = torch.from_numpy(image_set.labels.copy())
    clean: list[Tensor] = [labels[:0]]
    triggered: list[list[Tensor]] = [[labels[:0]] for _ in triggers]
    for images, their_labels in _batches(image_set, group.share(len(image_set))):
        clean.append(predict(network, images, device))
        on_images(len(their_labels) * group.size)
        for trigger, predictions in zip(triggers, triggered, strict=True):
            others = their_labels != trigger.target_class
            # The metrics leave the target's own images out; their places hold the clean answer.
            everywhere = clean[-1].clone()
            if others.any():
                everywhere[others] = predict(network, trigger.apply(images[others]), device)
                on_images(int(others.sum()) * group.size)
            predictions.append(everywhere)
    predicted, *with_triggers = group.gather(
        [torch.cat(predictions) for predictions in (clean, *triggered)], len(image_set)
    )
    return Evaluation(
        accuracy=metrics.accuracy(predicted, labels),
        accuracy_per_class=metrics.accuracy_per_class(predicted, labels, num_classes),
        probes=[
            _probe_result(trigger, predicted, labels, everywhere)
            for trigger, everywhere in zip(triggers, with_triggers, strict=True)
        ],
    )


def _probe_result(
    trigger: Trigger, clean: Tensor, labels: Tensor, everywhere: Tensor
) -> ProbeResult:
    target = trigger.target_class
    return ProbeResult(
        name=trigger.name,
        target_class=target,
        asr=metrics.attack_success_rate(everywhere, labels, target),
        ra=metrics.robust_accuracy(everywhere, labels, target),
        asr_per_class=metrics.attack_success_rate_per_class(everywhere, labels, target),
        ra_per_class=metrics.robust_accuracy_per_class(everywhere, labels, target),
        natural_rate=metrics.natural_rate(clean, labels, target),
    )


def _batches(image_set: ImageSet, rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, min(BATCH_SIZE, BATCH_VALUES // math.prod(image_set.shape)))
    for start in range(rows.start, rows.stop, size):
        places = np.arange(start, min(start + size, rows.stop))
        yield torch.from_numpy(image_set.read(places)), torch.from_numpy(image_set.labels[places])
