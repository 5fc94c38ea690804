"""The specification of a run, out of a job's row and the places of its files."""

from pathlib import Path

from sanitizer.spec import DataSource, Device, ModelSource, SanitizeSpec
from service.db.tables import Dataset, Job, Model
from service.jobs.schemas import JobData, JobRequest


def build_spec(
    job: Job,
    model: Model,
    datasets: dict[str, Dataset],
    *,
    model_path: Path,
    dataset_paths: dict[str, Path],
    device: Device,
    threads: int,
    checkpoint_seconds: float,
) -> SanitizeSpec:
    """What the child is asked to do.

    Args:
        datasets: The job's data sets by id.
        dataset_paths: Where they lie on this machine, by id.
        device: What the worker is set up for; the request's own wish goes before it.
        threads: CPU threads of the child, of all its processes together.
        checkpoint_seconds: How much work of the run may be lost to a kill.

    Raises:
        pydantic.ValidationError: The stored request is none that this version takes.
    """
    request = JobRequest.model_validate(job.request)

    def source(data: JobData) -> DataSource:
        names = datasets[data.dataset_id].class_names
        return DataSource(
            path=dataset_paths[data.dataset_id],
            images=data.images,
            seed=data.seed,
            class_names=None if names is None else tuple(names),
        )

    evaluation = request.evaluation_data
    return SanitizeSpec(
        model=ModelSource.model_validate(
            {**model.options, "path": model_path, "filename": model.filename}
        ),
        clean_data=source(request.clean_data),
        evaluation_data=None if evaluation is None else source(evaluation),
        holdout=request.holdout,
        method=request.method,
        probes=request.probes,
        policy=request.policy,
        screen=request.screen,
        inspect=request.inspect,
        durability=request.durability,
        seed=request.seed,
        device=request.device or device,
        precision=request.precision,
        devices=request.devices,
        threads=threads,
        checkpoint_seconds=checkpoint_seconds,
    )
