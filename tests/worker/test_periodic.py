"""Work that is done again and again."""

import threading

import structlog
from structlog.testing import capture_logs

from worker.periodic import Periodic


def test_lines_of_its_thread_have_the_fields_of_its_maker() -> None:
    called = threading.Event()

    def work() -> None:
        called.set()
        raise RuntimeError("not this time")

    with structlog.contextvars.bound_contextvars(job_id="job_1", attempt=2):
        periodic = Periodic("look", work, 3600)
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
        periodic.start()
        assert called.wait(10)
        periodic.stop()
    assert [(line["event"], line["job_id"], line["attempt"]) for line in lines] == [
        ("failed, tried again later", "job_1", 2)
    ]
