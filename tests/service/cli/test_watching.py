"""Jobs watched over the real stream, while what a worker does is done by its own functions."""

import io
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from sanitizer.errors import Fault
from sanitizer.events import ErrorEvent, MetricEvent, Stage, StageEvent
from sanitizer.exits import Exit
from service.cli.answers import JobAnswer
from service.cli.config import Login
from service.cli.failures import Refused, Unreachable
from service.cli.following import exit_of, follow
from service.cli.progress import RunView
from service.cli.remote import Remote
from service.cli.watching import watch_to_the_end
from service.db.session import SessionFactory, transaction
from service.jobs import service as jobs
from tests.service.cli.breaking import breaking

EPOCHS = 60


@pytest.fixture
def job(api: Remote, model_file: Path, images_zip: Path) -> JobAnswer:
    """A job that waits."""
    model = api.upload_model(model_file, {})
    dataset = api.upload_dataset(images_zip, {})
    return api.create_job({"model_id": model.id, "clean_data": {"dataset_id": dataset.id}})


class Working:
    """A worker's hold on a job."""

    def __init__(self, sessions: SessionFactory, job_id: str) -> None:
        self._sessions = sessions
        with transaction(sessions) as session:
            held = jobs.claim(session, job_id, "worker-of-the-test", 60)
        assert held is not None
        self._held = held

    def tell(self, first: int, last: int) -> None:
        """The figures of some epochs."""
        values = [{"loss": float(epoch)} for epoch in range(first, last + 1)]
        events = [
            MetricEvent(stage=Stage.TEACHER, epoch=first + n, values=each)
            for n, each in enumerate(values)
        ]
        with transaction(self._sessions) as session:
            jobs.append_events(
                session, self._held, [StageEvent(stage=Stage.TEACHER, message="Begin"), *events]
            )

    def give_back(self) -> None:
        """The worker is being stopped."""
        with transaction(self._sessions) as session:
            jobs.release(session, self._held, "stopping")

    def fail(self) -> None:
        """The data are at fault."""
        error = ErrorEvent(code="empty_class", fault=Fault.INPUT, message="Class 3 is empty.")
        with transaction(self._sessions) as session:
            jobs.fail(session, self._held, error)


class Seen:
    """A view that writes lines."""

    def __init__(self) -> None:
        self._file = io.StringIO()
        self.view = RunView(Console(file=self._file, width=200, highlight=False))

    @property
    def epochs(self) -> list[str]:
        return [line for line in self._file.getvalue().splitlines() if " epoch " in line]

    @property
    def text(self) -> str:
        return self._file.getvalue()


def lines(first: int, last: int) -> list[str]:
    return [f"teacher epoch {n}: loss {float(n):.4g}" for n in range(first, last + 1)]


def later(seconds: float, work: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, work)
    timer.start()
    return timer


def test_every_event_is_shown_once_though_the_stream_breaks(
    sessions: SessionFactory, login: Login, job: JobAnswer
) -> None:
    worker = Working(sessions, job.id)
    worker.tell(1, EPOCHS)

    def end() -> None:
        worker.tell(EPOCHS + 1, EPOCHS + 1)
        worker.fail()

    seen = Seen()
    with (
        breaking(login.url, 6000, 4000, 900) as wire,
        Remote(Login(wire.url, login.api_key)) as remote,
    ):
        timer = later(0.5, end)
        ended = follow(remote, job.id, seen.view, pause=lambda _seconds: None)
        timer.join()
    assert wire.connections >= 4
    assert seen.epochs == lines(1, EPOCHS + 1)
    assert "the connection to the server broke" in seen.text
    assert ended.status == "failed"
    assert exit_of(ended) is Exit.UNSUPPORTED


