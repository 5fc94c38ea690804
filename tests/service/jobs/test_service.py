"""The life of a job, with real races, on both databases."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, timedelta
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sanitizer.errors import Fault
from sanitizer.events import ErrorEvent, MetricEvent, Stage
from sanitizer.report.model import Verdict
from service.db.base import new_id
from service.db.session import SessionFactory, transaction
from service.db.tables import Artifact, Job, JobEvent, JobMetric, JobStatus, Model, WorkerRecord
from service.jobs import service as jobs
from service.jobs.repository import JobRepository
from service.jobs.service import (
    Claim,
    LeaseLost,
    LeaseState,
    NotCancellable,
    StoredCheckpoint,
)
from service.models import service as models
from service.settings import Settings
from tests.builders import (
    add_dataset,
    add_job,
    add_model,
    add_tenant,
    make_artifacts,
    make_metric_event,
    make_progress_event,
    make_stage_event,
)
from tests.databases import every_database
from tests.reports import make_report

pytestmark = every_database

LEASE_SECONDS = 60.0


def _new_job(sessions: SessionFactory, *, max_attempts: int = 3) -> str:
    with transaction(sessions) as session:
        return add_job(session, max_attempts=max_attempts).id


def _claim(
    sessions: SessionFactory, job_id: str, worker_id: str = "w1", seconds: float = LEASE_SECONDS
) -> Claim:
    with transaction(sessions) as session:
        claim = jobs.claim(session, job_id, worker_id, seconds)
    assert claim is not None
    return claim


def _job(sessions: SessionFactory, job_id: str) -> Job:
    with transaction(sessions) as session:
        return session.get_one(Job, job_id)


def _told(sessions: SessionFactory, job_id: str) -> list[str]:
    """Statuses in the job's story, in their order."""
    with transaction(sessions) as session:
        events = JobRepository.from_session(session).events(job_id, after=0, limit=1000)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return [event.data["status"] for event in events if event.type == jobs.STATUS]


def _error(fault: Fault, **columns: str) -> ErrorEvent:
    return ErrorEvent(**{"code": "out_of_memory", "fault": fault, "message": "No."} | columns)


def _at_once(count: int, work: Callable[[int], None]) -> list[BaseException]:
    """Runs `work(0)`, `work(1)`, ... in threads that start together; gives what they raised."""
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


# --- Creating and cancelling ---------------------------------------------------------------------


