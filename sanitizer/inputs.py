"""What a run works on: the suspect model, the images and the triggers, read and checked."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sanitizer.attacks.trigger import Trigger, make_trigger
from sanitizer.data.image_set import ImageSet, decode
from sanitizer.data.readers import open_source
from sanitizer.data.source import (
    ImageSource,
    check_classes,
    check_every_class,
    check_same_order,
)
from sanitizer.data.splits import draw, hold_out
from sanitizer.errors import InvalidSpec
from sanitizer.events import Stage
from sanitizer.journal import Journal
from sanitizer.methods.plan import check_applies
from sanitizer.networks import cifar_resnet
from sanitizer.networks.checkpoints import Checkpoint, read_checkpoint
from sanitizer.networks.registry import LoadedNetwork, load_network
from sanitizer.parallel.group import Group
from sanitizer.progress import Preparation
from sanitizer.randomness import derive_seed
from sanitizer.report.artifacts import sha256_of
from sanitizer.report.model import DataRecord, ModelFile, ModelRecord
from sanitizer.spec import AutoConfig, DataSource, MethodConfig, SanitizeSpec
from sanitizer.warning_codes import WarningCode

Digests = NDArray[np.uint8]
"""Of each image of a set, [N, 16]."""

EXAMPLE_PICTURES = 8


@dataclass(frozen=True)
class Inputs:
    """All that was loaded and checked before anything is trained."""

    checkpoint: Checkpoint
    suspect: LoadedNetwork
    input_file: ModelFile
    clean: ImageSet
    clean_record: DataRecord
    clean_sha256: str
    """Of pixels and labels, whatever file they came from."""
    evaluation: ImageSet
    evaluation_record: DataRecord
    evaluation_sha256: str
    curve: ImageSet | None
    examples: Tensor
    """[N, C, H, W], uint8: evaluation images whose class is not the first probe's target."""
    example_labels: Tensor
    triggers: tuple[Trigger, ...]

    def without(
        self, clean: NDArray[np.int64], evaluation: NDArray[np.int64], spec: SanitizeSpec
    ) -> "Inputs":
        """The same but for some images.

        Args:
            clean: Places of those that go, among the clean images.
            evaluation: Likewise, among those that are measured on.
            spec: Of the run.
        """
        trained_on, measured_on = _without(self.clean, clean), _without(self.evaluation, evaluation)
        curve, examples, example_labels = _looked_at(measured_on, self.triggers, spec)
        classes = self.suspect.num_classes
        return replace(
            self,
            clean=trained_on,
            clean_record=_counted(self.clean_record, trained_on, classes),
            evaluation=measured_on,
            evaluation_record=_counted(self.evaluation_record, measured_on, classes),
            curve=curve,
            examples=examples,
            example_labels=example_labels,
        )

    def model_record(self) -> ModelRecord:
        """What the report says of the model."""
        suspect = self.suspect
        return ModelRecord(
            architecture=suspect.architecture,
            detected=suspect.detected,
            num_classes=suspect.num_classes,
            input_size=suspect.input_size,
            channels=suspect.channels,
            mean=list(suspect.mean),
            std=list(suspect.std),
            parameters=sum(p.numel() for p in suspect.network.parameters()),
            taps=[tap.module for tap in suspect.taps],
            dropped_entries=list(self.checkpoint.dropped_entries),
        )


def load_inputs(spec: SanitizeSpec, work: Path, journal: Journal, group: Group) -> Inputs:
    """Reads, checks and decodes all that a run needs.

    Args:
        work: Folder for decoded images.
        journal: Hears of progress and warnings.
        group: The processes that share the run; the leader decodes, the others find it done.

    Raises:
        SanitizerError: Something is wrong with model, images or triggers; see `sanitizer.errors`.
    """
    return _Loader(spec, work, journal, group).load()


