"""Queries on jobs, their story, their figures and their files."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Self

from sqlalchemy import (
    ColumnElement,
    Subquery,
    Text,
    and_,
    delete,
    func,
    literal,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute, defer

from sanitizer.report.model import Verdict
from service.db.base import Json, first_id
from service.db.repository import Repository
from service.db.tables import Artifact, Job, JobEvent, JobMetric, JobStatus, Model, WorkerRecord

CLOCK_MOVES = timedelta(minutes=1)
"""How far a clock may be set between the id of a job and its `created_at`, drawn one after the
other."""


@dataclass(frozen=True)
class JobFilter:
    """Which jobs a list shows; what is left out does not matter.

    Attributes:
        metadata: Values that the job's metadata must have; a key with None: any value.
    """

    statuses: Collection[JobStatus] | None = None
    verdicts: Collection[Verdict] | None = None
    model_id: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    metadata: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestHead:
    """What lists show of a stored request, as JSON."""

    method: str
    seed: int
    clean_data: dict[str, Any]
    evaluation_data: dict[str, Any] | None

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Self:
        """The head of a whole request."""
        return cls(
            method=request["method"]["name"],
            seed=request["seed"],
            clean_data=request["clean_data"],
            evaluation_data=request["evaluation_data"],
        )


_WITHOUT_REQUEST = defer(Job.request, raiseload=True)


class JobRepository(Repository):
    """Jobs, and what hangs on them."""

    # --- Reading ---------------------------------------------------------------------------------

    def get(self, job_id: str, *, tenant_id: str | None = None) -> Job | None:
        """A job; with `tenant_id` only if it is that tenant's."""
        query = select(Job).where(Job.id == job_id)
        if tenant_id is not None:
            query = query.where(Job.tenant_id == tenant_id)
        return self._session.scalar(query)

    def get_outline(self, job_id: str, *, tenant_id: str) -> Job | None:
        """A job of the tenant without its request, which may hold megabytes of pictures."""
        query = select(Job).where(Job.id == job_id, Job.tenant_id == tenant_id)
        return self._session.scalar(query.options(_WITHOUT_REQUEST))

    def status_of(self, job_id: str) -> JobStatus | None:
        """The status alone, without the row; none: there is no such job."""
        status = self._session.scalar(select(Job.status).where(Job.id == job_id))
        return None if status is None else JobStatus(status)

    def wish_of(self, job_id: str, *, now: datetime) -> tuple[str | None, int] | None:
        """Which device a queued job asks for, and how many; none: it does not wait, or not yet."""
        query = select(Job.device, Job.request["devices"]).where(
            Job.id == job_id, Job.status == JobStatus.QUEUED, is_due(now)
        )
        row = self._session.execute(query).one_or_none()
        return None if row is None else (row[0], int(row[1] or 1))

    def page(
        self, tenant_id: str, wanted: JobFilter, *, after: str | None, limit: int
    ) -> list[Job]:
        """Jobs of the tenant, newest first, from below the id `after`.

        Without their requests, each of which may hold megabytes of pictures: see `request_heads`.
        """
        query = select(Job).where(Job.tenant_id == tenant_id, *self._conditions(wanted))
        if after is not None:
            query = query.where(Job.id < after)
        query = query.options(_WITHOUT_REQUEST)
        return list(self._session.scalars(query.order_by(Job.id.desc()).limit(limit)))

    def request_heads(self, job_ids: Collection[str]) -> dict[str, RequestHead]:
        """What lists show of the requests of jobs, by the job's id.

        The database takes the probes' pictures out: it reads a request once for that, and would
        read it once for each field that is asked for.
        """
        rest: ColumnElement[Any]
        if self.dialect == "postgresql":
            rest = type_coerce(Job.request, postgresql.JSONB).op("-")(literal("probes", Text))
        else:
            rest = func.json_remove(Job.request, "$.probes")
        query = select(Job.id, type_coerce(rest, Json)).where(Job.id.in_(job_ids))
        return {job_id: RequestHead.of(request) for job_id, request in self._session.execute(query)}

    def events(self, job_id: str, *, after: int, limit: int) -> list[JobEvent]:
        """Events behind the sequence number `after`, oldest first."""
        query = (
            select(JobEvent)
            .where(JobEvent.job_id == job_id, JobEvent.sequence > after)
            .order_by(JobEvent.sequence)
            .limit(limit)
        )
        return list(self._session.scalars(query))

    def metrics(
        self, job_id: str, *, after: int, limit: int, name: str | None = None
    ) -> list[JobMetric]:
        """Figures behind the row `after`, in the order they came; with `name` those alone."""
        query = select(JobMetric).where(JobMetric.job_id == job_id, JobMetric.id > after)
        if name is not None:
            query = query.where(JobMetric.name == name)
        return list(self._session.scalars(query.order_by(JobMetric.id).limit(limit)))

    def artifacts(self, job_id: str) -> list[Artifact]:
        """Files of a job, by name."""
        query = select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.name)
        return list(self._session.scalars(query))

    def hold(self, job_id: str) -> bool:
        """Whether a job is there, and stays so until the end of the transaction."""
        query = select(Job.id).where(Job.id == job_id).with_for_update(read=True, key_share=True)
        return self._session.scalar(query) is not None

    def delete(self, job_id: str) -> list[str]:
        """Deletes a job with its events, figures and files; models that came out of it stay.

        Returns:
            Keys of the files in the store that no row names any more.
        """
        models = select(Model.storage_key).where(Model.source_job_id == job_id)
        query = select(Artifact.storage_key).where(
            Artifact.job_id == job_id, Artifact.storage_key.not_in(models)
        )
        keys = list(self._session.scalars(query))
        checkpoint = self._session.scalar(select(Job.checkpoint_key).where(Job.id == job_id))
        keys += [checkpoint] if checkpoint else []
        self._session.execute(delete(Job).where(Job.id == job_id))
        return keys

    def count_due(self, device: str | None, *, now: datetime) -> int:
        """Jobs of all tenants that wait for a worker with a device."""
        query = select(func.count()).where(
            Job.status == JobStatus.QUEUED, is_due(now), _asks_for(device)
        )
        return self._session.scalar(query) or 0

    def first_queued(self, device: str | None, *, now: datetime) -> str | None:
        """The job for a device that has waited longest, of whatever tenant, and may run now; none:
        no job waits."""
        waiting = self._waiting(is_due(now), _asks_for(device))
        first: str | None = self._session.scalar(select(func.min(waiting.c.id)))
        return first

    def worker_devices(self, *, since: datetime) -> set[str]:
        """Kinds of device of the workers that have reported since then."""
        query = select(WorkerRecord.device).where(WorkerRecord.heartbeat_at >= since).distinct()
        return set(self._session.scalars(query))

    def queued_unsent(
        self, device: str | None, *, since: datetime | None, now: datetime, limit: int
    ) -> list[str]:
        """Jobs that wait for a device, oldest first, and may run now.

        Without a message since then; `since` None: without any.
        """
        waiting = self._waiting(is_due(now), _asks_for(device), _unsent(since))
        return list(self._session.scalars(select(waiting).order_by(waiting.c.id).limit(limit)))

    def over_with_checkpoint(self, *, limit: int) -> list[str]:
        """Jobs that have ended and still have a checkpoint in the store."""
        query = select(Job.id).where(
            Job.status.in_([status for status in JobStatus if status.is_terminal]),
            Job.checkpoint_key.is_not(None),
        )
        return list(self._session.scalars(query.order_by(Job.id).limit(limit)))

    def leases_ended(self, *, before: datetime, limit: int) -> list[tuple[str, int]]:
        """Ids and attempts of jobs whose worker has been silent since then.

        Their rows are locked. Those that somebody else has locked are left out: it may be a worker
        that was cut off in the middle of a write.
        """
        query = (
            select(Job.id, Job.attempt)
            .where(
                Job.status.in_((JobStatus.RUNNING, JobStatus.CANCELLING)),
                Job.lease_expires_at < before,
            )
            .order_by(Job.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        return [(job_id, attempt) for job_id, attempt in self._session.execute(query)]

    # --- Writing ---------------------------------------------------------------------------------

    def add(self, row: Any) -> None:
        """Inserts a row."""
        self._session.add(row)
        self._session.flush()

    def update_if(self, job_id: str, *conditions: ColumnElement[bool], **values: Any) -> Job | None:
        """Changes a job in one statement if the conditions hold, and locks its row.

        Of several transactions that do this at once, one at a time goes through, and the others see
        what it has written. None: a condition did not hold, nothing was written.
        """
        statement = (
            update(Job)
            .where(Job.id == job_id, *conditions)
            .values(updated_at=self.now(), **values)
            .returning(Job)
        )
        return self._session.scalars(
            statement,
            execution_options={"populate_existing": True, "synchronize_session": False},
        ).one_or_none()

    def touch_if(
        self, job_id: str, *conditions: ColumnElement[bool], **values: Any
    ) -> JobStatus | None:
        """As `update_if`, but gives the status alone: a request may hold megabytes of pictures."""
        statement = (
            update(Job).where(Job.id == job_id, *conditions).values(**values).returning(Job.status)
        )
        status = self._session.execute(
            statement, execution_options={"synchronize_session": False}
        ).scalar_one_or_none()
        return None if status is None else JobStatus(status)

    def mark_sent(self, job_id: str, *, unless_since: datetime | None, now: datetime) -> bool:
        """Notes that a message goes out, unless one did since then; False: it did."""
        return (
            self.touch_if(
                job_id, Job.status == JobStatus.QUEUED, _unsent(unless_since), sent_at=now
            )
            is not None
        )

    def add_events(
        self, job_id: str, attempt: int, events: Sequence[tuple[str, dict[str, Any], datetime]]
    ) -> None:
        """Appends (type, data, time) to the story, numbered without gaps.

        The caller holds the lock on the job's row: an UPDATE of it in the same transaction.
        """
        last = self._session.scalar(
            select(func.max(JobEvent.sequence)).where(JobEvent.job_id == job_id)
        )
        self._session.add_all(
            JobEvent(job_id=job_id, sequence=sequence, attempt=attempt, type=kind, data=data, at=at)
            for sequence, (kind, data, at) in enumerate(events, start=(last or 0) + 1)
        )
        self._session.flush()

    def add_metrics(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Inserts figures; of the same stage, epoch and name the last one counts.

        A training that begins again tells its epochs again, and they are others. A figure that
        changes gets a new `id`, behind all others, so that whoever reads on from an `id` comes by
        it; one that is told again as it was stays where it is.
        """
        if not rows:
            return
        key = ("job_id", "stage", "name", "epoch")
        # Within one statement PostgreSQL refuses to write a row twice.
        last = {tuple(row[column] for column in key): row for row in rows}
        on_postgresql = self.dialect == "postgresql"
        statement = (postgresql.insert if on_postgresql else sqlite.insert)(JobMetric)
        # SQLite has no sequence to ask: of a row that is not inserted it draws no id.
        behind = select(func.max(JobMetric.id) + 1).scalar_subquery()
        new = {
            "id": statement.excluded.id if on_postgresql else behind,
            "value": statement.excluded.value,
            "at": statement.excluded.at,
        }
        self._session.execute(
            statement.on_conflict_do_update(
                index_elements=key, set_=new, where=JobMetric.value != statement.excluded.value
            ),
            list(last.values()),
        )

    # --- Conditions ------------------------------------------------------------------------------

    def _waiting(self, *conditions: ColumnElement[bool]) -> Subquery:
        """Ids of queued jobs.

        OFFSET has PostgreSQL look for those that wait first. It would go through all jobs from the
        oldest on, and expect to come by one that waits soon, when these are the newest.
        """
        query = select(Job.id).where(Job.status == JobStatus.QUEUED, *conditions)
        return query.offset(0).subquery()

    def _conditions(self, wanted: JobFilter) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = []
        if wanted.statuses:
            conditions.append(Job.status.in_(wanted.statuses))
        if wanted.verdicts:
            conditions.append(Job.verdict.in_(wanted.verdicts))
        if wanted.model_id is not None:
            conditions.append(Job.model_id == wanted.model_id)
        # Ids sort by time, and the lists are read along them: where the time ends, so does that.
        if (after := wanted.created_after) is not None:
            conditions += [Job.created_at > after, Job.id >= first_id("job", after, -CLOCK_MOVES)]
        if (before := wanted.created_before) is not None:
            conditions += [Job.created_at < before, Job.id < first_id("job", before, CLOCK_MOVES)]
        conditions += [
            self._has_entry(Job.metadata_, key, value) for key, value in wanted.metadata.items()
        ]
        return conditions

    def _has_entry(
        self, column: InstrumentedAttribute[dict[str, str]], key: str, value: str | None
    ) -> ColumnElement[bool]:
        if self.dialect == "postgresql":
            document = type_coerce(column, postgresql.JSONB)
            return document.has_key(key) if value is None else document.contains({key: value})
        # A JSON path would have to quote the key; this compares it as it is.
        entries = func.json_each(column).table_valued("key", "value")
        matches = [entries.c.key == key] + ([] if value is None else [entries.c.value == value])
        return select(1).select_from(entries).where(and_(*matches)).exists()


def is_due(now: datetime) -> ColumnElement[bool]:
    """Whether a worker may take the job by now."""
    return Job.not_before.is_(None) | (Job.not_before <= now)


def _asks_for(device: str | None) -> ColumnElement[bool]:
    return Job.device.is_(None) if device is None else Job.device == device


def _unsent(since: datetime | None) -> ColumnElement[bool]:
    never = Job.sent_at.is_(None)
    return never if since is None else never | (Job.sent_at < since)
