"""What a job will take: seconds and memory, before it runs.

Torch-free. A rule of thumb per kind of device turns the work of a job into seconds and bytes; what
finished jobs took beside what the rule gives for them corrects it. The answer says what it rests on
and is the vaguer the less that is.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sanitizer.cost.profile import FLOAT_BYTES, NetworkProfile, find_profile
from sanitizer.cost.workload import DeviceKind, Measured, Spent, TrainingWork, Workload

EVALUATION_BATCH = 500
"""Images that are measured at a time; a test holds it against `sanitizer.evaluation.evaluate`."""
MIN_FACTOR, MAX_FACTOR = 1 / 50, 50.0
"""Beyond these a measurement is not believed: the process it comes from reads strangers' files."""


class EstimateBasis(StrEnum):
    """What an estimate rests on."""

    OWN_JOBS = "own_jobs"
    INSTALLATION = "installation"
    RULE_OF_THUMB = "rule_of_thumb"


MARGINS = {
    EstimateBasis.OWN_JOBS: 1.25,
    EstimateBasis.INSTALLATION: 1.8,
    EstimateBasis.RULE_OF_THUMB: 3.0,
}
"""The range is the estimate divided by this to the estimate times this."""


@dataclass(frozen=True)
class Rule:
    """A rule of thumb for one kind of device.

    A forward pass of an image takes its multiply-accumulates at one speed, and what it keeps for
    the backward pass at another: that stands for everything by element, which waits for memory. A
    step takes a fixed time for each kernel on top. `python -m benchmarks.estimate_error --suggest`
    fits the numbers to this machine.

    Attributes:
        macs_per_second: With one thread, or of the whole GPU.
        saved_bytes_per_second: As above.
        training_factor: What a pass of training takes over one of evaluation. Both are in bfloat16
            where the processor has it, but evaluation repeats some images in float32.
        operation_seconds: To start one kernel, from Python.
        thread_power: n threads are n to this power as fast as one.
        start_seconds: Until the process begins to load.
        load_seconds: What loading takes whatever the job.
        image_seconds: To decode, hash and compare one image, beside its pixels.
        pixel_seconds: And each of its pixels.
        write_seconds: To draw the pictures and write the report.
        host_bytes: Of the process before it has a model: Python, torch and the rest, and what they
            map of their libraries.
        layer_factor: Memory for what the layers give, over what they give: the allocator keeps some
            of what was freed, and kernels have room of their own.
    """

    macs_per_second: float
    saved_bytes_per_second: float
    training_factor: float
    operation_seconds: float
    thread_power: float
    start_seconds: float
    load_seconds: float
    image_seconds: float
    pixel_seconds: float
    write_seconds: float
    host_bytes: float
    layer_factor: float


RULES: dict[DeviceKind, Rule] = {
    # Fitted to nine jobs of that benchmark, one run each, in bfloat16 on 2 threads of an AMD
    # EPYC with torch 2.15, and scaled to evaluation with drafts in bfloat16, which takes 0.66 of
    # what it took then. The thread power is an assumption.
    "cpu": Rule(
        macs_per_second=112e9,
        saved_bytes_per_second=5.9e9,
        training_factor=0.97,
        operation_seconds=92e-6,
        thread_power=0.8,
        start_seconds=1.7,
        load_seconds=2.1,
        image_seconds=10e-6,
        pixel_seconds=30e-9,
        write_seconds=1.0,
        host_bytes=930e6,
        layer_factor=2.0,
    ),
    # Not measured: no GPU was at hand. An H100 does some 200e12 in float32 by TF32 at best; small
    # networks reach a few per cent of it, and are bound by the start of kernels anyway.
    "cuda": Rule(
        macs_per_second=10e12,
        saved_bytes_per_second=300e9,
        training_factor=0.5,
        operation_seconds=10e-6,
        thread_power=0.0,
        start_seconds=6.0,
        load_seconds=1.0,
        image_seconds=150e-6,
        pixel_seconds=50e-9,
        write_seconds=2.0,
        host_bytes=2.5e9,
        layer_factor=1.2,
    ),
}

WEIGHT_COPIES = 12
"""On the host: the file's, checkpoint, result, and those of the device."""
DEVICE_WEIGHT_COPIES = 9
"""Student, teacher, suspect model, gradient, momentum; and where weights are made worse, its
gradient, what they were, and two of the way there."""
LIVE_LAYERS = 2
"""Layers' inputs and outputs that are there at a time beside what the backward pass keeps."""