class _Loader:
    def __init__(self, spec: SanitizeSpec, work: Path, journal: Journal, group: Group) -> None:
        self.spec = spec
        self.work = work
        self.journal = journal
        self.group = group

    def load(self) -> Inputs:
        """Reads, checks and decodes."""
        spec = self.spec
        input_file_bytes = spec.model.path.stat().st_size
        checkpoint = read_checkpoint(spec.model.path)
        suspect = load_network(checkpoint, spec.model)
        if suspect.detected and cifar_resnet.is_changed_torchvision(suspect.network.network):
            self.journal.warn(
                WarningCode.STEM_ASSUMED,
                "The weights are those of a torchvision ResNet with another stem; it is taken as "
                f"a {suspect.architecture}: a stem of stride 1 and no pooling after it, which the "
                "weights do not say. If the accuracy before is far from what you know of this "
                "model, its stem is another, and the figures are not its own.",
            )
        triggers = tuple(
            make_trigger(
                probe,
                input_size=suspect.input_size,
                channels=suspect.channels,
                num_classes=suspect.num_classes,
            )
            for probe in spec.probes
        )
        self._check_taps(len(suspect.taps))
        check_applies(spec.method, suspect.network, (suspect.channels, *suspect.input_size))
        clean_source = self._open(spec.clean_data, suspect, "clean data")
        indices = draw(clean_source.labels, spec.clean_data.images, spec.clean_data.seed)
        check_every_class(
            clean_source.labels[indices], suspect.num_classes, clean_source.class_names
        )
        if spec.evaluation_data is None:
            clean_indices, held = hold_out(
                clean_source.labels[indices], spec.holdout, spec.clean_data.seed
            )
            evaluation_source, evaluation_indices = clean_source, indices[held]
            indices = indices[clean_indices]
            check_every_class(
                clean_source.labels[indices],
                suspect.num_classes,
                clean_source.class_names,
                what="clean data without the held-out part",
            )
        else:
            evaluation_source = self._open(spec.evaluation_data, suspect, "evaluation data")
            check_same_order(clean_source, evaluation_source)
            evaluation_indices = draw(
                evaluation_source.labels,
                spec.evaluation_data.images,
                spec.evaluation_data.seed,
            )
        clean = self._decode(clean_source, indices, suspect, "clean")
        evaluation = self._decode(evaluation_source, evaluation_indices, suspect, "evaluation")
        clean_digests = clean.digests(Preparation(self.journal.emit, Stage.LOAD))
        evaluation_digests = evaluation.digests(Preparation(self.journal.emit, Stage.LOAD))
        self._warn_of_overlap(clean_digests, evaluation_digests)
        curve, examples, example_labels = _looked_at(evaluation, triggers, spec)
        held_out = spec.evaluation_data is None
        return Inputs(
            checkpoint=checkpoint,
            suspect=suspect,
            input_file=ModelFile(
                filename=Path(spec.model.filename or spec.model.path.name).name,
                format=checkpoint.format,
                sha256=sha256_of(spec.model.path),
                bytes=input_file_bytes,
            ),
            clean=clean,
            clean_record=DataRecord(
                images=len(clean.labels),
                images_available=len(clean_source),
                per_class=clean.class_counts(suspect.num_classes),
                seed=spec.clean_data.seed,
                source="given",
            ),
            clean_sha256=_digest(clean, clean_digests),
            evaluation=evaluation,
            evaluation_record=DataRecord(
                images=len(evaluation.labels),
                images_available=len(evaluation_source),
                per_class=evaluation.class_counts(suspect.num_classes),
                seed=(spec.evaluation_data or spec.clean_data).seed,
                source="held_out" if held_out else "given",
            ),
            evaluation_sha256=_digest(evaluation, evaluation_digests),
            curve=curve,
            examples=examples,
            example_labels=example_labels,
            triggers=triggers,
        )

    def _open(self, data: DataSource, suspect: LoadedNetwork, what: str) -> ImageSource:
        source = open_source(data)
        check_classes(source, suspect.num_classes, what=what)
        for warning in source.warnings:
            self.journal.warn(warning.code, warning.message)
        return source

    def _decode(
        self,
        source: ImageSource,
        indices: NDArray[np.int64],
        suspect: LoadedNetwork,
        name: str,
    ) -> ImageSet:
        with self.group.leader_first():  # the others find what it has decoded
            image_set = decode(
                source,
                indices,
                input_size=suspect.input_size,
                channels=suspect.channels,
                folder=self.work / name,
                on_progress=Preparation(self.journal.emit, Stage.LOAD),
                threads=self.spec.threads,
            )
        if image_set.resized:
            height, width = suspect.input_size
            self.journal.warn(
                WarningCode.IMAGES_RESIZED,
                f"{image_set.resized} of {len(image_set.labels)} images of the {name} data were "
                f"resized to the model's input, {height} x {width} pixels.",
            )
        return image_set

    def _check_taps(self, taps: int) -> None:
        method: MethodConfig = self.spec.method
        if isinstance(method, AutoConfig):
            method = method.argd
        chosen = getattr(method, "taps", None)
        if chosen is not None and max(chosen) >= taps:
            raise InvalidSpec(
                f"method.taps names tap {max(chosen)}; the model has {taps}, 0 to {taps - 1}.",
                taps=taps,
            )
        nodes = taps if chosen is None else len(chosen)
        given = getattr(method, "node_weights", None)
        if given is not None and len(given) != nodes:
            whose = f"the model has {taps} taps" if chosen is None else f"method.taps {nodes}"
            raise InvalidSpec(
                f"method.node_weights has {len(given)} values, {whose}. Give one "
                "value per tap, or leave them out.",
                taps=nodes,
            )

    def _warn_of_overlap(self, clean: Digests, evaluation: Digests) -> None:
        if not self.group.is_leader:
            return
        seen = {digest.tobytes() for digest in clean}
        both = sum(digest.tobytes() in seen for digest in evaluation)
        if both:
            self.journal.warn(
                WarningCode.DATA_OVERLAP,
                f"{both} of {len(evaluation)} evaluation images are among the images "
                "trained on; their share of the accuracy says nothing about new images.",
            )


