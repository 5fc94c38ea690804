"""Images of a run that carry a trigger: found by the suspect model's eyes, told, left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from sanitizer.data.image_set import ImageSet
from sanitizer.evaluation.metrics import wilson
from sanitizer.evaluation.screening import Carrier, Screen, difference_of_halves, sum_of
from sanitizer.inputs import Inputs
from sanitizer.report.model import CarriedTrigger, Proportion, Screening, Traced
from sanitizer.spec import SanitizeSpec

MAX_NAMES = 100


PICTURED_CLASSES = 4
PICTURED_IMAGES = 8


class Screened(BaseModel):
    """What became of a screening; as JSON a part of the checkpoint.

    Attributes:
        record: For the report.
        clean: Places among the clean images of those that carry a trigger, class by class, in the
            order of the record.
        evaluation: Likewise of images to be measured on, of all classes together.
        traced: What the trace of each class led there in the suspect model; None: no image to try.
    """

    model_config = ConfigDict(frozen=True)

    record: Screening
    clean: list[list[int]]
    evaluation: list[int]
    traced: list[Proportion | None] = []  # which checkpoints of older versions lack

    @property
    def left_out(self) -> NDArray[np.int64]:
        """Places among the clean images of all that go."""
        return np.array(sorted(place for part in self.clean for place in part), dtype=np.int64)

    def applied(self, inputs: Inputs, spec: SanitizeSpec) -> Inputs:
        """What the run goes on with."""
        if not self.record.left_out:
            return inputs
        return inputs.without(self.left_out, np.array(self.evaluation, dtype=np.int64), spec)

    def warning(self, class_names: Sequence[str]) -> str:
        """What a person should know of it; empty: nothing was found."""
        if not self.record.left_out:
            return ""
        told = [
            f"{each.left_out} of class {_called(each.target_class, class_names)}: what sets them "
            f"apart leads {each.carried.value:.0%} of the images of other classes there"
            for each in self.record.classes
        ]
        held = self.record.held_out
        return (
            f"Of {self.record.images:,} clean images {self.record.left_out} carry a trigger, "
            f"{'; '.join(told)}. They were left out"
            + (f", and {held} of those kept apart for measuring" if held else "")
            + ". screening.png shows some of them, the report names them; to train on all images "
            "after all, set screen to false."
        )

    def pictured(self, images: ImageSet) -> list["Pictured"]:
        """What to show of it.

        Args:
            images: The clean ones, with those that were left out.
        """
        pictures = []
        for part in _parts_of(self.record, self.clean, images)[:PICTURED_CLASSES]:
            pictures.append(
                Pictured(
                    part.target,
                    images.read(part.left_out[:PICTURED_IMAGES]),
                    images.read(part.kept[:PICTURED_IMAGES]),
                    part.trace(images),
                )
            )
        return pictures

    def retold(
        self, images: ImageSet, inputs: Inputs, seed: int, device: torch.device
    ) -> Screening:
        """The record, and what the traces that were found do to the network as it is now.

        Args:
            images: The clean ones, with those that were left out.
            inputs: Of the run; their network is on `device`, and sanitized.
            seed: Of the run.
        """
        eyes = Screen(inputs.suspect.network.eval(), inputs.suspect.taps[-1], device)
        parts = _parts_of(self.record, self.clean, images)
        before_by_class = self.traced or [None] * len(parts)
        classes = []
        for record, part, before in zip(self.record.classes, parts, before_by_class, strict=True):
            traces = [part.trace(images), part.control(images)]
            led, tried = eyes.led_by(inputs.evaluation, traces, part.target, seed)
            traced = None
            if before is not None and tried:
                after, control = (wilson(count, tried) for count in led)
                traced = Traced(before=before, after=after, control=control)
            classes.append(record.model_copy(update={"traced": traced}))
        return self.record.model_copy(update={"classes": classes})


@dataclass(frozen=True)
class _Part:
    """A class with images that were left out: their places, and those of the others."""

    target: int
    left_out: NDArray[np.int64]
    kept: NDArray[np.int64]

    def trace(self, images: ImageSet) -> NDArray[np.float64]:
        """Mean picture of those left out, less that of the others, [C, H, W]."""
        return _mean_of(images, self.left_out) - _mean_of(images, self.kept)

    def control(self, images: ImageSet) -> NDArray[np.float64]:
        """As large a difference, of nothing but chance, [C, H, W]."""
        return difference_of_halves(images, self.kept, self.trace(images))


def _parts_of(
    record: Screening, left_out: Sequence[Sequence[int]], images: ImageSet
) -> list[_Part]:
    parts = []
    for each, places in zip(record.classes, left_out, strict=True):
        of_class = np.flatnonzero(images.labels == each.target_class)
        parts.append(_Part(each.target_class, np.array(places), np.setdiff1d(of_class, places)))
    return parts


@dataclass(frozen=True)
class Pictured:
    """Images of one class, for a picture.

    Attributes:
        target: The class.
        left_out: Some that carry a trigger, [n, C, H, W].
        kept: Some others.
        trace: Mean picture of all that were left out, less that of all others, [C, H, W], in pixel
            values.
    """

    target: int
    left_out: NDArray[np.uint8]
    kept: NDArray[np.uint8]
    trace: NDArray[np.float64]


def screen(
    inputs: Inputs, seed: int, device: torch.device, on_images: Callable[[int], None]
) -> Screened:
    """Looks for images that carry a trigger, among the clean ones.

    Those that are measured on are looked at where they were kept apart from the clean ones: what a
    user gave to measure on stays as it is.

    Args:
        inputs: Their network is on `device`.
        seed: Of the run.
        on_images: Told how many images went through the network since the last call.
    """
    begun = monotonic()
    clean, suspect = inputs.clean, inputs.suspect
    eyes = Screen(suspect.network.eval(), suspect.taps[-1], device, on_images)
    carriers = eyes.carriers(clean, seed)
    held = np.empty(0, dtype=np.int64)
    if inputs.evaluation_record.source == "held_out":
        held = eyes.carried_by(inputs.evaluation, carriers)
    by_class = {each.target: [c for c in carriers if c.target == each.target] for each in carriers}
    places = [np.sort(np.concatenate([c.places for c in same])) for same in by_class.values()]
    record = Screening(
        images=len(clean),
        left_out=sum(map(len, places)),
        held_out=len(held),
        classes=[
            _told(same, part, clean) for same, part in zip(by_class.values(), places, strict=True)
        ],
        seconds=0,
    )
    lists = [part.tolist() for part in places]
    measured = inputs.evaluation
    measured = measured.subset(np.setdiff1d(np.arange(len(measured)), held))
    traced = []
    for part in _parts_of(record, lists, clean):
        (led,), tried = eyes.led_by(measured, [part.trace(clean)], part.target, seed)
        traced.append(wilson(led, tried) if tried else None)
    seconds = round(monotonic() - begun, 3)
    return Screened(
        record=record.model_copy(update={"seconds": seconds}),
        clean=lists,
        evaluation=held.tolist(),
        traced=traced,
    )


def _told(
    carriers: Sequence[Carrier], places: NDArray[np.int64], images: ImageSet
) -> CarriedTrigger:
    """Of one class: the figures of the part that was found first, which stands out most."""
    first = carriers[0]
    return CarriedTrigger(
        target_class=first.target,
        images=first.looked_at,
        left_out=len(places),
        names=[images.names[place] for place in places[:MAX_NAMES]],
        separation=first.split.separation,
        carried=wilson(round(first.rate * first.tried), first.tried),
    )


def _mean_of(images: ImageSet, places: NDArray[np.int64]) -> NDArray[np.float64]:
    return sum_of(images, places) / max(1, len(places))


def _called(label: int, class_names: Sequence[str]) -> str:
    name = class_names[label] if label < len(class_names) else ""
    return f"{label} ({name})" if name and name != str(label) else str(label)
