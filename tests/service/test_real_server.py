"""What only a real connection shows: order of commit and answer, hang-ups, memory."""

import hashlib
import http.client
import io
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import Connection, event

from service.db.session import SessionFactory, transaction
from service.db.tables import IdempotencyRecord, Job, Model, Scope
from service.settings import MIB, Settings
from tests.databases import every_database
from tests.service.conftest import MakeKey
from tests.service.jobs.builders import job_body

BOUNDARY = "xyz"
PART_HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="m.pt"\r\n\r\n'
).encode()
PART_TAIL = f"\r\n--{BOUNDARY}--\r\n".encode()


@pytest.fixture
def secret(make_key: MakeKey) -> str:
    """A key of the tenant `acme` that may write."""
    return make_key("acme", [Scope.WRITE])


@contextmanager
def raw_upload(
    server: str, secret: str, *, length: int, **headers: str
) -> Iterator[http.client.HTTPConnection]:
    """An upload whose head is sent; the body is the block's work."""
    address = urlsplit(server)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=20)
    connection.putrequest("POST", "/v1/models")
    connection.putheader("Authorization", f"Bearer {secret}")
    connection.putheader("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
    connection.putheader("Content-Length", str(length))
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    try:
        yield connection
    finally:
        connection.close()


def files_in_store(settings: Settings) -> list[Path]:
    folder = Path(settings.storage_url.removeprefix("file:"))
    return [path for path in folder.rglob("*") if path.is_file()]


def wait_until(condition: Any, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@every_database
def test_job_is_committed_before_its_answer_leaves(
    remote: httpx.Client,
    server: str,
    secret: str,
    settings: Settings,
) -> None:
    body = json.dumps(job_body(remote))
    slow_commits = []

    def commit_slowly(_: Connection) -> None:
        slow_commits.append(1)
        time.sleep(0.2)

    event.listen(settings.sessions.kw["bind"], "commit", commit_slowly)
    address = urlsplit(server)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=20)
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/jobs", body, headers)
    answer = connection.getresponse()  # the head is here, the body is not read
    job_id = (answer.getheader("Location") or "").rpartition("/")[2]
    # A transaction that only reads: one that writes would wait for the other's end on SQLite.
    with transaction(settings.sessions) as session:
        assert session.get(Job, job_id) is not None
    assert (answer.status, json.loads(answer.read())["id"]) == (202, job_id)
    assert slow_commits
    connection.close()


def test_client_that_hangs_up_leaves_nothing(
    server: str, secret: str, settings: Settings, sessions: SessionFactory
) -> None:
    with raw_upload(server, secret, length=100 * MIB, Idempotency_Key="once") as connection:
        connection.send(PART_HEAD + b"x" * (9 * MIB))
        assert wait_until(lambda: _count_keys(sessions) == 1)
    # That the key is free again is the last thing that happens.
    assert wait_until(lambda: _count_keys(sessions) == 0)
    assert files_in_store(settings) == []
    with transaction(sessions) as session:
        assert session.query(Model).count() == 0


def _count_keys(sessions: SessionFactory) -> int:
    with transaction(sessions) as session:
        return session.query(IdempotencyRecord).count()


def test_upload_keeps_its_claim_for_as_long_as_bytes_come(
    server: str, secret: str, sessions: SessionFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.idempotency.UPLOAD_CLAIM_LASTS", timedelta(0))  # renews at once

    def lasts_until() -> datetime:
        with transaction(sessions) as session:
            return session.query(IdempotencyRecord).one().expires_at

    with raw_upload(server, secret, length=100 * MIB, Idempotency_Key="once") as connection:
        connection.send(PART_HEAD)
        assert wait_until(lambda: _count_keys(sessions) == 1)
        for _ in range(2):
            before = lasts_until()
            connection.send(b"x" * 1000)
            assert wait_until(lambda before=before: lasts_until() > before)


def test_second_upload_is_told_while_the_first_runs(
    server: str, secret: str, remote: httpx.Client, sessions: SessionFactory
) -> None:
    body = PART_HEAD + b"weights" + PART_TAIL
    with raw_upload(server, secret, length=len(body), Idempotency_Key="once") as connection:
        connection.send(body[:-10])
        assert wait_until(lambda: _count_keys(sessions) == 1)
        second = remote.post(
            "/v1/models",
            files={"file": ("m.pt", b"weights")},
            headers={"Idempotency-Key": "once"},
        )
        assert (second.status_code, second.json()["code"]) == (409, "idempotent_request_running")
        connection.send(body[-10:])
        first = connection.getresponse()
        assert first.status == 201
        model = json.loads(first.read())
    third = remote.post(
        "/v1/models", files={"file": ("m.pt", b"weights")}, headers={"Idempotency-Key": "once"}
    )
    assert (third.status_code, third.json()) == (201, model)


def test_announced_size_over_the_limit_is_refused_before_the_body_is_sent(
    server: str, secret: str, settings: Settings
) -> None:
    length = settings.max_model_bytes * 2
    with raw_upload(server, secret, length=length, Expect="100-continue") as connection:
        answer = connection.getresponse()
        problem = json.loads(answer.read())
    assert answer.status == 413
    assert (problem["limit_bytes"], problem["received_bytes"]) == (
        settings.max_model_bytes,
        length,
    )


def test_body_without_a_size_is_cut_off_at_the_limit(server: str, secret: str) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * MIB

    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/json"}
    answer = httpx.post(f"{server}/v1/jobs", content=endless(), headers=headers, timeout=20)
    assert (answer.status_code, answer.json()["code"]) == (413, "content_too_large")


@pytest.mark.parametrize(
    ("path", "fields", "start", "said"),
    [
        ("datasets", {}, b"\x1f\x8b\x08", "a gzip file, pack a zip instead"),
        ("datasets", {"class_names": "cat,cat"}, b"PK\x03\x04", "'cat' came twice"),
        ("datasets", {"clas_names": "cat,dog"}, b"PK\x03\x04", "/clas_names"),
        ("models", {"architecture": "resnet51"}, b"PK\x03\x04", "no architecture 'resnet51'"),
    ],
)
def test_what_is_wrong_with_an_upload_is_told_before_all_of_it_has_come(
    server: str,
    secret: str,
    settings: Settings,
    path: str,
    fields: dict[str, str],
    start: bytes,
    said: str,
) -> None:
    sent = 0

    class Endless(io.RawIOBase):
        """Two gigabytes, of which it is counted what is sent."""

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            nonlocal sent
            size = MIB if size < 0 else min(size, MIB)
            chunk = (start if sent == 0 else b"").ljust(size, b"\0")
            sent += size
            return chunk if sent < 2048 * MIB else b""

    answer = httpx.post(
        f"{server}/v1/{path}",
        files={"file": ("it", Endless())},  # type: ignore[dict-item]  # it is read from, no more
        data=fields,
        headers={"Authorization": f"Bearer {secret}", "Content-Length": str(2**31)},
        timeout=60,
    )
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert sent < 200 * MIB
    assert files_in_store(settings) == []


SERVER = """
import resource, sys
import uvicorn
uvicorn.run(
    "service.app:create_app", factory=True, fd=int(sys.argv[1]), log_config=None, workers=None
)
"""


def test_large_file_is_stored_in_constant_memory(settings: Settings, secret: str) -> None:
    size = 192 * MIB
    block = hashlib.sha256(b"seed").digest() * (MIB // 32)
    digest = hashlib.sha256()
    for _ in range(size // MIB):
        digest.update(block)
    listener = socket.create_server(("127.0.0.1", 0))
    environment = {
        "PATH": "",
        "SANITIZER_DATABASE_URL": settings.database_url.get_secret_value(),
        "SANITIZER_BROKER_URL": settings.broker_url.get_secret_value(),
        "SANITIZER_STORAGE_URL": settings.storage_url,
        "SANITIZER_LOG_LEVEL": "WARNING",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(listener.fileno())],
        pass_fds=[listener.fileno()],
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    server = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        httpx.get(f"{server}/healthz", timeout=60)
        upload(server, secret, block, 8)
        before = peak_memory(process.pid)
        answer = upload(server, secret, block, size // MIB)
        grown = peak_memory(process.pid) - before
    finally:
        process.terminate()
        process.wait(20)
        listener.close()
    assert (answer["bytes"], answer["sha256"]) == (size, digest.hexdigest())
    assert grown < size // 3


def upload(server: str, secret: str, block: bytes, blocks: int) -> dict[str, Any]:
    """Uploads a file of so many blocks without ever holding it."""
    length = len(PART_HEAD) + len(block) * blocks + len(PART_TAIL)
    with raw_upload(server, secret, length=length) as connection:
        connection.send(PART_HEAD)
        for _ in range(blocks):
            connection.send(block)
        connection.send(PART_TAIL)
        answer = connection.getresponse()
        body: dict[str, Any] = json.loads(answer.read())
    assert answer.status == 201
    return body


def peak_memory(pid: int) -> int:
    """The most memory a process has had, bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not tell VmHWM")