def _digest(image_set: ImageSet, digests: Digests) -> str:
    digest = hashlib.sha256(np.asarray(image_set.labels).tobytes())
    digest.update(digests.tobytes())
    return digest.hexdigest()


def _without(images: ImageSet, places: NDArray[np.int64]) -> ImageSet:
    if not len(places):
        return images
    return images.subset(np.delete(np.arange(len(images), dtype=np.int64), places))


def _counted(record: DataRecord, images: ImageSet, num_classes: int) -> DataRecord:
    counts = {"images": len(images), "per_class": images.class_counts(num_classes)}
    return record.model_copy(update=counts)


def _looked_at(
    evaluation: ImageSet, triggers: Sequence[Trigger], spec: SanitizeSpec
) -> tuple[ImageSet | None, Tensor, Tensor]:
    """Images of the curves, and of the pictures of examples with their labels."""
    curve = None
    if spec.curve_images:
        amount = min(spec.curve_images, len(evaluation.labels))
        curve = evaluation.subset(draw(evaluation.labels, amount, spec.seed))
    return curve, *_choose_examples(evaluation, triggers)


def _choose_examples(evaluation: ImageSet, triggers: Sequence[Trigger]) -> tuple[Tensor, Tensor]:
    """A few evaluation images that the first trigger should lead elsewhere, always the same."""
    labels = np.asarray(evaluation.labels)
    candidates = np.flatnonzero(labels != triggers[0].target_class) if triggers else labels[:0]
    generator = np.random.default_rng(derive_seed("examples"))
    amount = min(EXAMPLE_PICTURES, len(candidates))
    chosen = np.sort(generator.choice(candidates, amount, replace=False)).astype(np.int64)
    return (
        torch.from_numpy(evaluation.read(chosen)),
        torch.from_numpy(labels[chosen].copy()),
    )
