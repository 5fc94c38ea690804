"""What a job will take, said before it runs. Nothing is parsed here: see `sanitizer.cost`."""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy.orm import Session

from sanitizer.catalog import ARCHITECTURES
from sanitizer.cost.estimate import Estimate, EstimateBasis, estimate
from sanitizer.cost.profile import find_profile, nearest_by_size
from sanitizer.cost.workload import (
    DeviceKind,
    Measured,
    Workload,
    fitted_images,
    retunings,
    sought_images,
    training_work,
    tried_images,
)
from sanitizer.spec import AutoConfig, Device, ModelOptions, SanitizeSpec, looks_first
from service.datasets.repository import DatasetRepository
from service.db.tables import Dataset, DatasetFormat, Model
from service.jobs.costs import CostRepository
from service.jobs.repository import JobRepository
from service.jobs.schemas import JobData, JobEstimate, JobRequest
from service.models.repository import ModelRepository
from service.settings import Settings

OWN_JOBS = 8
INSTALLATION_JOBS = 15
"""How many finished jobs are looked at: the last ones, since machines change."""
NEAR = 1.15
"""A file whose size is off by no more than this factor may well be that network."""
ENCODED_BYTES_PER_PIXEL = 2.2
"""Of a picture in a file, per pixel of the model's input.

CIFAR-10 as PNG: 2.3 kB for 1,024 pixels. ImageNet: 110 kB, of which 50,176 pixels are used.
"""
USUAL_CLASSES = 10
UNKNOWN_IMAGES = 10_000
"""Of a data set that lies elsewhere."""
ROUGH, WILD = 2.0, 4.0
"""By what factor guesses may be off."""


@dataclass
class _Guesses:
    """What had to be guessed, in words, and by what factor all of it may be off."""

    words: list[str] = field(default_factory=list)
    doubt: float = 1.0

    def add(self, words: str, doubt: float = 1.0) -> None:
        self.words.append(words)
        self.doubt = max(self.doubt, doubt)


def estimate_job(
    session: Session, tenant_id: str, request: JobRequest, settings: Settings
) -> JobEstimate:
    """What a job will take; its ids are known to be the tenant's.

    Raises:
        LookupError: They are not.
    """
    costs = CostRepository.from_session(session)
    datasets = DatasetRepository.from_session(session)
    model = ModelRepository.from_session(session).get(tenant_id, request.model_id)
    if model is None:
        raise LookupError(f"the tenant has no model {request.model_id}")
    guesses = _Guesses()
    architecture, input_size = _network(costs, tenant_id, model, guesses)
    device = _device(session, request, settings, guesses)

    def count(data: JobData, what: str) -> int:
        dataset = datasets.get(tenant_id, data.dataset_id)
        if dataset is None:
            raise LookupError(f"the tenant has no data set {data.dataset_id}")
        return _images(costs, data, dataset, input_size, what, guesses)

    clean = count(request.clean_data, "clean data")
    if request.evaluation_data is None:
        evaluation = round(clean * request.holdout)
        clean -= evaluation
    else:
        evaluation = count(request.evaluation_data, "evaluation data")
    if request.devices > 1:
        guesses.add(f"It is reckoned for one device; {request.devices} share the run.")
    own = costs.of_architecture(tenant_id, device, architecture, limit=OWN_JOBS)
    installation = [] if own else costs.of_device(device, limit=INSTALLATION_JOBS)
    curve: int = SanitizeSpec.model_fields["curve_images"].default
    workload = Workload(
        architecture=architecture,
        input_size=input_size,
        model_bytes=model.bytes,
        training=training_work(request.method, clean),
        different_images=clean,
        screened_images=clean if request.screen else 0,
        fitted_images=fitted_images(clean) if looks_first(request.method) else 0,
        sought_images=sought_images(request.method) + tried_images(request.method, clean),
        evaluation_images=evaluation,
        curve_images=min(curve, evaluation),
        inspected_classes=_classes(request, datasets, tenant_id, guesses),
        inspections=2 if request.inspect else 1,
        retunings=retunings(len(request.probes)) if request.durability else 0,
        probes=len(request.probes),
        device=device,
        threads=_threads([*own, *installation], settings),
    )

    def reckoned(workload: Workload) -> Estimate:
        return estimate(workload, own=own, installation=installation, doubt=guesses.doubt)

    if isinstance(request.method, AutoConfig) and request.method.seconds is not None:
        workload = _in_time(workload, request.method, request.method.seconds, reckoned, guesses)
    found = reckoned(workload)
    return _estimate_out(found, workload, guesses)


def _in_time(
    workload: Workload,
    method: AutoConfig,
    limit: float,
    reckoned: Callable[[Workload], Estimate],
    guesses: _Guesses,
) -> Workload:
    """Without what will be left out of several methods, since it would take longer than `limit`.

    Args:
        workload: With all of them.
    """

    def with_methods(names: tuple[str, ...]) -> Workload:
        work = training_work(
            method.model_copy(update={"methods": names}), workload.different_images
        )
        return workload.model_copy(update={"training": work})

    kept: tuple[str, ...] = method.methods[:1]
    left_out = []
    for name in method.methods[1:]:
        more = with_methods((*kept, name))
        # What comes after the last of them does not count.
        until = reckoned(more.model_copy(update={"retunings": 0, "inspections": 1}))
        if until.seconds > limit:
            left_out.append(name)
        else:
            kept = (*kept, name)
    if not left_out:
        return workload
    guesses.add(
        f"In {limit:g} s not all methods can be tried: without {', '.join(left_out)}.", ROUGH
    )
    return with_methods(kept)


