"""Queries on jobs, on both databases."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import inspect

from sanitizer.report.model import Verdict
from service.db.session import SessionFactory, transaction
from service.db.tables import Job, JobStatus
from service.jobs import service as jobs
from service.jobs.repository import JobFilter, JobRepository, RequestHead
from tests.builders import (
    add_dataset,
    add_job,
    add_tenant,
    at,
    make_metric_event,
    make_progress_event,
)
from tests.databases import every_database

pytestmark = every_database


def _page(
    sessions: SessionFactory,
    tenant_id: str,
    wanted: JobFilter | None = None,
    *,
    after: str | None = None,
    limit: int = 100,
) -> list[str]:
    with transaction(sessions) as session:
        repository = JobRepository.from_session(session)
        rows = repository.page(tenant_id, wanted or JobFilter(), after=after, limit=limit)
        return [job.id for job in rows]


def test_pages_go_from_the_newest_to_the_oldest_without_gaps(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        tenant_id = add_tenant(session).id
        added = sorted((add_job(session).id for _ in range(5)), reverse=True)
    seen: list[str] = []
    while page := _page(sessions, tenant_id, after=seen[-1] if seen else None, limit=2):
        seen += page
    assert seen == added


def test_page_comes_without_requests_and_their_heads_are_read_by_the_database(
    sessions: SessionFactory,
) -> None:
    with transaction(sessions) as session:
        tenant = add_tenant(session)
        full = add_job(
            session,
            evaluation_data={"dataset_id": add_dataset(session, tenant).id, "images": 7},
            method={"name": "nad"},
            seed=2**63 - 1,
        )
        plain = add_job(session)
    with transaction(sessions) as session:
        repository = JobRepository.from_session(session)
        page = repository.page(tenant.id, JobFilter(), after=None, limit=10)
        assert all("request" in inspect(job).unloaded for job in page)
        heads = repository.request_heads([job.id for job in page])
    assert heads == {job.id: RequestHead.of(job.request) for job in (full, plain)}
    assert (heads[full.id].method, heads[full.id].seed) == ("nad", 2**63 - 1)
    assert heads[plain.id].evaluation_data is None


def test_jobs_of_others_are_not_seen(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        ours, theirs = add_tenant(session, "ours"), add_tenant(session, "theirs")
        job = add_job(session, theirs)
    assert _page(sessions, ours.id) == []
    with transaction(sessions) as session:
        repository = JobRepository.from_session(session)
        assert repository.get(job.id, tenant_id=ours.id) is None
        assert repository.get(job.id, tenant_id=theirs.id) is not None
        assert repository.get(job.id) is not None


def test_filters_on_columns(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        tenant_id = add_tenant(session).id
        old, new = add_job(session), add_job(session)
        old.verdict = Verdict.BLOCKED
    with transaction(sessions) as session:
        jobs.request_cancel(session, new.id)
    expected: list[tuple[JobFilter, list[str]]] = [
        (JobFilter(statuses=[JobStatus.QUEUED]), [old.id]),
        (JobFilter(statuses=[JobStatus.QUEUED, JobStatus.CANCELLED]), [new.id, old.id]),
        (JobFilter(verdicts=[Verdict.BLOCKED]), [old.id]),
        (JobFilter(verdicts=[Verdict.ALLOWED]), []),
        (JobFilter(model_id=new.model_id), [new.id]),
        (JobFilter(created_after=old.created_at), [new.id]),
        (JobFilter(created_after=old.created_at - timedelta(seconds=1)), [new.id, old.id]),
        (JobFilter(created_before=new.created_at), [old.id]),
        (JobFilter(created_after=datetime.min.replace(tzinfo=UTC)), [new.id, old.id]),
        (JobFilter(created_before=datetime.max.replace(tzinfo=UTC)), [new.id, old.id]),
    ]
    found = [(wanted, _page(sessions, tenant_id, wanted)) for wanted, _ in expected]
    assert found == [(wanted, sorted(job_ids, reverse=True)) for wanted, job_ids in expected]


def test_job_is_found_by_its_time_though_the_clock_was_set_after_its_id_was_drawn(
    sessions: SessionFactory,
) -> None:
    with transaction(sessions) as session:
        tenant_id = add_tenant(session).id
        back, on = add_job(session), add_job(session)
        back.created_at -= timedelta(seconds=30)
        on.created_at += timedelta(seconds=30)
    moment = timedelta(seconds=1)
    expected: list[tuple[JobFilter, list[str]]] = [
        (JobFilter(created_after=back.created_at - moment), [on.id, back.id]),
        (JobFilter(created_before=back.created_at + moment), [back.id]),
        (JobFilter(created_after=on.created_at - moment), [on.id]),
        (JobFilter(created_before=on.created_at + moment), [on.id, back.id]),
    ]
    found = [(wanted, _page(sessions, tenant_id, wanted)) for wanted, _ in expected]
    assert found == expected


@pytest.mark.parametrize("key", ["team", 'with "quotes"', "a.b", "$", "it's", "é", "[0]"])
def test_filters_on_metadata_take_any_key(sessions: SessionFactory, key: str) -> None:
    with transaction(sessions) as session:
        tenant_id = add_tenant(session).id
        one = add_job(session, metadata={key: "vision", "other": "x"}).id
        add_job(session, metadata={"unlike": "vision"})
    assert _page(sessions, tenant_id, JobFilter(metadata={key: "vision"})) == [one]
    assert _page(sessions, tenant_id, JobFilter(metadata={key: None, "other": "x"})) == [one]
    assert _page(sessions, tenant_id, JobFilter(metadata={key: "audio"})) == []
    assert _page(sessions, tenant_id, JobFilter(metadata={"absent": None})) == []


def test_status_alone_can_be_asked_for(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        job_id = add_job(session).id
    with transaction(sessions) as session:
        repository = JobRepository.from_session(session)
        assert repository.status_of(job_id) == JobStatus.QUEUED
        assert repository.status_of("job_missing") is None


def test_events_come_behind_a_sequence_number(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        job_id = add_job(session).id
        claim = jobs.claim(session, job_id, "w1", 60)
        assert claim is not None
        jobs.append_events(session, claim, [make_progress_event(n / 10) for n in range(5)])
    with transaction(sessions) as session:
        repository = JobRepository.from_session(session)
        assert [e.sequence for e in repository.events(job_id, after=3, limit=2)] == [4, 5]
        assert repository.events(job_id, after=7, limit=2) == []


def test_figures_come_in_order_and_by_name(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        job_id = add_job(session).id
        claim = jobs.claim(session, job_id, "w1", 60)
        assert claim is not None
        events = [make_metric_event(epoch, loss=1 / epoch, node=2.0) for epoch in (1, 2, 3)]
        jobs.append_events(session, claim, events)
    with transaction(sessions) as session:
        repository = JobRepository.from_session(session)
        first = repository.metrics(job_id, after=0, limit=4)
        rest = repository.metrics(job_id, after=first[-1].id, limit=4)
        named = repository.metrics(job_id, after=0, limit=10, name="loss")
    assert [(m.epoch, m.name) for m in first + rest] == [
        (epoch, name) for epoch in (1, 2, 3) for name in ("loss", "node")
    ]
    assert [m.epoch for m in named] == [1, 2, 3]


def test_who_reads_on_comes_by_figures_that_changed_and_no_others(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        job_id = add_job(session).id
        claim = jobs.claim(session, job_id, "w1", 60)
        assert claim is not None
        events = [make_metric_event(epoch, loss=1 / epoch, node=2.0) for epoch in (1, 2)]
        jobs.append_events(session, claim, events)
    with transaction(sessions) as session:
        read = JobRepository.from_session(session).metrics(job_id, after=0, limit=10)
    with transaction(sessions) as session:
        again = [make_metric_event(1, loss=0.9, node=2.0), make_metric_event(2, loss=0.8, node=2.0)]
        jobs.append_events(session, claim, again)
        jobs.append_events(session, claim, [make_metric_event(3, loss=0.1)])
    with transaction(sessions) as session:
        repository = JobRepository.from_session(session)
        behind = repository.metrics(job_id, after=read[-1].id, limit=10)
        everything = repository.metrics(job_id, after=0, limit=10)
    assert [(m.epoch, m.name, m.value) for m in behind] == [
        (1, "loss", 0.9),
        (2, "loss", 0.8),
        (3, "loss", 0.1),
    ]
    assert len(everything) == 5


def test_times_come_back_aware_and_in_utc(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        job = add_job(session)
        job.created_at = at(5)
    with transaction(sessions) as session:
        assert session.get_one(Job, job.id).created_at == at(5)
        assert session.get_one(Job, job.id).created_at.utcoffset() == timedelta(0)


def test_clock_of_the_database_is_aware_and_goes_on(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        repository = JobRepository.from_session(session)
        first, second = repository.now(), repository.now()
    assert first.tzinfo is not None
    assert first < second
