"""Looks what of the augmentation the model of a run does not bear, and whether its task is easy."""

import json
from dataclasses import asdict
from time import monotonic

from sanitizer.evaluation.augmentation import Borne, find_borne
from sanitizer.events import MetricEvent, Stage
from sanitizer.spec import augmentation_of, looks_first, trainings_of
from sanitizer.stages.measure import knows_little
from sanitizer.stages.run import Run
from sanitizer.warning_codes import WarningCode


def fit_augmentation(run: Run) -> None:
    """Finds what the suspect model bears, before anything is trained, and warns of the rest.

    Trainings with `fit_augmentation` or `easy_batch_size` are fitted to it where they begin; others
    do as they are told.
    What a model that knows nothing makes of changed images says nothing.
    """
    padding, flip = augmentation_of(run.spec.method)
    if not looks_first(run.spec.method) or knows_little(run):
        return
    if run.state.borne is None:
        found = json.loads(run.group.from_leader(lambda: _found(run, padding, flip)))
        seconds = found.pop("seconds")
        run.state.borne = Borne(**found)
        values = {name: float(value) for name, value in found.items()}
        run.journal.emit(MetricEvent(stage=Stage.FIT, values=values))
        run.record(Stage.FIT, seconds, values=values)
        run.save()
    _warn(run, run.state.borne, padding, flip)


def _found(run: Run, padding: int, flip: bool) -> str:
    run.journal.begin(Stage.FIT, "Looking which crops and mirrored images the model bears.")
    begun = monotonic()
    borne = find_borne(
        run.network,
        run.trained_on,
        crop_padding=padding,
        horizontal_flip=flip,
        seed=run.spec.seed,
        device=run.device,
        on_images=lambda images: run.progress.add(Stage.FIT, images),
    )
    return json.dumps({**asdict(borne), "seconds": monotonic() - begun})


def _warn(run: Run, borne: Borne, padding: int, flip: bool) -> None:
    told = []
    if flip and not borne.horizontal_flip:
        told.append(f"{100 * borne.kept_flipped:.0f}% when they are mirrored")
    if borne.crop_padding < padding:
        told.append(
            f"{100 * borne.kept_padded:.0f}% when they are shifted by up to {padding} pixels"
        )
    if not told:
        return
    seen = (
        "Of the images that the model as it came gets right it still gets right "
        f"{' and '.join(told)}, or a class loses more than two thirds."
    )
    trainings = dict(trainings_of("method", run.spec.method))
    fitted = [
        borne.fitted(each, min(run.inputs.suspect.input_size))
        for each in trainings.values()
        if each.fit_augmentation
    ]
    farthest = max((each.crop_padding for each in fitted), default=0)
    pixels = "1 pixel" if farthest == 1 else f"{farthest} pixels"
    crops = f"crops by {pixels}" if farthest else "no crops"
    mirrored = "" if borne.horizontal_flip or not flip else ", without mirrored images"
    obstinate = [
        name
        for name, training in trainings.items()
        if not training.fit_augmentation and not borne.bears(training)
    ]
    if fitted:
        run.journal.warn(
            WarningCode.AUGMENTATION_FITTED, f"{seen} It is trained with {crops}{mirrored}."
        )
    if obstinate:
        run.journal.warn(
            WarningCode.AUGMENTATION_NOT_BORNE,
            f"{seen} {', '.join(obstinate)} may unteach it what it knows: "
            "`fit_augmentation` true leaves out what it does not bear.",
        )
