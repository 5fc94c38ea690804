"""Searches the suspect model of a run for triggers that it falls for, to train it against them."""

from time import monotonic

from sanitizer.events import MetricEvent, Stage
from sanitizer.methods.random_triggers import NAMES, pictures_of
from sanitizer.methods.trigger_search import FoundTriggers, find_triggers
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
        values = {
            f"rate.{NAMES[kind]}": round(float(of_kind.rates.max()), 4)
            for kind, of_kind in found.kinds.items()
        }
        run.journal.emit(MetricEvent(stage=Stage.SEEK, values=values))
        run.record(Stage.SEEK, monotonic() - begun, values=values)
        run.save()
    return FoundTriggers.of_state(run.state.sought)