@dataclass(frozen=True)
class Estimate:
    """What a job will take.

    Attributes:
        seconds: From the start of its process to its end; waiting in a queue is not in it.
        seconds_low: It will hardly be less.
        seconds_high: It will hardly be more.
        training_seconds: Of `seconds`: all training stages, retuning among them.
        evaluation_seconds: Of `seconds`: before, after and for the curves.
        other_seconds: Of `seconds`: start, loading and writing.
        host_bytes: Most memory that is resident at a time, mapped images included.
        device_bytes: Most memory on the CUDA device; None: none is used.
        basis: What it rests on.
        measurements: Finished jobs behind it.
    """

    seconds: float
    seconds_low: float
    seconds_high: float
    training_seconds: float
    evaluation_seconds: float
    other_seconds: float
    host_bytes: int
    device_bytes: int | None
    basis: EstimateBasis
    measurements: int


def estimate(
    workload: Workload,
    *,
    own: Sequence[Measured] = (),
    installation: Sequence[Measured] = (),
    doubt: float = 1.0,
) -> Estimate:
    """What a job will take.

    Args:
        workload: What it has to do; an architecture that no profile is known of counts as a
            ResNet-18.
        own: Finished jobs with the same architecture on the same kind of device.
        installation: Finished jobs on the same kind of device; looked at if there are none of
            `own`. Nothing but their median ratio comes through.
        doubt: What the workload may be off by, as a factor: 1 where all of it is known.
    """
    basis, history = _choose(own, installation)
    bare = rule_of_thumb(workload)
    ratios = [_Ratios.of(measured) for measured in history]
    factors = _Ratios.median(ratios)
    training = bare.training_seconds * factors.training
    evaluation = bare.evaluation_seconds * factors.evaluation
    other = bare.other_seconds * factors.other
    seconds = training + evaluation + other
    margin = MARGINS[basis]
    if basis is EstimateBasis.OWN_JOBS:
        margin = max(margin, _spread(history, factors))
    margin *= max(1.0, doubt)
    return Estimate(
        seconds=seconds,
        seconds_low=seconds / margin,
        seconds_high=seconds * margin,
        training_seconds=training,
        evaluation_seconds=evaluation,
        other_seconds=other,
        host_bytes=round(bare.host_bytes * factors.host),
        device_bytes=(
            None if bare.device_bytes is None else round(bare.device_bytes * factors.device)
        ),
        basis=basis,
        measurements=len(history),
    )


def _choose(
    own: Sequence[Measured], installation: Sequence[Measured]
) -> tuple[EstimateBasis, Sequence[Measured]]:
    if own:
        return EstimateBasis.OWN_JOBS, own
    if installation:
        return EstimateBasis.INSTALLATION, installation
    return EstimateBasis.RULE_OF_THUMB, ()


# --- The rule of thumb ---------------------------------------------------------------------------


def rule_of_thumb(workload: Workload, rule: Rule | None = None) -> Spent:
    """What a job would take by the rule alone; None: that for its kind of device."""
    rule, profile = rule or RULES[workload.device], profile_of(workload)
    training = sum(
        _training_seconds(rule, profile, workload, work) for work in _trained(workload)
    ) + _evaluation_seconds(rule, profile, workload, workload.retuned_evaluated)
    return Spent(
        training_seconds=training,
        evaluation_seconds=_evaluation_seconds(rule, profile, workload, workload.evaluated),
        other_seconds=rule.start_seconds
        + rule.load_seconds
        + rule.write_seconds
        + workload.decoded_images * (rule.image_seconds + workload.pixels * rule.pixel_seconds),
        host_bytes=_host_bytes(rule, profile, workload),
        device_bytes=(
            _device_bytes(rule, profile, workload) if workload.device == "cuda" else None
        ),
    )


def profile_of(workload: Workload) -> NetworkProfile:
    """The profile of a workload's network, or that of a ResNet-18 where none is known."""
    profile = find_profile(workload.architecture) or find_profile("resnet18")
    if profile is None:
        raise RuntimeError("the table of networks has no resnet18")
    return profile


def _trained(workload: Workload) -> list[TrainingWork]:
    """All training: of the method, and of copies of its result."""
    retuning = workload.retuning
    return [*workload.training, *([] if retuning is None else [retuning])]


