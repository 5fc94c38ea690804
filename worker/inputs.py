"""What a run needs, brought to the job's folder: model, data, specification."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.orm import Session

from sanitizer.errors import Fault, InvalidSpec
from sanitizer.spec import Device, SanitizeSpec
from service.db.session import SessionFactory, transaction
from service.db.tables import Dataset, Job, Model
from service.jobs.codes import WorkerCode
from service.jobs.spec import build_spec
from service.storage import ContentDiffers, ObjectMissing, ObjectStore, StorageError, references
from worker.folders import JobFolder
from worker.outcomes import RunFailed
from worker.patience import Patience


class Inputs:
    """Brings the files of jobs to their folders.

    Args:
        roots: Folders that references of data sets may point into.
        patience: With a store that does not answer.
    """

    def __init__(
        self,
        sessions: SessionFactory,
        store: ObjectStore,
        roots: Sequence[Path],
        patience: Patience,
    ) -> None:
        self._sessions = sessions
        self._store = store
        self._roots = roots
        self._patience = patience

    def prepare(
        self,
        folder: JobFolder,
        job_id: str,
        *,
        device: Device,
        threads: int,
        checkpoint_seconds: float,
        check: Callable[[], None],
    ) -> SanitizeSpec:
        """Fetches files, checks their hashes, writes `spec.json` and gives what is in it.

        Args:
            check: Called again and again; raises if the attempt shall not go on.

        Raises:
            RunFailed: A file cannot be had.
            InvalidSpec: The stored request is not valid for this version.
        """
        with transaction(self._sessions) as session:
            job, model, datasets = _rows(session, job_id)
        folder.clear_out()
        check()
        model_path = folder.input / "model"
        self._fetch(model, model_path, f"The model {model.filename}", check)
        paths = {}
        for number, dataset in enumerate(datasets.values()):
            check()
            paths[dataset.id] = self._place(dataset, folder.input / f"data{number}", check)
        check()
        try:
            spec = build_spec(
                job,
                model,
                datasets,
                model_path=model_path,
                dataset_paths=paths,
                device=device,
                threads=threads,
                checkpoint_seconds=checkpoint_seconds,
            )
        except ValidationError as error:
            raise InvalidSpec(
                f"The stored request is not valid for this version: {error}. Submit it anew."
            ) from error
        folder.spec.write_text(spec.model_dump_json(), encoding="utf-8")
        return spec

    def _place(self, dataset: Dataset, path: Path, check: Callable[[], None]) -> Path:
        """Where a data set lies on this machine, fetched there if need be."""
        if dataset.reference is None:
            self._fetch(dataset, path, f"The data set {dataset.name}", check)
            return path
        try:
            return references.resolve(dataset.reference, self._roots)
        except references.ReferenceRefused as error:
            # The service took it: what differs here is the settings, or a share is not mounted.
            raise RunFailed(
                WorkerCode.REFERENCE_REFUSED,
                Fault.INPUT if dataset.deleted_at else Fault.MACHINE,
                str(error),
                reference=error.uri,
            ) from error

    def _fetch(
        self, row: Model | Dataset, path: Path, what: str, check: Callable[[], None]
    ) -> None:
        key = row.storage_key
        if key is None:
            raise RunFailed(WorkerCode.FILE_GONE, Fault.INPUT, f"{what} has no file.")
        try:
            self._patience.of(lambda: self._store.fetch(key, path, sha256=row.sha256, check=check))
        except ObjectMissing as error:
            if row.deleted_at is None:
                raise RunFailed(
                    WorkerCode.FILE_GONE,
                    Fault.MACHINE,
                    f"{what} is not in the store, as this worker sees it. Ask the operator whether "
                    "it was lost, or the store is not the one that the service writes to.",
                ) from error
            raise RunFailed(
                WorkerCode.FILE_GONE,
                Fault.INPUT,
                f"{what} was deleted. Upload it again and submit a new job.",
            ) from error
        except ContentDiffers as error:
            raise RunFailed(
                WorkerCode.STORED_FILE_DAMAGED,
                Fault.MACHINE,
                f"{what} came out of the store with other bytes than went in.",
                expected=error.expected,
                received=error.received,
            ) from error
        except StorageError as error:
            raise RunFailed(
                WorkerCode.STORE_UNAVAILABLE,
                Fault.MACHINE,
                f"{what} could not be fetched: {error}.",
            ) from error


def _rows(session: Session, job_id: str) -> tuple[Job, Model, dict[str, Dataset]]:
    job = session.get_one(Job, job_id)
    ids = dict.fromkeys([job.clean_dataset_id, job.evaluation_dataset_id])
    return (
        job,
        session.get_one(Model, job.model_id),
        {each: session.get_one(Dataset, each) for each in ids if each is not None},
    )
