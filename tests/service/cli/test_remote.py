"""The client against the real server, over connections that hold and connections that break."""

import time
from pathlib import Path
from typing import Any

import pytest

from sanitizer.exits import Exit
from service.cli.config import Login
from service.cli.failures import NoAnswer, Refused, Unreachable
from service.cli.remote import Remote
from service.cli.sse import EventParser
from tests.service.cli.breaking import breaking


def no_pause(_seconds: float) -> None:
    """Tests need not wait."""


def short_pause(seconds: float) -> None:
    """Long enough for a server that is still at work on the first try."""
    time.sleep(seconds / 2)


def body_for(api: Remote, model_file: Path, images_zip: Path) -> dict[str, Any]:
    model = api.upload_model(model_file, {})
    dataset = api.upload_dataset(images_zip, {})
    return {"model_id": model.id, "clean_data": {"dataset_id": dataset.id}}


def test_an_upload_arrives_whole_with_its_fields(api: Remote, model_file: Path) -> None:
    counted: list[int] = []
    fields = {"name": "suspect", "input_size": [16, 24], "metadata": {"team": "vision"}}
    model = api.upload_model(model_file, fields, counted.append)
    assert model.name == "suspect"
    assert model.document["input_size"] == [16, 24]
    assert model.document["metadata"] == {"team": "vision"}
    assert model.bytes == model_file.stat().st_size == sum(counted)
    assert api.model(model.id) == model


def test_an_upload_whose_answer_is_lost_is_done_once(login: Login, model_file: Path) -> None:
    counted: list[int] = []
    with (
        breaking(login.url, 0, 10) as wire,
        Remote(Login(wire.url, login.api_key), pause=short_pause) as remote,
    ):
        model = remote.upload_model(model_file, {}, counted.append)
        # More, where the server had not done with the first when the third came.
        assert wire.connections >= 3
        assert sum(counted) >= model_file.stat().st_size
        page = remote._list("/v1/models", {}, None)
    assert [item["id"] for item in page.data] == [model.id]


def test_a_job_whose_answer_is_lost_is_submitted_once(
    api: Remote, login: Login, model_file: Path, images_zip: Path
) -> None:
    body = body_for(api, model_file, images_zip)
    with (
        breaking(login.url, 30) as wire,
        Remote(Login(wire.url, login.api_key), pause=short_pause) as remote,
    ):
        job = remote.create_job(body)
    assert [item["id"] for item in api.jobs().data] == [job.id]


def test_a_connection_that_always_breaks_is_given_up(login: Login) -> None:
    with (
        breaking(login.url, *[0] * 20) as wire,
        Remote(Login(wire.url, login.api_key), pause=no_pause) as remote,
        pytest.raises(NoAnswer, match="broke"),
    ):
        remote.create_key({"name": "x"})


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with Remote(Login("http://127.0.0.1:1", "x")) as remote, pytest.raises(Unreachable):
        remote.create_job({})


def test_something_that_is_not_the_api_is_recognised(login: Login) -> None:
    with (
        Remote(Login(f"{login.url}/elsewhere", login.api_key)) as remote,
        pytest.raises(Refused, match="nothing here"),
    ):
        remote.check_key()
    with (
        Remote(Login(f"{login.url}/openapi.json?", login.api_key)) as remote,
        pytest.raises(NoAnswer, match="something else than expected"),
    ):
        remote.check_key()


def test_a_problem_document_is_shown_whole(api: Remote) -> None:
    with pytest.raises(Refused) as caught:
        api.create_job({"model_id": "m", "clean_data": {"dataset_id": "d"}, "sed": 1})
    assert caught.value.exit is Exit.USAGE
    assert any(line.startswith("  /sed: ") for line in caught.value.lines)
    assert caught.value.lines[-1].startswith("Request id: ")


def test_an_id_cannot_leave_its_place_in_the_path(api: Remote) -> None:
    with pytest.raises(Refused) as caught:
        api.job("../models?x=")
    assert caught.value.status == 404


def test_all_pages_of_a_list_are_put_together(
    api: Remote, model_file: Path, images_zip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = body_for(api, model_file, images_zip)
    ids = [api.create_job(body).id for _ in range(5)][::-1]
    monkeypatch.setattr("service.cli.remote.MAX_PAGE", 2)
    assert [item["id"] for item in api.jobs().data] == ids
    some = api.jobs(limit=3)
    assert [item["id"] for item in some.data] == ids[:3]
    assert some.has_more
    assert api.jobs(status="cancelled").data == []


def test_events_go_on_after_the_last_one_seen(
    api: Remote, model_file: Path, images_zip: Path
) -> None:
    job = api.create_job(body_for(api, model_file, images_zip))
    api.cancel(job.id)
    whole = list(api.events(job.id, EventParser()))
    assert [event.sequence for event in whole] == list(range(1, len(whole) + 1))
    assert whole[-1].data["status"] == "cancelled"
    assert list(api.events(job.id, EventParser(str(len(whole))))) == []
    assert list(api.events(job.id, EventParser("1"))) == whole[1:]


def test_a_stream_that_breaks_says_so(
    api: Remote, login: Login, model_file: Path, images_zip: Path
) -> None:
    job = api.create_job(body_for(api, model_file, images_zip))
    api.cancel(job.id)
    with (
        breaking(login.url, 300) as wire,
        Remote(Login(wire.url, login.api_key)) as remote,
        pytest.raises(NoAnswer, match="broke"),
    ):
        list(remote.events(job.id, EventParser()))