def _evaluation_seconds(
    rule: Rule, profile: NetworkProfile, workload: Workload, images: int
) -> float:
    kernels = -(-images // EVALUATION_BATCH) * profile.operations
    passes = _passes_seconds(rule, profile, workload, images, 1.0)
    return passes + kernels * rule.operation_seconds


def _training_seconds(
    rule: Rule, profile: NetworkProfile, workload: Workload, work: TrainingWork
) -> float:
    kernels = work.steps * work.passes * profile.operations
    passes = _passes_seconds(rule, profile, workload, work.seen, work.passes)
    return passes * rule.training_factor + kernels * rule.operation_seconds


def _passes_seconds(
    rule: Rule, profile: NetworkProfile, workload: Workload, images: int, passes: float
) -> float:
    speed = float(workload.threads**rule.thread_power)
    one = (
        profile.macs.at(workload.pixels) / rule.macs_per_second
        + profile.saved_bytes.at(workload.pixels) / rule.saved_bytes_per_second
    )
    return images * passes * one / speed


def _weight_bytes(profile: NetworkProfile, workload: Workload) -> int:
    # A file in half precision is half as large as the network.
    return max(workload.model_bytes, profile.file_bytes(classes=10))


def _activation_bytes(profile: NetworkProfile, workload: Workload) -> float:
    """Most that is there at a time of all that the layers give."""
    pixels = workload.pixels
    layers = LIVE_LAYERS * profile.widest_bytes.at(pixels)
    batch = max((min(w.batch_size, w.images) for w in _trained(workload)), default=0)
    training = batch * (profile.saved_bytes.at(pixels) + layers)
    images = FLOAT_BYTES * 3 * pixels
    evaluation = min(EVALUATION_BATCH, workload.evaluation_images) * (images + layers)
    return max(training, evaluation)


def _host_bytes(rule: Rule, profile: NetworkProfile, workload: Workload) -> int:
    image = 3 * workload.pixels
    # Those that are trained on are in memory beside the file that holds them, which is mapped; a
    # poisoned set is in memory once more.
    copies = 3 if workload.retunings > 1 else 2
    images = image * (copies * workload.clean_images + workload.evaluation_images)
    weights = WEIGHT_COPIES * _weight_bytes(profile, workload)
    layers = 0.0 if workload.device == "cuda" else _activation_bytes(profile, workload)
    return round(rule.host_bytes + weights + rule.layer_factor * layers + images)


def _device_bytes(rule: Rule, profile: NetworkProfile, workload: Workload) -> int:
    weights = DEVICE_WEIGHT_COPIES * _weight_bytes(profile, workload)
    images = 3 * workload.pixels * workload.clean_images
    return round(weights + rule.layer_factor * _activation_bytes(profile, workload) + images)


# --- What finished jobs say of it ----------------------------------------------------------------


@dataclass(frozen=True)
class _Ratios:
    """What was measured, over what the rule gives."""

    training: float = 1.0
    evaluation: float = 1.0
    other: float = 1.0
    host: float = 1.0
    device: float = 1.0

    @classmethod
    def of(cls, measured: Measured) -> "_Ratios":
        """Those of one finished job."""
        rule, took = rule_of_thumb(measured.workload), measured.spent
        return cls(
            training=_ratio(took.training_seconds, rule.training_seconds),
            evaluation=_ratio(took.evaluation_seconds, rule.evaluation_seconds),
            other=_ratio(took.other_seconds, rule.other_seconds),
            host=_ratio(took.host_bytes, rule.host_bytes),
            device=_ratio(took.device_bytes or 0, rule.device_bytes or 0),
        )

    @classmethod
    def median(cls, ratios: Sequence["_Ratios"]) -> "_Ratios":
        """Each on its own; 1 where there are none."""
        if not ratios:
            return cls()
        return cls(
            training=statistics.median(r.training for r in ratios),
            evaluation=statistics.median(r.evaluation for r in ratios),
            other=statistics.median(r.other for r in ratios),
            host=statistics.median(r.host for r in ratios),
            device=statistics.median(r.device for r in ratios),
        )


def _ratio(took: float, expected: float) -> float:
    if took <= 0 or expected <= 0:
        return 1.0
    return min(MAX_FACTOR, max(MIN_FACTOR, took / expected))


def _spread(history: Sequence[Measured], factors: _Ratios) -> float:
    """By what factor the worst of the jobs is off what the others together would have said."""
    worst = 1.0
    for measured in history:
        rule = rule_of_thumb(measured.workload)
        said = (
            rule.training_seconds * factors.training
            + rule.evaluation_seconds * factors.evaluation
            + rule.other_seconds * factors.other
        )
        off = _ratio(measured.spent.seconds, said)
        worst = max(worst, off, 1 / off)
    return worst
