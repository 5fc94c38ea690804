"""A worker tells that it lives."""

from service.db.session import SessionFactory, transaction
from service.db.tables import WorkerRecord
from tests.databases import every_database
from worker.heartbeat import Heartbeat, make_worker_id

pytestmark = every_database


def _records(sessions: SessionFactory) -> list[WorkerRecord]:
    with transaction(sessions) as session:
        return session.query(WorkerRecord).all()


def test_first_beat_makes_the_row_and_the_next_one_touches_it(sessions: SessionFactory) -> None:
    heartbeat = Heartbeat(sessions, "w1", device="cpu", slots=lambda: 2)
    heartbeat.beat()
    [first] = _records(sessions)
    heartbeat.beat()
    [second] = _records(sessions)
    assert (second.id, second.device, second.slots) == ("w1", "cpu", 2)
    assert second.started_at == first.started_at
    assert second.heartbeat_at > first.heartbeat_at


def test_worker_that_signs_off_has_no_row(sessions: SessionFactory) -> None:
    heartbeat = Heartbeat(sessions, "w1", device="cpu", slots=lambda: 1)
    heartbeat.beat()
    heartbeat.sign_off()
    heartbeat.sign_off()
    assert _records(sessions) == []


def test_two_workers_never_have_the_same_id(sessions: SessionFactory) -> None:
    ids = {make_worker_id() for _ in range(10)}
    for worker_id in ids:
        Heartbeat(sessions, worker_id, device="cpu", slots=lambda: 1).beat()
    assert {record.id for record in _records(sessions)} == ids
