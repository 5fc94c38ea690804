"""Measures a model: ACC on clean images, ASR and RA with each trigger on."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sanitizer.attacks.trigger import Trigger
from sanitizer.compute import images_at_once
from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation import metrics
from sanitizer.evaluation.predict import Predictor
from sanitizer.parallel.group import ALONE, Group
from sanitizer.report.model import Evaluation, ProbeResult

BATCH_SIZE = 500
"""Of larger images fewer: 500 of 224 x 224 took gigabytes of feature maps."""


def evaluate(
    network: nn.Module,
    image_set: ImageSet,
    triggers: Sequence[Trigger],
    *,
    num_classes: int,
    device: torch.device,
    draft: torch.dtype = torch.float32,
    on_images: Callable[[int], None] = lambda _images: None,
    group: Group = ALONE,
) -> Evaluation:
    """All figures of one model. The network is put into eval mode.

    Args:
        draft: What the network may compute in where that leaves no doubt about the answer;
            `Predictor` says how.
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
    # One for each kind of images: how far a draft is off depends on how large the logits are.
    predict, *predict_with = [Predictor(network, device, draft) for _ in range(1 + len(triggers))]
    for images, their_labels in _batches(image_set, group.share(len(image_set))):
        clean.append(predict(images))
        on_images(len(their_labels) * group.size)
        for trigger, answer, predictions in zip(triggers, predict_with, triggered, strict=True):
            others = their_labels != trigger.target_class
            # The metrics leave the target's own images out; their places hold the clean answer.
            everywhere = clean[-1].clone()
            if others.any():
                everywhere[others] = answer(trigger.apply(images[others]))
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
    size = images_at_once(image_set.shape, BATCH_SIZE)
    for start in range(rows.start, rows.stop, size):
        places = np.arange(start, min(start + size, rows.stop))
        yield torch.from_numpy(image_set.read(places)), torch.from_numpy(image_set.labels[places])
