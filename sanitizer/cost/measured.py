"""What a run took, as its report says it. Torch-free."""

from sanitizer.cost.profile import find_profile
from sanitizer.cost.workload import (
    DeviceKind,
    TrainingWork,
    expected_images,
    images_evaluated,
    training_work,
)
from sanitizer.events import Stage
from sanitizer.report.model import Cost, Report, StageSpeed
from sanitizer.spec import METHOD_ADAPTER

MAX_NETWORK_PASSES = 4.0
"""Student forward and, worth two, backward; teacher forward. What is above is not in the layers."""


def measure_cost(
    report: Report,
    *,
    device: DeviceKind,
    processor: str,
    threads: int,
    start_seconds: float,
    curve_images: int,
    curve_seconds: float,
    peak_host_bytes: int,
    peak_device_bytes: int | None,
) -> Cost:
    """The part of the report that says what the run took.

    Args:
        report: All but that part.
    """
    height, width = report.model.input_size
    profile = find_profile(report.model.architecture)
    macs = 0 if profile is None else round(profile.macs.at(height * width))
    method = METHOD_ADAPTER.validate_python(report.method)
    work = {w.stage.value: w for w in training_work(method, report.clean_data.images)}
    evaluations = {Stage.BASELINE.value: report.before, Stage.EVALUATE.value: report.after}
    speeds = []
    for stage in report.stages:
        if (training := work.get(stage.stage)) is not None:
            speeds.append(_speed(stage.stage, stage.seconds, training.seen, _macs(training, macs)))
        elif (evaluation := evaluations.get(stage.stage)) is not None:
            images = images_evaluated(evaluation)
            if stage.stage == Stage.BASELINE:  # with what tells what the model expects
                images += expected_images(report.clean_data.images)
            speeds.append(_speed(stage.stage, stage.seconds, images, macs))
    return Cost(
        device=device,
        processor=processor,
        threads=threads,
        start_seconds=round(start_seconds, 3),
        curve_images=curve_images,
        curve_seconds=round(curve_seconds, 3),
        peak_host_bytes=peak_host_bytes,
        peak_device_bytes=peak_device_bytes,
        forward_macs=macs,
        speeds=speeds,
    )


def _macs(work: TrainingWork, forward: int) -> int:
    """Multiply-accumulates of one image in a training step, in the network's layers alone."""
    return round(min(work.passes, MAX_NETWORK_PASSES) * forward)


def _speed(stage: str, seconds: float, images: int, macs: int) -> StageSpeed:
    per_second = images / seconds if seconds > 0 else None
    return StageSpeed(
        stage=stage,
        images=images,
        seconds=seconds,
        images_per_second=None if per_second is None else round(per_second, 3),
        macs_per_second=None if per_second is None else round(per_second * macs),
    )