def _classes(
    request: JobRequest, datasets: DatasetRepository, tenant_id: str, guesses: _Guesses
) -> int:
    """How many classes are searched for triggers."""
    if not request.inspect and not isinstance(request.method, AutoConfig):
        return 0
    dataset = datasets.get(tenant_id, request.clean_data.dataset_id)
    if dataset is not None and dataset.class_names is not None:
        return len(dataset.class_names)
    guesses.add(
        f"How many classes there are to search is found when the job runs; {USUAL_CLASSES} are "
        "reckoned with.",
        ROUGH,
    )
    return USUAL_CLASSES


def _network(
    costs: CostRepository, tenant_id: str, model: Model, guesses: _Guesses
) -> tuple[str, tuple[int, int]]:
    """The architecture, and height and width of its input."""
    options = ModelOptions.model_validate(model.options)
    name = options.architecture.strip().lower()
    if name == "auto":
        earlier = costs.of_file(tenant_id, model.sha256)
        if earlier is not None:
            return (
                earlier.workload.architecture,
                options.input_size or earlier.workload.input_size,
            )
        name, off = nearest_by_size(model.bytes)
        if off <= NEAR:
            guesses.add(
                f"The architecture is found when the job runs; by the size of its file it may be "
                f"{name}.",
                ROUGH,
            )
        else:
            guesses.add(
                "The architecture is found when the job runs; no network of the catalog has a file "
                f"of this size, {name} comes nearest.",
                WILD,
            )
    elif find_profile(name) is None:
        guesses.add(f"There is no architecture {name}; a resnet18 is reckoned with.", WILD)
        return "resnet18", options.input_size or _catalog_size("resnet18")
    return name, options.input_size or _catalog_size(name)


def _catalog_size(name: str) -> tuple[int, int]:
    sizes = {entry.name: entry.input_size for entry in ARCHITECTURES}
    return sizes["wrn-d-k" if name.startswith("wrn-") else name]


def _device(
    session: Session, request: JobRequest, settings: Settings, guesses: _Guesses
) -> DeviceKind:
    """What the job will probably run on."""
    jobs = JobRepository.from_session(session)
    silence = timedelta(seconds=settings.lease_seconds)
    present: Collection[str] = jobs.worker_devices(since=jobs.now() - silence)
    asked = request.device or Device.AUTO
    if asked is Device.AUTO:
        asked = Device(settings.device)
    if asked is not Device.AUTO:
        return "cuda" if asked is Device.CUDA else "cpu"
    if Device.CUDA in present and Device.CPU in present:
        guesses.add("Workers with and without a GPU are there; it is reckoned for one without.")
    return "cuda" if set(present) == {Device.CUDA.value} else "cpu"


def _images(
    costs: CostRepository,
    data: JobData,
    dataset: Dataset,
    input_size: tuple[int, int],
    what: str,
    guesses: _Guesses,
) -> int:
    """How many images of a data set the job will use."""
    available = costs.images_of(dataset.id)
    if available is not None:
        return available if data.images is None else min(data.images, available)
    if data.images is not None:
        return data.images
    if dataset.bytes is None:
        guesses.add(
            f"How many images the {what} has is not known; {UNKNOWN_IMAGES:,} are reckoned with.",
            WILD,
        )
        return UNKNOWN_IMAGES
    pixels = input_size[0] * input_size[1]
    image = 3 if dataset.format == DatasetFormat.NPZ else ENCODED_BYTES_PER_PIXEL
    guessed = max(1, round(dataset.bytes / (image * pixels)))
    guesses.add(
        f"How many images the {what} has is guessed from the size of its file: {guessed:,}.", ROUGH
    )
    return guessed


def _threads(history: list[Measured], settings: Settings) -> int:
    """Those that the workers gave their last jobs; before there were any, by the settings."""
    if history:
        return history[0].workload.threads
    return settings.threads_per_job or max(1, (os.cpu_count() or 1) // settings.slots)


def _estimate_out(found: Estimate, workload: Workload, guesses: _Guesses) -> JobEstimate:
    match found.basis:
        case EstimateBasis.OWN_JOBS:
            words = (
                f"From what {found.measurements} of your finished jobs took with a "
                f"{workload.architecture} on the same kind of device."
            )
        case EstimateBasis.INSTALLATION:
            words = "From the speed that this installation has measured, with other work."
        case EstimateBasis.RULE_OF_THUMB:
            words = (
                f"By a rule of thumb for {workload.threads} threads of a CPU; nothing was measured "
                "here yet."
                if workload.device == "cpu"
                else "By a rule of thumb for a GPU; nothing was measured here yet."
            )
    return JobEstimate(
        seconds=_rounded(found.seconds),
        seconds_low=_rounded(found.seconds_low),
        seconds_high=_rounded(found.seconds_high),
        training_seconds=_rounded(found.training_seconds),
        evaluation_seconds=_rounded(found.evaluation_seconds),
        other_seconds=_rounded(found.other_seconds),
        peak_host_bytes=found.host_bytes,
        peak_device_bytes=found.device_bytes,
        architecture=workload.architecture,
        device=workload.device,
        clean_images=workload.clean_images,
        evaluation_images=workload.evaluation_images,
        basis=found.basis,
        explanation=[words, *guesses.words],
    )


def _rounded(seconds: float) -> float:
    return round(seconds, 1)