def test_new_job_is_queued_and_its_story_begins(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    job = _job(sessions, job_id)
    assert (job.status, job.attempt, job.sent_at) == (JobStatus.QUEUED, 0, None)
    assert job.request["method"]["name"] == "argd"
    assert _told(sessions, job_id) == ["queued"]


def test_cancelling_a_queued_job_ends_it(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    with transaction(sessions) as session:
        assert jobs.request_cancel(session, job_id).status == JobStatus.CANCELLED
    assert _job(sessions, job_id).finished_at is not None
    assert _told(sessions, job_id) == ["queued", "cancelled"]


def test_cancelling_a_running_job_asks_its_worker(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    with transaction(sessions) as session:
        assert jobs.request_cancel(session, job_id).status == JobStatus.CANCELLING
    with transaction(sessions) as session:
        assert jobs.renew(session, claim) == LeaseState.CANCEL_REQUESTED
        assert jobs.look(session, claim) == LeaseState.CANCEL_REQUESTED
    with transaction(sessions) as session:
        assert jobs.finish_cancelled(session, claim).status == JobStatus.CANCELLED
    assert _told(sessions, job_id) == ["queued", "running", "cancelling", "cancelled"]


def test_cancelling_twice_changes_nothing(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    _claim(sessions, job_id)
    for _ in range(2):
        with transaction(sessions) as session:
            assert jobs.request_cancel(session, job_id).status == JobStatus.CANCELLING
    assert _told(sessions, job_id) == ["queued", "running", "cancelling"]


def test_cancelling_an_ended_job_names_its_status(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    with transaction(sessions) as session:
        jobs.request_cancel(session, job_id)
    with pytest.raises(NotCancellable) as caught, transaction(sessions) as session:
        jobs.request_cancel(session, job_id)
    assert caught.value.status == JobStatus.CANCELLED


def test_cancel_and_claim_at_once_agree_on_an_order(sessions: SessionFactory) -> None:
    for _ in range(5):
        job_id = _new_job(sessions)
        claims: list[Claim | None] = []

        def act(number: int, job_id: str = job_id, claims: list[Claim | None] = claims) -> None:
            with transaction(sessions) as session:
                if number:
                    jobs.request_cancel(session, job_id)
                else:
                    claims.append(jobs.claim(session, job_id, "w1", LEASE_SECONDS))

        assert _at_once(2, act) == []
        expected = {
            True: ["queued", "running", "cancelling"],
            False: ["queued", "cancelled"],
        }
        assert _told(sessions, job_id) == expected[claims[0] is not None]


# --- Claiming ------------------------------------------------------------------------------------


def test_claimed_job_is_running_under_a_lease(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    job = _job(sessions, job_id)
    assert (job.status, job.attempt, job.worker_id) == (JobStatus.RUNNING, 1, "w1")
    assert job.started_at is not None
    assert job.lease_expires_at is not None
    assert (claim.attempt, claim.tenant_id) == (1, job.tenant_id)


def test_running_job_is_not_claimed_again(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    _claim(sessions, job_id)
    with transaction(sessions) as session:
        assert jobs.claim(session, job_id, "w2", LEASE_SECONDS) is None


def test_job_that_is_not_there_is_not_claimed(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        assert jobs.claim(session, "job_missing", "w1", LEASE_SECONDS) is None


def test_of_many_claimers_at_once_one_wins(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claims: list[Claim | None] = []

    def claim(number: int) -> None:
        with transaction(sessions) as session:
            claims.append(jobs.claim(session, job_id, f"w{number}", LEASE_SECONDS))

    assert _at_once(6, claim) == []
    assert len([claim for claim in claims if claim is not None]) == 1
    assert _job(sessions, job_id).attempt == 1
    assert _told(sessions, job_id) == ["queued", "running"]


def test_first_claim_alone_sets_the_time_of_the_start(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    started_at = _job(sessions, job_id).started_at
    with transaction(sessions) as session:
        jobs.release(session, claim, "restart")
    _claim(sessions, job_id, "w2")
    assert _job(sessions, job_id).started_at == started_at


# --- The fence -----------------------------------------------------------------------------------


WRITES: dict[str, Callable[[SessionFactory, Claim], object]] = {}


def _write(name: str) -> Callable[[Callable[..., object]], Callable[..., object]]:
    def register(function: Callable[..., object]) -> Callable[..., object]:
        WRITES[name] = function
        return function

    return register


@_write("append_events")
def _append(sessions: SessionFactory, claim: Claim) -> object:
    with transaction(sessions) as session:
        return jobs.append_events(session, claim, [make_stage_event()])


@_write("succeed")
def _succeed(sessions: SessionFactory, claim: Claim) -> object:
    with transaction(sessions) as session:
        return jobs.succeed(session, claim, make_report(), make_artifacts(claim.job_id))


@_write("fail")
def _fail(sessions: SessionFactory, claim: Claim) -> object:
    with transaction(sessions) as session:
        return jobs.fail(session, claim, _error(Fault.INPUT))


@_write("fail_machine")
def _fail_machine(sessions: SessionFactory, claim: Claim) -> object:
    with transaction(sessions) as session:
        return jobs.fail(session, claim, _error(Fault.MACHINE))


@_write("finish_cancelled")
def _finish(sessions: SessionFactory, claim: Claim) -> object:
    with transaction(sessions) as session:
        return jobs.finish_cancelled(session, claim)


@_write("release")
def _release(sessions: SessionFactory, claim: Claim) -> object:
    with transaction(sessions) as session:
        return jobs.release(session, claim, "restart")


@pytest.mark.parametrize("status", [JobStatus.RUNNING, JobStatus.CANCELLING])
@pytest.mark.parametrize("write", WRITES)
def test_late_worker_writes_nothing(
    sessions: SessionFactory, write: str, status: JobStatus
) -> None:
    job_id = _new_job(sessions)
    late = _claim(sessions, job_id, seconds=0)
    with transaction(sessions) as session:
        jobs.take_back_expired(session)
    _claim(sessions, job_id, "w2")
    if status == JobStatus.CANCELLING:
        with transaction(sessions) as session:
            jobs.request_cancel(session, job_id)
    before = _told(sessions, job_id)
    with pytest.raises(LeaseLost):
        WRITES[write](sessions, late)
    job = _job(sessions, job_id)
    assert (job.status, job.attempt, job.worker_id) == (status, 2, "w2")
    assert _told(sessions, job_id) == before
    with transaction(sessions) as session:
        assert session.query(Artifact).count() == 0
        assert session.query(Model).count() == 1


@pytest.mark.parametrize("write", WRITES)
def test_worker_of_an_ended_job_writes_nothing(sessions: SessionFactory, write: str) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    _fail(sessions, claim)
    with pytest.raises(LeaseLost):
        WRITES[write](sessions, claim)
    assert _told(sessions, job_id) == ["queued", "running", "failed"]


def test_lease_lasts_from_when_it_was_last_renewed(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id, seconds=0)
    with transaction(sessions) as session:
        assert jobs.renew(session, replace(claim, lease_seconds=LEASE_SECONDS)) == LeaseState.HELD
    with transaction(sessions) as session:
        assert jobs.take_back_expired(session) == []
    renewed_until = _job(sessions, job_id).lease_expires_at
    with transaction(sessions) as session:
        assert jobs.look(session, claim) == LeaseState.HELD
    assert _job(sessions, job_id).lease_expires_at == renewed_until


def test_late_worker_learns_that_its_lease_is_lost(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    late = _claim(sessions, job_id, seconds=0)
    with transaction(sessions) as session:
        assert jobs.renew(session, late) == LeaseState.HELD  # nobody has taken it back yet
    late = Claim(late.job_id, late.tenant_id, late.attempt, late.worker_id, lease_seconds=-1)
    with transaction(sessions) as session:
        jobs.renew(session, late)
        jobs.take_back_expired(session)
    with transaction(sessions) as session:
        assert jobs.renew(session, late) == LeaseState.LOST
        assert jobs.look(session, late) == LeaseState.LOST


def test_success_and_take_back_at_once_leave_one_of_the_two(sessions: SessionFactory) -> None:
    for _ in range(5):
        job_id = _new_job(sessions)
        claim = _claim(sessions, job_id, seconds=-1)

        def act(number: int, claim: Claim = claim) -> None:
            if number:
                _succeed(sessions, claim)
            else:
                with transaction(sessions) as session:
                    jobs.take_back_expired(session)

        errors = _at_once(2, act)
        lost = [error for error in errors if isinstance(error, LeaseLost)]
        assert len(errors) == len(lost)
        last = "queued" if lost else "succeeded"
        assert _told(sessions, job_id) == ["queued", "running", last]


# --- The story -----------------------------------------------------------------------------------


def test_events_become_rows_and_set_stage_and_progress(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    with transaction(sessions) as session:
        state = jobs.append_events(
            session,
            claim,
            [
                make_stage_event(Stage.TEACHER),
                make_progress_event(0.25),
                make_metric_event(loss=0.5),
            ],
        )
    assert state == LeaseState.HELD
    job = _job(sessions, job_id)
    assert (job.stage, job.progress) == ("teacher", 0.25)
    with transaction(sessions) as session:
        events = JobRepository.from_session(session).events(job_id, after=2, limit=10)
        metric = session.query(JobMetric).one()
    assert [(event.sequence, event.type, event.attempt) for event in events] == [
        (3, "stage", 1),
        (4, "progress", 1),
        (5, "metric", 1),
    ]
    assert events[0].data == {"stage": "teacher", "message": "teacher begins"}
    assert (metric.stage, metric.epoch, metric.name, metric.value) == ("teacher", 1, "loss", 0.5)


def test_events_of_several_writers_are_numbered_without_gaps(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)

    def append(number: int) -> None:
        for step in range(5):
            with transaction(sessions) as session:
                if number == 0 and step == 2:
                    jobs.request_cancel(session, job_id)
                else:
                    jobs.append_events(session, claim, [make_progress_event(0.1)] * 3)

    assert _at_once(4, append) == []
    with transaction(sessions) as session:
        sequences = [row.sequence for row in session.query(JobEvent.sequence).order_by("sequence")]
    assert sequences == list(range(1, 2 + 19 * 3 + 1 + 1))


def test_of_an_epoch_that_comes_again_the_last_figures_are_kept(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    with transaction(sessions) as session:
        jobs.append_events(session, claim, [make_metric_event(1, loss=0.5)])
    with transaction(sessions) as session:
        again = [make_metric_event(1, loss=0.7, seconds=2), make_metric_event(1, loss=0.6)]
        jobs.append_events(session, claim, again)
    with transaction(sessions) as session:
        figures = {(m.epoch, m.name): m.value for m in session.query(JobMetric)}
    assert figures == {(1, "loss"): 0.6, (1, "seconds"): 2.0}


def test_figure_that_is_no_number_is_told_but_not_stored(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    event = MetricEvent(stage=Stage.DISTIL, epoch=None, values={"loss": float("nan"), "node": 1.0})
    with transaction(sessions) as session:
        jobs.append_events(session, claim, [event])
    with transaction(sessions) as session:
        assert [m.name for m in session.query(JobMetric)] == ["node"]
        last = JobRepository.from_session(session).events(job_id, after=2, limit=10)[-1]
    assert last.data["values"] == {"loss": None, "node": 1.0}


def test_text_that_postgresql_refuses_is_stored_without_the_offence(
    sessions: SessionFactory,
) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    error = ErrorEvent(
        code="corrupt_image",
        fault=Fault.INPUT,
        message="bad\0name",
        data={"image": "a\0b", "odd": "\ud800", "shape": [1, float("inf")]},
    )
    with transaction(sessions) as session:
        jobs.fail(session, claim, error)
    job = _job(sessions, job_id)
    assert job.error_message == "bad\ufffdname"
    assert job.error_data == {"image": "a\ufffdb", "odd": "\ufffd", "shape": [1, None]}
    # What no event cleaned before.
    odd = {"a\udcff\0": ["\ud800b", ("\udfff", float("nan"))]}
    assert jobs.storable(odd) == {"a\ufffd\ufffd": ["\ufffdb", ["\ufffd", None]]}


# --- Ends ----------------------------------------------------------------------------------------


def test_success_makes_files_and_a_model_in_one_transaction(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        tenant = add_tenant(session)
        options = {"architecture": "auto", "input_size": None, "mean": [0.5], "std": None}
        model = add_model(session, tenant, options=options, metadata_={"team": "vision"})
        job_id = add_job(session, tenant, model=model).id
    claim = _claim(sessions, job_id)
    artifacts = make_artifacts(job_id)
    with transaction(sessions) as session:
        jobs.succeed(session, claim, make_report(Verdict.BLOCKED), artifacts)
    job = _job(sessions, job_id)
    assert (job.status, job.verdict, job.progress) == (JobStatus.SUCCEEDED, "blocked", 1.0)
    assert (job.worker_id, job.lease_expires_at) == (None, None)
    assert job.finished_at is not None
    assert job.summary is not None
    assert job.summary["after"]["probes"] == [{"name": "trigger", "asr": 0.01, "ra": 0.8}]
    with transaction(sessions) as session:
        assert [a.name for a in JobRepository.from_session(session).artifacts(job_id)] == [
            "model.pt",
            "report.json",
        ]
        result = session.query(Model).filter(Model.source_job_id == job_id).one()
        last = JobRepository.from_session(session).events(job_id, after=0, limit=100)[-1]
    assert result.name == "suspect (sanitized)"
    assert result.storage_key == artifacts[0].storage_key
    assert result.options == {
        "architecture": "wrn-16-1",
        "input_size": [32, 32],
        "mean": [0.5],
        "std": None,
    }
    assert result.metadata_ == {"team": "vision"}
    assert last.data == {
        "status": "succeeded",
        "verdict": "blocked",
        "result_model_id": result.id,
    }


def test_success_without_a_model_is_refused_and_nothing_is_written(
    sessions: SessionFactory,
) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    with pytest.raises(ValueError, match="one model"), transaction(sessions) as session:
        jobs.succeed(session, claim, make_report(), make_artifacts(job_id)[1:])
    assert _job(sessions, job_id).status == JobStatus.RUNNING


def test_success_after_a_cancel_request_keeps_the_result(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    with transaction(sessions) as session:
        jobs.request_cancel(session, job_id)
    _succeed(sessions, claim)
    assert _told(sessions, job_id) == ["queued", "running", "cancelling", "succeeded"]


def _delete_the_model_row(session: Session, job_id: str) -> None:
    session.query(Model).filter_by(source_job_id=job_id).delete()


def _mark_the_model_as_deleted(session: Session, job_id: str) -> None:
    models.delete(session, *_result_of(session, job_id))


def _result_of(session: Session, job_id: str) -> tuple[str, str]:
    model = session.query(Model).filter_by(source_job_id=job_id).one()
    return model.tenant_id, model.id


@pytest.mark.parametrize(
    "change",
    [lambda *_: None, _delete_the_model_row, _mark_the_model_as_deleted, jobs.delete],
    ids=["as_it_was", "model_row_deleted", "model_deleted", "job_deleted"],
)
def test_result_that_was_taken_is_known_again_by_its_own_files_alone(
    sessions: SessionFactory, change: Callable[[Session, str], object]
) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    files = make_artifacts(job_id)
    of_another_attempt = [
        replace(file, id=new_id("artifact"), storage_key=f"jobs/{job_id}/{new_id('artifact')}")
        for file in files
    ]
    with transaction(sessions) as session:
        assert not jobs.is_kept(session, files)
        jobs.succeed(session, claim, make_report(), files)
    with transaction(sessions) as session:
        change(session, job_id)
    with transaction(sessions) as session:
        assert jobs.is_kept(session, files)
        assert not jobs.is_kept(session, of_another_attempt)


def test_checkpoint_is_dropped_of_a_job_that_is_over_alone(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    with transaction(sessions) as session:
        jobs.keep_checkpoint(session, claim, StoredCheckpoint("jobs/j/checkpoint_1", "0" * 64))
    with transaction(sessions) as session:
        assert jobs.drop_checkpoint(session, job_id) is None
    assert _job(sessions, job_id).checkpoint_key == "jobs/j/checkpoint_1"
    _fail(sessions, claim)
    with transaction(sessions) as session:
        assert jobs.drop_checkpoint(session, job_id) == "jobs/j/checkpoint_1"
    with pytest.raises(LeaseLost), transaction(sessions) as session:
        jobs.keep_checkpoint(session, claim, StoredCheckpoint("jobs/j/checkpoint_2", "0" * 64))
    job = _job(sessions, job_id)
    assert (job.checkpoint_key, job.checkpoint_sha256) == (None, None)


def test_input_at_fault_fails_the_job_at_its_first_attempt(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    with transaction(sessions) as session:
        jobs.fail(session, claim, _error(Fault.INPUT, code="empty_class", message="Class 3."))
    job = _job(sessions, job_id)
    assert (job.status, job.error_code, job.error_message) == (
        JobStatus.FAILED,
        "empty_class",
        "Class 3.",
    )
    with transaction(sessions) as session:
        events = JobRepository.from_session(session).events(job_id, after=2, limit=10)
    assert [(event.type, event.data) for event in events] == [
        (
            "error",
            {"code": "empty_class", "fault": "input", "message": "Class 3.", "data": {}},
        ),
        ("status", {"status": "failed", "error": {"code": "empty_class", "message": "Class 3."}}),
    ]


def test_machine_at_fault_is_tried_again_until_no_try_is_left(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions, max_attempts=2)
    with transaction(sessions) as session:
        jobs.mark_sent(session, job_id)
    _fail_machine(sessions, _claim(sessions, job_id))
    job = _job(sessions, job_id)
    assert (job.status, job.sent_at, job.error_code) == (JobStatus.QUEUED, None, None)
    _fail_machine(sessions, _claim(sessions, job_id))
    job = _job(sessions, job_id)
    assert (job.status, job.error_code, job.attempt) == (JobStatus.FAILED, "out_of_memory", 2)
    assert _told(sessions, job_id) == ["queued", "running", "queued", "running", "failed"]


def test_machine_at_fault_of_an_unwanted_job_cancels_it(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    with transaction(sessions) as session:
        jobs.request_cancel(session, job_id)
    _fail_machine(sessions, claim)
    assert _told(sessions, job_id) == ["queued", "running", "cancelling", "cancelled"]


def test_released_job_has_as_many_tries_left_as_before(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions, max_attempts=1)
    for _ in range(3):
        with transaction(sessions) as session:
            jobs.mark_sent(session, job_id)
        _release(sessions, _claim(sessions, job_id))
        assert _job(sessions, job_id).sent_at is None  # its message was used up
    job = _job(sessions, job_id)
    assert (job.status, job.attempt, job.max_attempts) == (JobStatus.QUEUED, 3, 4)


def test_release_of_a_job_that_shall_stop_cancels_it(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    claim = _claim(sessions, job_id)
    with transaction(sessions) as session:
        jobs.request_cancel(session, job_id)
    _release(sessions, claim)
    assert _job(sessions, job_id).status == JobStatus.CANCELLED


def test_move_that_the_graph_does_not_have_is_refused(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    with pytest.raises(ValueError, match="queued to succeeded"), transaction(sessions) as session:
        jobs._move(
            JobRepository.from_session(session), job_id, {JobStatus.QUEUED}, JobStatus.SUCCEEDED
        )


def test_status_that_is_none_is_refused_by_the_database(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    with pytest.raises(DBAPIError), transaction(sessions) as session:
        session.get_one(Job, job_id).status = "done"


# --- Reconcile -----------------------------------------------------------------------------------


def test_silent_worker_loses_its_job(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    with transaction(sessions) as session:
        jobs.mark_sent(session, job_id)
    _claim(sessions, job_id, seconds=-1)
    with transaction(sessions) as session:
        assert [job.status for job in jobs.take_back_expired(session)] == [JobStatus.QUEUED]
    job = _job(sessions, job_id)
    assert (job.worker_id, job.lease_expires_at, job.sent_at) == (None, None, None)


def test_job_under_a_fresh_lease_is_left_alone(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    _claim(sessions, job_id)
    with transaction(sessions) as session:
        assert jobs.take_back_expired(session) == []


def test_job_whose_every_worker_falls_silent_fails(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions, max_attempts=2)
    for _ in range(2):
        _claim(sessions, job_id, seconds=-1)
        with transaction(sessions) as session:
            jobs.take_back_expired(session)
    job = _job(sessions, job_id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "worker_lost")
    # Not more than that: other attempts may have ended another way.
    assert "fell silent in attempt 2, which was the last one" in str(job.error_message)


def test_silent_worker_of_an_unwanted_job_means_cancelled(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    _claim(sessions, job_id, seconds=-1)
    with transaction(sessions) as session:
        jobs.request_cancel(session, job_id)
    with transaction(sessions) as session:
        assert [job.status for job in jobs.take_back_expired(session)] == [JobStatus.CANCELLED]


def test_of_many_reconcilers_one_takes_a_job_back(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    _claim(sessions, job_id, seconds=-1)

    def take_back(_number: int) -> None:
        with transaction(sessions) as session:
            jobs.take_back_expired(session)

    assert _at_once(4, take_back) == []
    assert _told(sessions, job_id) == ["queued", "running", "queued"]


def test_job_that_was_never_sent_is_sent_by_one_of_many_reconcilers(
    sessions: SessionFactory,
) -> None:
    job_ids = {_new_job(sessions) for _ in range(3)}
    sent: list[str] = []

    def resend(_number: int) -> None:
        with transaction(sessions) as session:
            sent.extend(jobs.jobs_to_resend(session, None, 60))

    assert _at_once(4, resend) == []
    assert sorted(sent) == sorted(job_ids)


def test_job_is_sent_again_once_its_message_is_old(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    with transaction(sessions) as session:
        jobs.mark_sent(session, job_id)
    with transaction(sessions) as session:
        assert jobs.jobs_to_resend(session, None, 60) == []
        assert jobs.jobs_to_resend(session, None, -1, messages=1) == []
        assert jobs.jobs_to_resend(session, None, -1) == [job_id]


def test_job_whose_message_was_not_taken_is_sent_again(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    with transaction(sessions) as session:
        jobs.jobs_to_resend(session, None, 60)
        jobs.mark_unsent(session, job_id)
    with transaction(sessions) as session:
        assert jobs.jobs_to_resend(session, None, 60) == [job_id]


def test_running_job_is_not_sent(sessions: SessionFactory) -> None:
    job_id = _new_job(sessions)
    _claim(sessions, job_id)
    with transaction(sessions) as session:
        assert jobs.jobs_to_resend(session, None, -1) == []


# --- Waiting -------------------------------------------------------------------------------------


def _reason(sessions: SessionFactory, settings: Settings, job_id: str) -> str | None:
    with transaction(sessions) as session:
        job = session.get_one(Job, job_id)
        return jobs.waiting_reasons(session, [job], settings).get(job_id)


def _add_worker(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        session.add(WorkerRecord(id="w1", hostname="h", device="cpu", slots=1))


def test_job_without_a_worker_says_so(sessions: SessionFactory, settings: Settings) -> None:
    assert _reason(sessions, settings, _new_job(sessions)) == (
        "No worker has reported in the last 60 s; the job runs as soon as one starts."
    )


def test_job_behind_others_does_not_say_how_many_other_tenants_have(
    sessions: SessionFactory, settings: Settings
) -> None:
    _add_worker(sessions)
    job_ids = sorted(_new_job(sessions) for _ in range(3))
    assert [_reason(sessions, settings, job_id) for job_id in job_ids] == [
        "It is the next one: it runs as soon as a worker that takes such jobs has a free slot.",
        "Other jobs are ahead of it.",
        "Other jobs are ahead of it.",
    ]


def test_a_job_that_may_not_run_yet_is_ahead_of_nobody(
    sessions: SessionFactory, settings: Settings
) -> None:
    _add_worker(sessions)
    first, second = sorted(_new_job(sessions) for _ in range(2))
    with transaction(sessions) as session:
        now = JobRepository.from_session(session).now()
        session.get_one(Job, first).not_before = now + timedelta(hours=1)
    assert (_reason(sessions, settings, second) or "").startswith("It is the next one")


def test_job_that_a_machine_failed_waits_before_it_is_sent_or_taken(
    sessions: SessionFactory, settings: Settings
) -> None:
    job_id = _new_job(sessions)
    _add_worker(sessions)
    waits = []
    for attempt in (1, 2):
        claim = _claim(sessions, job_id)
        with transaction(sessions) as session:
            jobs.fail(session, claim, _error(Fault.MACHINE), retry_seconds=30)
            until = session.get_one(Job, job_id).not_before
            assert until is not None
            waits.append((until - JobRepository.from_session(session).now()).total_seconds())
        reason = _reason(sessions, settings, job_id)
        assert reason == (
            f"Attempt {attempt} ended by a fault of the machine; the next one begins after "
            f"{until.astimezone(UTC):%H:%M:%S} UTC."
        )
        with transaction(sessions) as session:
            assert jobs.jobs_to_resend(session, None, 60) == []
            assert jobs.claim(session, job_id, "w1", LEASE_SECONDS) is None
            session.get_one(Job, job_id).not_before = JobRepository.from_session(session).now()
        with transaction(sessions) as session:
            assert jobs.jobs_to_resend(session, None, 60) == [job_id]
    assert waits == pytest.approx([30, 60], abs=5)
    assert _claim(sessions, job_id).attempt == 3
    assert _job(sessions, job_id).not_before is None


def test_wait_between_tries_stops_growing(
    sessions: SessionFactory,
) -> None:
    job_id = _new_job(sessions, max_attempts=1000)
    with transaction(sessions) as session:
        session.get_one(Job, job_id).attempt = 500  # stopping workers gave it back
    claim = _claim(sessions, job_id)
    with transaction(sessions) as session:
        jobs.fail(session, claim, _error(Fault.MACHINE), retry_seconds=30)
        until = session.get_one(Job, job_id).not_before
        assert until is not None
        wait = (until - JobRepository.from_session(session).now()).total_seconds()
    assert wait == pytest.approx(30 * 32, abs=5)


def test_job_that_a_stopped_worker_gave_back_blames_no_machine(
    sessions: SessionFactory, settings: Settings
) -> None:
    _add_worker(sessions)
    job_id = _new_job(sessions)
    _release(sessions, _claim(sessions, job_id))
    reason = _reason(sessions, settings, job_id)
    assert reason == "Attempt 1 was cut short; a worker takes it up again."


def test_job_that_asks_for_cuda_says_that_no_worker_has_it(
    sessions: SessionFactory, settings: Settings
) -> None:
    _add_worker(sessions)
    with transaction(sessions) as session:
        job_id = add_job(session, device="cuda").id
    reason = _reason(sessions, settings, job_id)
    assert reason is not None
    assert reason.startswith("It asks for the device cuda, and no worker that has one has reported")


def test_reasons_of_many_jobs_take_as_many_queries_as_those_of_one(
    sessions: SessionFactory, settings: Settings
) -> None:
    _add_worker(sessions)
    for _ in range(3):
        _new_job(sessions)
    with transaction(sessions) as session:
        rows = session.query(Job).all()
        selects: list[str] = []

        def note(*execution: Any) -> None:
            selects.append(execution[2])

        event.listen(session.get_bind(), "before_cursor_execute", note)
        counts = []
        for some in (rows[:1], rows):
            selects.clear()
            assert len(jobs.waiting_reasons(session, some, settings)) == len(some)
            counts.append(len(selects))
        event.remove(session.get_bind(), "before_cursor_execute", note)
    assert counts[0] == counts[1]


def test_running_job_waits_for_nothing(sessions: SessionFactory, settings: Settings) -> None:
    job_id = _new_job(sessions)
    _claim(sessions, job_id)
    assert _reason(sessions, settings, job_id) is None


def test_evaluation_data_is_a_column_of_the_job(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        tenant = add_tenant(session)
        evaluation = add_dataset(session, tenant)
        job = add_job(session, tenant, evaluation_data={"dataset_id": evaluation.id})
        assert job.evaluation_dataset_id == evaluation.id
