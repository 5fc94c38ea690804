"""Looks for images with a trigger among the clean ones of a run."""

from sanitizer.events import MetricEvent, Stage
from sanitizer.progress import Preparation
from sanitizer.screened import Screened, screen
from sanitizer.stages.run import Run
from sanitizer.warning_codes import WarningCode


def screen_images(run: Run) -> Screened:
    """Leaves out what carries a trigger, before anything is measured or trained."""
    screened = Screened.model_validate_json(run.group.from_leader(lambda: _screened(run)))
    run.inputs = screened.applied(run.inputs, run.spec)
    if warning := screened.warning(run.inputs.clean.class_names):
        run.journal.warn(WarningCode.TRIGGERED_IMAGES, warning)
    return screened


def _screened(run: Run) -> str:
    if run.state.screened is not None:
        return run.state.screened
    run.journal.begin(Stage.SCREEN, "Looking for images that carry a trigger.")
    telling = Preparation(run.journal.emit, Stage.SCREEN)
    images = len(run.inputs.clean)
    done = 0

    def on_images(count: int) -> None:
        nonlocal done
        done += count
        telling(min(done, images), images)

    screened = screen(run.inputs, run.spec.seed, run.device, on_images)
    values = {f"left_out.{each.target_class}": each.left_out for each in screened.record.classes}
    run.journal.emit(
        MetricEvent(stage=Stage.SCREEN, values={"left_out": screened.record.left_out, **values})
    )
    run.record(Stage.SCREEN, screened.record.seconds)
    run.state.screened = screened.model_dump_json()
    run.save()
    return run.state.screened
