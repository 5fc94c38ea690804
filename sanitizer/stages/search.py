"""Searches the network of a run for triggers, where that was asked for."""

from time import monotonic

from sanitizer.cost.workload import RATED_IMAGES, SEARCH_FAMILIES, inspection_passes
from sanitizer.data.splits import draw
from sanitizer.evaluation.inspection import SEARCHED_IMAGES, classes_of, inspect
from sanitizer.evaluation.inversion import Found, Subject, restore
from sanitizer.events import MetricEvent, Stage
from sanitizer.randomness import derive_seed
from sanitizer.report.model import ChangeFamily, Inspections
from sanitizer.stages.run import Run


def search(run: Run, stage: Stage, message: str) -> list[Found]:
    """Searches the network as it stands.

    The leader alone does: one search after the other leaves nothing to share.
    """
    if not run.group.is_leader:
        return []
    subject = subject_of(run)
    kept = run.state.searches.setdefault(stage.value, [])
    found = [restore(subject, each) for each in kept]
    if stage.value in run.state.inspected:
        return found
    run.journal.begin(stage, message)
    begun = saved_at = monotonic()

    def on_search() -> None:
        nonlocal saved_at
        new = found[len(kept) :]
        kept.extend(each.state() for each in new)
        run.progress.add(stage, len(new) * inspection_passes(1) / SEARCH_FAMILIES)
        if monotonic() - saved_at >= run.spec.checkpoint_seconds:
            run.save()
            saved_at = monotonic()

    # What was found before is to be compared with the same class.
    before = run.state.inspected.get(Stage.INSPECT.value)
    first = before.suspicious if before else ()
    inspection = inspect(subject, found, on_search, first=first)
    run.state.inspected[stage.value] = inspection
    values = {
        f"estimated_asr.{each.target_class}": each.estimated_asr for each in inspection.classes
    }
    values["anomaly"] = inspection.anomaly
    run.journal.emit(MetricEvent(stage=stage, values=values))
    run.record(stage, monotonic() - begun)
    run.save()
    return found


def subject_of(run: Run) -> Subject:
    """The network with the images that it is searched with, the same before and after."""
    evaluation = run.inputs.evaluation
    clean = run.trained_on
    seed = derive_seed(run.spec.seed, "inspection")
    return Subject(
        network=run.network.eval(),
        point=run.inputs.suspect.taps[-1],
        num_classes=run.inputs.suspect.num_classes,
        searched=clean.subset(draw(clean.labels, min(SEARCHED_IMAGES, len(clean)), seed)),
        measured=evaluation.subset(
            draw(evaluation.labels, min(RATED_IMAGES, len(evaluation)), seed)
        ),
        device=run.device,
        seed=run.spec.seed,
    )


def inspections_of(run: Run, before: list[Found]) -> Inspections | None:
    """What both searches say, and what the changes that were found before do now.

    Args:
        before: What was found in the suspect model.
    """
    if not run.spec.inspect or not run.group.is_leader:
        return None
    return Inspections(
        before=run.state.inspected[Stage.INSPECT],
        after=run.state.inspected[Stage.REINSPECT],
        carried=classes_of(subject_of(run), carried(before), {}),
    )


def carried(found: list[Found]) -> list[Found]:
    """Of what was found in a model, that which can be tried on another."""
    return [each for each in found if each.change.family is not ChangeFamily.FEATURES]