def test_what_a_job_said_last_is_shown_though_it_ended_while_there_was_no_connection(
    sessions: SessionFactory, login: Login, job: JobAnswer
) -> None:
    worker = Working(sessions, job.id)
    worker.tell(1, EPOCHS)
    ends = iter([lambda: worker.tell(EPOCHS + 1, EPOCHS + 1), worker.fail])
    seen = Seen()

    def pause(_seconds: float) -> None:
        """Called once the connection has broken."""
        for end in ends:
            end()

    with breaking(login.url, 6000) as wire, Remote(Login(wire.url, login.api_key)) as remote:
        ended = follow(remote, job.id, seen.view, pause=pause)
    assert "the connection to the server broke" in seen.text
    assert seen.epochs == lines(1, EPOCHS + 1)
    assert ended.status == "failed"


def test_a_job_that_ran_while_nobody_asked_is_shown(
    sessions: SessionFactory, api: Remote, job: JobAnswer
) -> None:
    seen = Seen()

    def pause(_seconds: float) -> None:
        """Called while the job waits."""
        worker = Working(sessions, job.id)
        worker.tell(1, 3)
        worker.fail()

    ended = follow(api, job.id, seen.view, pause=pause)
    assert seen.epochs == lines(1, 3)
    assert ended.status == "failed"


def test_nothing_is_shown_of_a_job_that_had_ended_already(
    sessions: SessionFactory, api: Remote, job: JobAnswer
) -> None:
    worker = Working(sessions, job.id)
    worker.tell(1, 3)
    worker.fail()
    seen = Seen()
    assert follow(api, job.id, seen.view).status == "failed"
    assert seen.text == ""


def test_a_job_that_goes_back_into_the_queue_is_followed_on(
    sessions: SessionFactory, api: Remote, job: JobAnswer
) -> None:
    seen = Seen()
    first: list[Working] = []

    def pause(_seconds: float) -> None:
        """Called while the job waits: the first time at its start, then after it was given back."""
        worker = Working(sessions, job.id)
        if first:
            worker.tell(3, 4)
            worker.fail()
            return
        first.append(worker)
        worker.tell(1, 2)
        worker.give_back()

    ended = follow(api, job.id, seen.view, pause=pause)
    assert ended.status == "failed"
    assert seen.text.startswith("Waiting: ")


def test_the_whole_history_is_shown_however_late_one_comes(
    sessions: SessionFactory, api: Remote, job: JobAnswer
) -> None:
    worker = Working(sessions, job.id)
    worker.tell(1, 3)
    seen = Seen()
    timer = later(0.3, worker.fail)
    follow(api, job.id, seen.view)
    timer.join()
    assert seen.epochs == lines(1, 3)


def test_an_unknown_job_is_told_at_once(api: Remote) -> None:
    with pytest.raises(Refused, match="no such job"):
        follow(api, "job_1", Seen().view)


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with Remote(Login("http://127.0.0.1:1", "x")) as remote, pytest.raises(Unreachable):
        follow(remote, "job_1", Seen().view)


def test_a_server_that_stays_away_is_given_up_with_a_hint(
    sessions: SessionFactory, login: Login, job: JobAnswer
) -> None:
    worker = Working(sessions, job.id)
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += seconds

    with breaking(login.url) as wire, Remote(Login(wire.url, login.api_key)) as remote:
        # The stream is open when the server goes.
        timer = later(0.5, wire.stop_now)
        with pytest.raises(Unreachable) as caught:
            follow(remote, job.id, Seen().view, pause=pause, clock=lambda: now[0])
        timer.join()
    assert caught.value.hint is not None
    assert f"sanitizer watch {job.id}" in caught.value.hint
    assert 300 < now[0] < 400
    worker.give_back()


def test_an_interrupt_ends_the_watching_and_says_how_to_cancel(
    api: Remote,
    job: JobAnswer,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    interrupted = partial(follow, pause=interrupt)
    monkeypatch.setattr("service.cli.watching.follow", interrupted)
    assert watch_to_the_end(api, job.id, as_json=False) is Exit.INTERRUPTED
    err = capfd.readouterr().err
    assert f"sanitizer cancel {job.id}" in err
    assert api.job(job.id).status == "queued"
