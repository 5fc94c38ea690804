"""Figures of the platform, as a scrape shows them."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from sqlalchemy.orm import Session

from sanitizer.report.model import ArtifactKind
from service import queue
from service.db.base import utc_now
from service.db.session import SessionFactory, transaction
from service.db.tables import Artifact, Job, WorkerRecord
from service.health import metrics
from service.jobs import service as jobs
from service.settings import Settings
from tests.builders import add_dataset, add_job, add_model, add_tenant, make_artifacts, make_report
from tests.databases import every_database

Scrape = Callable[[], Mapping[str, Mapping[str, float]]]
DATABASE = {
    "sanitizer_jobs_waiting",
    "sanitizer_oldest_waiting_job_seconds",
    "sanitizer_workers",
    "sanitizer_slots",
    "sanitizer_slots_busy",
    "sanitizer_workers_silent",
    "sanitizer_leases_expired",
    "sanitizer_jobs",
    "sanitizer_store_bytes",
}


@pytest.fixture
def scrape(anonymous: httpx.Client) -> Scrape:
    """Values by metric and by the value of its one label; no label: the empty string."""

    def scrape() -> Mapping[str, Mapping[str, float]]:
        answer = anonymous.get("/metrics")
        assert answer.status_code == 200
        return {
            family.name: {"".join(s.labels.values()): s.value for s in family.samples}
            for family in text_string_to_metric_families(answer.text)
            if all(len(s.labels) < 2 for s in family.samples)
        }

    return scrape


def _add_worker(
    session: Session, worker_id: str, *, silent_for: float = 0.0, **columns: object
) -> None:
    session.add(
        WorkerRecord(
            **{
                "id": worker_id,
                "hostname": "h",
                "device": "cpu",
                "slots": 1,
                "heartbeat_at": utc_now() - timedelta(seconds=silent_for),
                **columns,
            }
        )
    )


@every_database
def test_empty_platform_shows_zeros(scrape: Scrape) -> None:
    by_device = {"cpu": 0.0, "cuda": 0.0}
    figures = scrape()
    assert {name: figures[name] for name in DATABASE} == {
        "sanitizer_jobs_waiting": {"any": 0, **by_device},
        "sanitizer_oldest_waiting_job_seconds": {"any": 0, **by_device},
        "sanitizer_workers": by_device,
        "sanitizer_slots": by_device,
        "sanitizer_slots_busy": {**by_device, "unlisted": 0},
        "sanitizer_workers_silent": by_device,
        "sanitizer_leases_expired": {"": 0},
        "sanitizer_jobs": dict.fromkeys(
            ("queued", "running", "cancelling", "succeeded", "failed", "cancelled"), 0
        ),
        "sanitizer_store_bytes": {"models": 0, "datasets": 0, "artifacts": 0},
    }
    assert figures["sanitizer_queue_messages"] == {"": 0}
    assert figures["sanitizer_component_up"] == {"database": 1, "broker": 1, "store": 1}


@every_database
def test_jobs_wait_by_device_and_the_oldest_has_an_age(
    scrape: Scrape, sessions: SessionFactory
) -> None:
    with transaction(sessions) as session:
        add_job(session)
        add_job(session).updated_at = utc_now() - timedelta(seconds=1000)
        add_job(session, device="cuda")
    figures = scrape()
    assert figures["sanitizer_jobs_waiting"] == {"any": 2, "cpu": 0, "cuda": 1}
    age = figures["sanitizer_oldest_waiting_job_seconds"]
    assert 1000 <= age["any"] < 1060
    assert 0 <= age["cuda"] < 60


def test_job_that_was_given_back_waits_since_then(scrape: Scrape, sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        job = add_job(session)
        job.created_at = job.updated_at = utc_now() - timedelta(hours=3)
        session.flush()
        claim = jobs.claim(session, job.id, "w1", 60)
        assert claim is not None
        jobs.release(session, claim, "The worker was stopped.")
    assert scrape()["sanitizer_oldest_waiting_job_seconds"]["any"] < 60


@every_database
def test_workers_that_report_and_their_slots_are_counted_by_device(
    scrape: Scrape, sessions: SessionFactory, settings: Settings
) -> None:
    with transaction(sessions) as session:
        _add_worker(session, "w1", slots=2)
        _add_worker(session, "w2", slots=3)
        _add_worker(session, "w3", device="cuda", slots=8)
        _add_worker(session, "w4", slots=50, silent_for=settings.lease_seconds + 30)
    figures = scrape()
    assert figures["sanitizer_workers"] == {"cpu": 2, "cuda": 1}
    assert figures["sanitizer_slots"] == {"cpu": 5, "cuda": 8}
    assert figures["sanitizer_workers_silent"] == {"cpu": 1, "cuda": 0}


@every_database
def test_running_jobs_are_counted_by_the_device_of_their_worker(
    scrape: Scrape, sessions: SessionFactory
) -> None:
    with transaction(sessions) as session:
        _add_worker(session, "w1", device="cuda")
        for worker_id in ("w1", "w1", "gone"):
            jobs.claim(session, add_job(session).id, worker_id, 60)
        cancelled = add_job(session)
        jobs.claim(session, cancelled.id, "w1", 60)
        jobs.request_cancel(session, cancelled.id)
    figures = scrape()
    assert figures["sanitizer_slots_busy"] == {"cpu": 0, "cuda": 3, "unlisted": 1}
    assert figures["sanitizer_jobs"]["cancelling"] == 1


@every_database
def test_lease_that_ran_out_shows_until_it_is_taken_back(
    scrape: Scrape, sessions: SessionFactory
) -> None:
    with transaction(sessions) as session:
        job = add_job(session)
        jobs.claim(session, job.id, "w1", 60)
        session.get_one(Job, job.id).lease_expires_at = utc_now() - timedelta(seconds=5)
    assert scrape()["sanitizer_leases_expired"] == {"": 1}
    with transaction(sessions) as session:
        jobs.take_back_expired(session)
    assert scrape()["sanitizer_leases_expired"] == {"": 0}


@every_database
def test_files_are_counted_once_and_only_while_they_are_there(
    scrape: Scrape, sessions: SessionFactory
) -> None:
    with transaction(sessions) as session:
        tenant = add_tenant(session)
        suspect = add_model(session, tenant, bytes=1000)
        add_model(session, tenant, bytes=1, deleted_at=utc_now())
        clean = add_dataset(session, tenant, bytes=200)
        add_dataset(session, tenant, bytes=None, storage_key=None, reference="file:///data")
        job = add_job(session, tenant, model=suspect, clean=clean)
        claim = jobs.claim(session, job.id, "w1", 60)
        assert claim is not None
        artifacts = make_artifacts(job.id)
        jobs.succeed(session, claim, make_report(), artifacts)
    model_bytes = sum(a.bytes for a in artifacts if a.kind == ArtifactKind.MODEL)
    other_bytes = sum(a.bytes for a in artifacts) - model_bytes
    with transaction(sessions) as session:
        assert session.query(Artifact).count() == len(artifacts)
    assert scrape()["sanitizer_store_bytes"] == {
        "models": 1000 + model_bytes,
        "datasets": 200,
        "artifacts": other_bytes,
    }


def test_messages_that_nobody_took_are_counted(scrape: Scrape, settings: Settings) -> None:
    producer = queue.make_producer(settings)
    for device in queue.DEVICES:
        queue.send_job(producer, "job_x", device)
    assert scrape()["sanitizer_queue_messages"] == {"": 3}


def test_version_and_memory_of_the_process_are_told(anonymous: httpx.Client) -> None:
    text = anonymous.get("/metrics").text
    assert 'sanitizer_build_info{version="' in text
    assert "process_resident_memory_bytes " in text


class TestBrokerDown:
    """Nothing listens where the broker should be."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"broker_url": SecretStr("redis://127.0.0.1:1/0")})

    def test_its_figure_is_absent_and_the_others_are_there(self, scrape: Scrape) -> None:
        figures = scrape()
        assert "sanitizer_queue_messages" not in figures
        assert figures["sanitizer_component_up"] == {"database": 1, "broker": 0, "store": 1}
        assert set(figures) >= DATABASE


class TestDatabaseHangs:
    """Something listens where PostgreSQL should be, and never answers."""

    @pytest.fixture
    def settings(
        self, with_hanging_database: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> Settings:
        monkeypatch.setattr(metrics, "READ_SECONDS", 0.5)
        return with_hanging_database

    def test_scrape_goes_on_without_it_in_time(self, scrape: Scrape) -> None:
        began = time.monotonic()
        figures = scrape()
        assert time.monotonic() - began < 15
        assert not DATABASE & set(figures)
        assert figures["sanitizer_component_up"] == {"database": 0, "broker": 1, "store": 1}
        assert figures["sanitizer_queue_messages"] == {"": 0}
