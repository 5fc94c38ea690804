"""Tells where the model of a run seems to expect other images than it gets."""

import json
from collections.abc import Sequence
from time import monotonic

from sanitizer.evaluation.expectation import Expectation, Prepared, find_expectation
from sanitizer.events import Stage
from sanitizer.progress import Preparation
from sanitizer.report.model import WarningRecord
from sanitizer.stages.measure import chance_warning
from sanitizer.stages.run import Run
from sanitizer.warning_codes import WarningCode

PREPARATION, ORDER = WarningCode.PREPARATION_SUSPECTED, WarningCode.CLASS_ORDER_SUSPECTED
CONVERTING = ("googlenet", "inception_v3")
"""Networks of torchvision that may turn images prepared in ImageNet's way into others."""
_LISTED = 12
"""Classes of an order that a warning names."""


def look_at_expectation(run: Run) -> None:
    """Looks at a few clean images whether another preparation of them, or another order of the
    classes, does far better; warns, and keeps what speaks against the figures of the run.

    Nothing is changed by it: the request says what is done. But what such a model makes of its
    images says nothing of them, so they are not screened.
    """
    if run.state.doubts is None:
        found = json.loads(run.group.from_leader(lambda: json.dumps(_found(run))))
        run.state.doubts = [WarningRecord(code=code, message=message) for code, message in found]
        run.save()
    for each in run.state.doubts:
        run.journal.warn(each.code, each.message)


def warn_of_chance(run: Run) -> None:
    """Tells where the suspect model knows next to nothing of the images, once it is measured."""
    if (warning := chance_warning(run)) is not None:
        run.journal.warn(*warning)


def doubts_of(run: Run) -> list[str]:
    """What speaks against the figures of a run, once its suspect model is measured."""
    chance = chance_warning(run)
    told = [] if chance is None else [chance[1]]
    return told + [each.message for each in run.state.doubts or ()]


def _found(run: Run) -> list[tuple[str, str]]:
    begun = monotonic()
    prepared = Preparation(run.journal.emit, Stage.LOAD)
    seen = 0

    def count(images: int) -> None:
        nonlocal seen
        seen += images
        prepared(seen, seen)

    expectation = find_expectation(
        run.network,
        run.inputs.clean,
        num_classes=run.inputs.suspect.num_classes,
        seed=run.spec.seed,
        device=run.device,
        on_images=count,
    )
    # Told as what it is, a measurement, once there is one of all.
    run.state.expectation_seconds = monotonic() - begun
    told = _told(run, expectation)
    if told and run.spec.screen:
        code, message = told[-1]
        told[-1] = (code, f"{message} The images are not screened for triggers.")
    return told


def _told(run: Run, found: Expectation) -> list[tuple[str, str]]:
    if found.is_met:
        return []
    suspect, names = run.inputs.suspect, run.inputs.evaluation.class_names
    seen = (
        f"Of {found.images} clean images the model as it came gets {_share(found.right, found)} "
        f"right as the request has them, and {_share(found.right_so, found)} "
    )
    told: list[tuple[str, str]] = []
    if found.better is not None:
        mean, std = found.better
        also = " and its outputs in another order" if found.order else ""
        told.append(
            (
                PREPARATION,
                f"{seen}with mean {_listed(mean)} and std {_listed(std)}{also} (here: mean "
                f"{_listed(suspect.mean)}, std {_listed(suspect.std)}). It was probably trained "
                "so. Give the model this `mean` and `std`: what is trained otherwise is of no use "
                f"where it is used.{why_prepared_so(suspect.architecture, found.better)}",
            )
        )
    if found.order is not None:
        order = [names[place] for place in found.order]
        shown = ", ".join(order[:_LISTED]) + (", ..." if len(order) > _LISTED else "")
        also = ", prepared otherwise besides" if found.better else ""
        told.append(
            (
                ORDER,
                f"{seen}where its outputs stand for the classes in this order: {shown}{also}. Give "
                "the data's `class_names` in the order of the model's outputs (where images come "
                "in folders), or other labels: what is trained so answers in another order than "
                "before.",
            )
        )
    return told


def why_prepared_so(architecture: str, better: Prepared) -> str:
    """What explains another preparation than the one the owner knows of; empty: nothing does."""
    if architecture not in CONVERTING or {*better[0], *better[1]} != {0.5}:
        return ""
    return (
        f" torchvision's pretrained {architecture} converts its images by itself "
        "(`transform_input`), which the weights do not say: it gets ImageNet's mean and std, and "
        "0.5 and 0.5 is what it computes with."
    )


def _share(count: int, found: Expectation) -> str:
    return f"{100 * count / max(1, found.images):.1f}%"


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
