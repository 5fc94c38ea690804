"""Fixtures of the HTTP tests: the app over a real database, store and broker; clients with keys."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Protocol

import httpx
import pytest
import uvicorn
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi import FastAPI

from service.app import create_app
from service.db.session import SessionFactory, transaction
from service.db.tables import Scope
from service.keys.service import create_key, ensure_tenant
from service.settings import Settings

MakeKey = Callable[[str, Collection[Scope]], str]


class MakeClient(Protocol):
    """Makes clients."""

    def __call__(self, secret: str | None = None) -> httpx.Client:
        """A client with a key, or without one."""


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    """The application; pytest's own log handlers are put back after it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    app = create_app(settings)
    yield app
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def make_key(sessions: SessionFactory) -> MakeKey:
    """Makes a key for a tenant, which is made where there is none; gives the secret."""

    def make(tenant: str, scopes: Collection[Scope]) -> str:
        with transaction(sessions) as session:
            return create_key(session, ensure_tenant(session, tenant), "test", scopes)[1]

    return make


class AppTransport(httpx.BaseTransport):
    """Lets a synchronous client talk to the app without a socket.

    Starlette's own test client wants a library that is not among ours.
    """

    def __init__(self, app: FastAPI, portal: BlockingPortal) -> None:
        self._inner = httpx.ASGITransport(app)
        self._portal = portal

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends one request, on the portal's event loop."""
        return self._portal.call(self._exchange, request)

    async def _exchange(self, request: httpx.Request) -> httpx.Response:
        answer = await self._inner.handle_async_request(request)
        content = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)


@pytest.fixture(scope="session")
def portal() -> Iterator[BlockingPortal]:
    """An event loop in a thread."""
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def make_client(app: FastAPI, portal: BlockingPortal) -> MakeClient:
    """Makes a client with a key, or without one."""

    def make(secret: str | None = None) -> httpx.Client:
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        transport = AppTransport(app, portal)
        return httpx.Client(transport=transport, base_url="http://test", headers=headers)

    return make


@pytest.fixture
def anonymous(make_client: MakeClient) -> httpx.Client:
    """A client without a key."""
    return make_client()


@pytest.fixture
def client(make_client: MakeClient, make_key: MakeKey) -> httpx.Client:
    """A client of the tenant `acme` that may do everything."""
    return make_client(make_key("acme", [Scope.ADMIN]))


@pytest.fixture
def stranger(make_client: MakeClient, make_key: MakeKey) -> httpx.Client:
    """A client of another tenant that may do everything there."""
    return make_client(make_key("globex", [Scope.ADMIN]))


@pytest.fixture
def server(app: FastAPI) -> Iterator[str]:
    """The application behind a real server on this machine; its address."""
    with serve(app) as address:
        yield address


@pytest.fixture
def remote(server: str, make_key: MakeKey) -> Iterator[httpx.Client]:
    """A client of the tenant `acme` over a real connection."""
    headers = {"Authorization": f"Bearer {make_key('acme', [Scope.ADMIN])}"}
    with httpx.Client(base_url=server, headers=headers, timeout=20) as client:
        yield client


@contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """Serves an app from a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, args=([listener],))
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not running.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(10)
        listener.close()
