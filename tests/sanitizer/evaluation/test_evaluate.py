"""The figures of a model, each counted by hand."""

import pytest
import torch
from torch import Tensor, nn

from sanitizer.attacks.trigger import Trigger, make_trigger
from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.evaluate import evaluate
from sanitizer.report.model import Proportion
from sanitizer.spec import PatchProbe

CLASSES = 4
CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Calls an image by its upper left pixel, or, if that is bright, by its lower right one.

    In training it calls everything a 0.
    """

    def forward(self, images: Tensor) -> Tensor:
        first, last = images[:, 0, 0, 0], images[:, 0, -1, -1]
        said = (255 * torch.where(first > 0.5, last, first)).round().long()
        if self.training:
            said = torch.zeros_like(said)
        return nn.functional.one_hot(said, CLASSES).float()


def image_set() -> ImageSet:
    """600 images, of which the network gets some wrong: more than go through it at once."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (600,), generator=generator)
    images = torch.randint(CLASSES, (600, 1, 2, 2), generator=generator)
    right = torch.rand(600, generator=generator) < 0.6
    images[right, 0, 0, 0] = labels[right]
    return ImageSet.from_arrays(images.to(torch.uint8).numpy(), labels.numpy())


def trigger(name: str, target: int, pixels: list[list[int]]) -> Trigger:
    probe = PatchProbe(name=name, target_class=target, row=0, column=0, pixels=pixels)
    return make_trigger(probe, input_size=(2, 2), channels=1, num_classes=CLASSES)


TRIGGERS = trigger("sure", 2, [[255, 0], [0, 2]]), trigger("weak", 1, [[255]])


def counted(hits: list[bool]) -> tuple[int, int]:
    return sum(hits), len(hits)


def count(share: Proportion) -> tuple[int, int]:
    return share.count, share.total


@pytest.mark.parametrize("training", [False, True])
def test_every_figure_is_what_a_count_image_by_image_gives(training: bool) -> None:
    images = image_set()
    figures = evaluate(
        Brightness().train(training), images, TRIGGERS, num_classes=CLASSES, device=CPU
    )

    pixels, labels = images.images, images.labels.tolist()
    clean = [int(image[0, 0, 0]) for image in pixels]
    assert count(figures.accuracy) == counted([a == b for a, b in zip(clean, labels, strict=True)])
    for label in range(CLASSES):
        own = [said == label for said, true in zip(clean, labels, strict=True) if true == label]
        assert count(figures.accuracy_per_class[label]) == counted(own)

    sure, weak = figures.probes
    told = {"sure": [2] * 600, "weak": [int(image[0, 1, 1]) for image in pixels]}
    for probe, target in ((sure, 2), (weak, 1)):
        with_trigger = told[probe.name]
        others = [place for place in range(600) if labels[place] != target]
        assert probe.target_class == target
        assert count(probe.asr) == counted([with_trigger[i] == target for i in others])
        assert count(probe.ra) == counted([with_trigger[i] == labels[i] for i in others])
        assert count(probe.natural_rate) == counted([clean[i] == target for i in others])
        assert sorted(probe.asr_per_class) == sorted(probe.ra_per_class)
        assert sorted(probe.asr_per_class) == sorted({*range(CLASSES)} - {target})
        for label, share in probe.asr_per_class.items():
            places = [i for i in others if labels[i] == label]
            assert count(share) == counted([with_trigger[i] == target for i in places])
            robust = probe.ra_per_class[label]
            assert count(robust) == counted([with_trigger[i] == label for i in places])
    assert sure.asr.value == 1
    assert 0 < weak.asr.value < 0.5


def test_the_images_stay_as_they_are() -> None:
    images = image_set()
    before = images.images.copy()
    evaluate(Brightness(), images, TRIGGERS, num_classes=CLASSES, device=CPU)
    assert (images.images == before).all()


def test_every_image_that_goes_through_the_network_is_told_of() -> None:
    images, told = image_set(), list[int]()
    figures = evaluate(
        Brightness(), images, TRIGGERS, num_classes=CLASSES, device=CPU, on_images=told.append
    )
    assert sum(told) == 600 + sum(probe.asr.total for probe in figures.probes)
