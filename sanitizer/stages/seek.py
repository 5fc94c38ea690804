"""Searches the suspect model of a run for triggers that it falls for, to train it against them."""

from time import monotonic

import torch

from sanitizer.data.splits import draw
from sanitizer.evaluation.metrics import attack_success_rate
from sanitizer.evaluation.predict import predict
from sanitizer.events import MetricEvent, Stage
from sanitizer.methods.random_triggers import NAMES, pictures_of, put_on
from sanitizer.methods.trigger_search import FoundTriggers, find_triggers
from sanitizer.randomness import derive_seed
from sanitizer.report.model import MisleadingTrigger, Proportion
from sanitizer.stages.run import Run

TOLD_TARGETS = 3
"""Classes of each kind that the report tells of."""
MEASURED = 200
"""Evaluation images, at most, that it is told by: of so many a rate is known to 7 points."""

AT_ONCE = 50


def seek(run: Run) -> FoundTriggers:
    """Searches the network as it stands, unless that was done; alone, each of a group does."""
    if not run.state.sought:
        run.journal.begin(
            Stage.SEEK, "Looking for triggers of known kinds that the model falls for."
        )
        begun = monotonic()
        found = find_triggers(
            run.network,
            run.trained_on,
            pictures_of(run.trained_on, run.spec.seed),
            seed=run.spec.seed,
            precision=run.precision,
            device=run.device,
            on_images=lambda images: run.progress.add(Stage.SEEK, images),
        )
        run.state.sought = found.state()
        run.state.misled = _rates(run, found)
        values: dict[str, float] = {}
        for (kind, _), rate in run.state.misled:
            name = f"rate.{NAMES[kind]}"
            values[name] = max(values.get(name, 0.0), rate.value)
        run.journal.emit(MetricEvent(stage=Stage.SEEK, values=values))
        run.record(Stage.SEEK, monotonic() - begun, values=values)
        run.save()
    return FoundTriggers.of_state(run.state.sought)


def misleading(run: Run) -> list[MisleadingTrigger] | None:
    """What was found, and what the network as it stands makes of it; None: nobody searched."""
    if not run.state.sought:
        return None
    found = FoundTriggers.of_state(run.state.sought)
    told = [
        MisleadingTrigger(
            kind=NAMES[kind],
            target_class=int(found.kinds[kind].targets[place]),
            before=before,
            after=after,
        )
        for ((kind, place), before), (_, after) in zip(
            run.state.misled, _rates(run, found), strict=True
        )
    ]
    return sorted(told, key=lambda each: -each.before.value)


def _rates(run: Run, found: FoundTriggers) -> list[tuple[tuple[int, int], Proportion]]:
    """Of the strongest triggers, how many evaluation images of other classes each leads to its own
    in the network as it stands."""
    run.network.eval()
    evaluation = run.inputs.evaluation
    places = draw(
        evaluation.labels,
        min(MEASURED, len(evaluation)),
        derive_seed(run.spec.seed, "misleading"),
    )
    images = torch.from_numpy(evaluation.read(places)).float() / 255
    labels = torch.from_numpy(evaluation.labels[places].copy())
    pictures = pictures_of(run.trained_on, run.spec.seed)
    rates = []
    for kind, place in found.strongest(TOLD_TARGETS):
        target = int(found.kinds[kind].targets[place])
        if (labels == target).all():
            continue
        answers = []
        for start in range(0, len(images), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            part = images[some]
            numbers = tuple(each[[place] * len(part)] for each in found.kinds[kind].numbers)
            changed = 255 * put_on(part, kind, numbers, pictures)
            answers.append(predict(run.network, changed.round().to(torch.uint8), run.device))
        rates.append(((kind, place), attack_success_rate(torch.cat(answers), labels, target)))
    return rates
