"""Trains the sanitized network of a run further, where that was asked for."""

from sanitizer.cost.workload import RETUNED_IMAGES, RETUNING_RATE
from sanitizer.data.splits import draw
from sanitizer.errors import NotEnoughImages, TrainingDiverged
from sanitizer.evaluation.durability import Delivered, measure_durability, retuning_of
from sanitizer.events import MetricEvent, Stage
from sanitizer.randomness import derive_seed
from sanitizer.report.model import Durability
from sanitizer.stages.run import Run
from sanitizer.warning_codes import WarningCode


def retune(run: Run) -> Durability | None:
    """Trains copies of the sanitized network further, where that was asked for.

    A kill loses the retuning under way, which is brief; those before it are kept. All of a
    group share each of them.
    """
    if not run.spec.durability:
        return None
    is_new = Stage.RETUNE not in {record.stage for record in run.state.finished}
    if is_new:
        run.journal.begin(
            Stage.RETUNE,
            "Training copies of the sanitized model further, to see what comes back.",
        )
    evaluation = run.inputs.evaluation
    seed = derive_seed(run.spec.seed, "durability")
    training = retuning_of(run.spec.method)
    if run.state.borne:
        training = run.state.borne.fitted(training, min(run.inputs.suspect.input_size))
    delivered = Delivered(
        network=run.network,
        num_classes=run.inputs.suspect.num_classes,
        clean=run.inputs.clean,
        measured=evaluation.subset(
            draw(evaluation.labels, min(RETUNED_IMAGES, len(evaluation)), seed)
        ),
        probes=run.spec.probes,
        training=training,
        seed=run.spec.seed,
        device=run.device,
        precision=run.precision,
        group=run.group,
    )
    try:
        durability = measure_durability(
            delivered,
            run.state.retuned,
            lambda passes: run.progress.add(Stage.RETUNE, passes),
            lambda: run.save(),
        )
    except TrainingDiverged:
        # The model is sanitized and measured by now: it is not lost to what came on top.
        run.journal.warn(
            WarningCode.RETUNING_DIVERGED,
            "Durability cannot be told: at a learning rate of "
            f"{RETUNING_RATE:g} a copy of the sanitized model diverged.",
        )
        return None
    except NotEnoughImages as error:
        run.journal.warn(WarningCode.RETUNING_LEFT_OUT, f"Durability cannot be told: {error}")
        return None
    if is_new:
        run.journal.emit(MetricEvent(stage=Stage.RETUNE, values=_retuned_figures(durability)))
        run.record(Stage.RETUNE, durability.seconds)
        run.save()
    return durability


def _retuned_figures(durability: Durability) -> dict[str, float]:
    values = {"retuned_accuracy": durability.clean_accuracy.value}
    for probe in durability.probes:
        values[f"retuned_asr.{probe.name}"] = probe.clean.value
        values[f"poisoned_asr.{probe.name}"] = probe.poisoned.value
        values[f"control_asr.{probe.name}"] = probe.control.value
    return values
