"""The API over HTTP, typed: what every command that talks to a server goes through."""

import contextlib
import importlib.metadata
import json
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from service.cli.answers import (
    Answer,
    ArtifactAnswer,
    DatasetAnswer,
    JobAnswer,
    JobEvent,
    JobValidation,
    KeyAnswer,
    ListAnswer,
    ModelAnswer,
)
from service.cli.config import Login, is_loopback
from service.cli.failures import NoAnswer, Refused, Unreachable
from service.cli.sse import EventParser, parse
from service.cli.uploading import CountedFile, OnBytes, sendable

Kind = TypeVar("Kind", bound=Answer)

TIMEOUT = httpx.Timeout(60, connect=10)
UPLOAD_TIMEOUT = httpx.Timeout(600, connect=10)
"""The server stores the last bytes before it answers."""
RETRY_PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds before each further try of a request whose connection broke."""
MAX_PAGE = 100


class Remote:
    """A server and a key for it.

    Requests that create carry an `Idempotency-Key`, so they are sent again when the connection
    breaks: what was done already is not done twice.

    Args:
        login: The server's address and the key.
        pause: Waits so many seconds; tests need not.
    """

    def __init__(self, login: Login, *, pause: Callable[[float], None] = time.sleep) -> None:
        self.url = login.url
        self._pause = pause
        self._client = httpx.Client(
            base_url=login.url,
            headers={
                "Authorization": f"Bearer {login.api_key}",
                "User-Agent": f"sanitizer-cli/{version()}",
                "Accept": "application/json",
            },
            timeout=TIMEOUT,
            # A proxy knows no way to this machine's own loopback.
            trust_env=not is_loopback(login.url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()

    # --- Models and data -------------------------------------------------------------------------

    def upload_model(
        self, path: Path, fields: Mapping[str, Any], on_bytes: OnBytes | None = None
    ) -> ModelAnswer:
        """Sends a file of weights; `fields` are those of `service.models.schemas.ModelFields`."""
        return self._upload("/v1/models", path, fields, on_bytes, ModelAnswer)

    def upload_dataset(
        self, path: Path, fields: Mapping[str, Any], on_bytes: OnBytes | None = None
    ) -> DatasetAnswer:
        """Sends an archive; `fields` are those of `service.datasets.schemas.DatasetFields`."""
        return self._upload("/v1/datasets", path, fields, on_bytes, DatasetAnswer)

    def refer_to_dataset(self, body: Mapping[str, Any]) -> DatasetAnswer:
        """Makes a data set of images where they lie."""
        return self._create("/v1/datasets/references", body, DatasetAnswer)

    def model(self, model_id: str) -> ModelAnswer:
        """One model."""
        return self._get(f"/v1/models/{_segment(model_id)}", ModelAnswer)

    def models(self, *, limit: int | None = None) -> ListAnswer:
        """The newest models, up to `limit`; all of them without one."""
        return self._list("/v1/models", {}, limit)

    def change_model(self, model_id: str, wanted: Mapping[str, Any]) -> ModelAnswer:
        """Changes what is said about a model: `service.models.schemas.ModelChange`."""
        return self._change(f"/v1/models/{_segment(model_id)}", wanted, ModelAnswer)

    def delete_model(self, model_id: str) -> None:
        """Removes a model and its file."""
        self._send("DELETE", f"/v1/models/{_segment(model_id)}")

    def dataset(self, dataset_id: str) -> DatasetAnswer:
        """One data set."""
        return self._get(f"/v1/datasets/{_segment(dataset_id)}", DatasetAnswer)

    def datasets(self, *, limit: int | None = None) -> ListAnswer:
        """The newest data sets, up to `limit`; all of them without one."""
        return self._list("/v1/datasets", {}, limit)

    def change_dataset(self, dataset_id: str, wanted: Mapping[str, Any]) -> DatasetAnswer:
        """Changes what is said about a data set: `service.datasets.schemas.DatasetChange`."""
        return self._change(f"/v1/datasets/{_segment(dataset_id)}", wanted, DatasetAnswer)

    def delete_dataset(self, dataset_id: str) -> None:
        """Removes a data set and its file."""
        self._send("DELETE", f"/v1/datasets/{_segment(dataset_id)}")

    @contextlib.contextmanager
    def model_file(self, model_id: str, start: int, sha256: str) -> Iterator[httpx.Response]:
        """The file of a model from byte `start` on, if it is still the one with this checksum."""
        with self._file(f"/v1/models/{_segment(model_id)}/file", start, sha256) as response:
            yield response

    @contextlib.contextmanager
    def artifact_file(
        self, artifact: ArtifactAnswer, start: int, sha256: str
    ) -> Iterator[httpx.Response]:
        """A file of a job from byte `start` on, if it is still the one with this checksum."""
        job, name = _segment(artifact.job_id), _segment(artifact.id)
        with self._file(f"/v1/jobs/{job}/artifacts/{name}/file", start, sha256) as response:
            yield response

    # --- Jobs ------------------------------------------------------------------------------------

    def create_job(self, body: Mapping[str, Any]) -> JobAnswer:
        """Submits a job."""
        return self._create("/v1/jobs", body, JobAnswer)

    def validate_job(self, body: Mapping[str, Any]) -> JobValidation:
        """Has the request of a job checked, and nothing done."""
        return self._create("/v1/jobs", {**body, "validate_only": True}, JobValidation)

    def job(self, job_id: str) -> JobAnswer:
        """One job."""
        return self._get(f"/v1/jobs/{_segment(job_id)}", JobAnswer)

    def jobs(self, *, status: str | None = None, limit: int | None = None) -> ListAnswer:
        """The newest jobs, up to `limit`; all of them without one."""
        return self._list("/v1/jobs", {"status": status} if status else {}, limit)

    def cancel(self, job_id: str) -> JobAnswer:
        """Asks for a job to be cancelled."""
        return self._post(f"/v1/jobs/{_segment(job_id)}/cancel", JobAnswer)

    def retry(self, job_id: str) -> JobAnswer:
        """Submits a job that failed or was cancelled once more."""
        return self._create(f"/v1/jobs/{_segment(job_id)}/retry", None, JobAnswer)

    def delete_job(self, job_id: str) -> None:
        """Removes a job that has ended, with its files."""
        self._send("DELETE", f"/v1/jobs/{_segment(job_id)}")

    def artifacts(self, job_id: str) -> list[ArtifactAnswer]:
        """The files of a job."""
        page = self._list(f"/v1/jobs/{_segment(job_id)}/artifacts", {}, None)
        return [self._read(ArtifactAnswer, item) for item in page.data]

    def events(self, job_id: str, parser: EventParser) -> Generator[JobEvent, None, None]:
        """The events of a job after `parser.last_id`, as they come, until the stream ends.

        Raises:
            NoAnswer: The connection broke; a new parser with the same `last_id` goes on.
            Refused: The server has a problem with it.
            Unreachable: The server does not answer.
        """
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if parser.last_id:
            headers["Last-Event-ID"] = parser.last_id
        path = f"/v1/jobs/{_segment(job_id)}/events"
        with (
            self._translated(),
            self._client.stream("GET", path, headers=headers) as response,
        ):
            if not response.is_success:
                response.read()
                raise self._problem(response)
            for event in parse(response.iter_bytes(), parser):
                yield self._read(JobEvent, _json(event.data))

    # --- Keys ------------------------------------------------------------------------------------

    def check_key(self) -> None:
        """Asks something that every key may ask.

        Raises:
            Refused: The key is not valid.
            NoAnswer: What answers is not this API.
        """
        self._get("/v1/models", ListAnswer, {"limit": 1})

    def create_key(self, body: Mapping[str, Any]) -> KeyAnswer:
        """Makes a key; the answer alone ever has its secret."""
        return self._create("/v1/keys", body, KeyAnswer)

    def keys(self) -> ListAnswer:
        """All keys of the tenant."""
        return self._list("/v1/keys", {}, None)

    def revoke_key(self, key_id: str) -> None:
        """Ends a key."""
        self._send("DELETE", f"/v1/keys/{_segment(key_id)}")

    # --- How -------------------------------------------------------------------------------------

    def _get(self, path: str, kind: type[Kind], query: Mapping[str, Any] | None = None) -> Kind:
        return self._answer(kind, self._send("GET", path, params=query))

    def _post(self, path: str, kind: type[Kind]) -> Kind:
        return self._answer(kind, self._send("POST", path))

    def _change(self, path: str, wanted: Mapping[str, Any], kind: type[Kind]) -> Kind:
        return self._answer(kind, self._send("PATCH", path, json=wanted))

    def _create(self, path: str, body: Mapping[str, Any] | None, kind: type[Kind]) -> Kind:
        headers = _idempotent()

        def send() -> httpx.Response:
            return self._send("POST", path, json=body, headers=headers)

        return self._answer(kind, self._until_answered(send))

    def _upload(
        self,
        path: str,
        file: Path,
        fields: Mapping[str, Any],
        on_bytes: OnBytes | None,
        kind: type[Kind],
    ) -> Kind:
        headers = _idempotent()
        form = {name: v if isinstance(v, str) else json.dumps(v) for name, v in fields.items()}

        def send() -> httpx.Response:
            with file.open("rb") as opened:
                content = CountedFile(opened, on_bytes)
                return self._send(
                    "POST",
                    path,
                    data=form,
                    files={"file": (sendable(file.name), content, "application/octet-stream")},
                    headers=headers,
                    timeout=UPLOAD_TIMEOUT,
                )

        return self._answer(kind, self._until_answered(send))

    def _until_answered(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        """Sends again when the connection breaks, or while the first try is being worked on."""
        for number, pause in enumerate(RETRY_PAUSES):
            try:
                return send()
            except Unreachable:
                if number == 0:
                    raise  # it never answered; after a break it may be restarting
            except NoAnswer:
                pass
            except Refused as refusal:
                if refusal.code != "idempotent_request_running":
                    raise
            self._pause(pause)
        return send()

    def _list(self, path: str, query: Mapping[str, Any], limit: int | None) -> ListAnswer:
        """Up to `limit` items of a list, or all, as one page."""
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            wanted = MAX_PAGE if limit is None else min(MAX_PAGE, limit - len(items))
            after = {"after": cursor} if cursor else {}
            page = self._get(path, ListAnswer, {**query, **after, "limit": wanted})
            items += page.data
            cursor = page.next_cursor
            if not page.has_more or (limit is not None and len(items) >= limit):
                return ListAnswer.read({**page.document, "data": items})

    @contextlib.contextmanager
    def _file(self, path: str, start: int, sha256: str) -> Iterator[httpx.Response]:
        # Compressed on the way, a file would have other bytes and no ranges.
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if start:
            headers |= {"Range": f"bytes={start}-", "If-Range": f'"{sha256}"'}
        # To the store, if that gives its files itself; httpx takes our key to no other origin.
        with (
            self._translated(),
            self._client.stream("GET", path, headers=headers, follow_redirects=True) as response,
        ):
            if not response.is_success:
                response.read()
                raise self._problem(response)
            yield response

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._translated():
            response = self._client.request(method, path, **options)
        if not response.is_success:
            raise self._problem(response)
        return response

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            if (store := self._elsewhere(error.request.url)) is not None:
                raise NoAnswer(
                    f"{self.url} has its files at {store}, where no server answers ({error})."
                ) from error
            raise Unreachable(
                f"No server answers at {self.url} ({error}).",
                hint="Start one on this machine with `sanitizer up`, or name another with "
                "`sanitizer login URL`.",
            ) from error
        except httpx.TimeoutException as error:
            where = self._elsewhere(error.request.url) or self.url
            raise NoAnswer(f"{where} did not answer in time.") from error
        except httpx.TransportError as error:
            where = self._elsewhere(error.request.url) or self.url
            raise NoAnswer(f"The connection to {where} broke: {error}.") from error

    def _elsewhere(self, url: httpx.URL) -> str | None:
        """The origin of an address that is not on this server."""
        own = self._client.base_url
        if (url.scheme, url.host, url.port) == (own.scheme, own.host, own.port):
            return None
        return f"{url.scheme}://{url.netloc.decode()}"

    def _problem(self, response: httpx.Response) -> Refused | NoAnswer:
        store = self._elsewhere(response.url)
        if store is not None:  # the rest of its address is a secret
            return NoAnswer(
                f"{self.url} has its files at {store}, which answered {response.status_code} "
                f"{response.reason_phrase}."
            )
        document: Any = None
        with contextlib.suppress(ValueError):
            document = response.json()
        if isinstance(document, dict) and "title" in document:
            return Refused(response.status_code, document)
        return NoAnswer(
            f"{response.request.url} answered {response.status_code} {response.reason_phrase} "
            "without a problem document.",
            hint=f"Is {self.url} the address of a sanitizer service?",
        )

    def _answer(self, kind: type[Kind], response: httpx.Response) -> Kind:
        return self._read(kind, _json(response.text))

    def _read(self, kind: type[Kind], document: Any) -> Kind:
        try:
            return kind.read(document)
        except ValidationError as error:
            raise NoAnswer(
                f"{self.url} answered with something else than expected "
                f"({error.error_count()} fields differ).",
                hint="Is it the address of a sanitizer service, and as new as this command?",
            ) from error


def version() -> str:
    """The version of this software."""
    return importlib.metadata.version("backdoor-sanitizer")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None  # no document at all: `read` says so


def _idempotent() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid.uuid4())}


def _segment(identifier: str) -> str:
    """An id as one segment of a path, whatever it holds."""
    return quote(identifier, safe="") or "-"
