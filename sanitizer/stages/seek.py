"""Searches the suspect model of a run for triggers that it falls for, to train it against them."""

from time import monotonic

from sanitizer.evaluation.misleading import Found, rates_of_strongest
from sanitizer.events import MetricEvent, Stage
from sanitizer.methods.random_triggers import NAMES, pictures_of
from sanitizer.methods.trigger_search import FoundTriggers, find_triggers
from sanitizer.report.model import MisleadingTrigger, Proportion
from sanitizer.report.telling import LEAST_TOLD, highest_of_others, speaks_from
from sanitizer.stages.run import Run


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
    suspect = run.inputs.suspect
    before = [
        (NAMES[kind], int(found.kinds[kind].targets[place]), rate)
        for (kind, place), rate in run.state.misled
    ]
    rates = [(kind, target, rate.value) for kind, target, rate in before]
    told = []
    for (kind, target, rate), (_, after) in zip(before, _rates(run, found), strict=True):
        others = highest_of_others(rates, kind, target)
        limit = speaks_from(kind, others, suspect.input_size, suspect.num_classes)
        told.append(
            MisleadingTrigger(
                kind=kind,
                target_class=target,
                before=rate,
                after=after,
                speaks_from=limit if rate.total >= LEAST_TOLD else None,
            )
        )
    return sorted(told, key=lambda each: -each.before.value)


def _rates(run: Run, found: FoundTriggers) -> list[tuple[Found, Proportion]]:
    """What the network as it stands makes of the strongest, on evaluation images."""
    return rates_of_strongest(
        run.network,
        found,
        run.inputs.evaluation,
        pictures_of(run.trained_on, run.spec.seed),
        seed=run.spec.seed,
        device=run.device,
    )
