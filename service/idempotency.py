"""`Idempotency-Key`: a creating request that is sent twice is done once.

The first request claims the key in a transaction of its own, so that a second one is told at once
that the first is running. The answer is stored in the transaction that does the work: either both
are there or neither. A claim whose process died is free again after a while; one whose upload still
arrives is renewed, however long that takes. A request whose claim ran out and was taken by another
is undone, not stored. Only successes are stored: a request that failed may be sent again with the
same key.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any

import anyio
from fastapi import Depends, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from service import multipart
from service.db.base import utc_now
from service.db.repository import DATABASE_AWAY
from service.db.session import SessionFactory, transaction
from service.db.tables import IdempotencyRecord
from service.dependencies import ServicesDep, Writer
from service.errors import (
    FieldError,
    IdempotencyKeyReused,
    IdempotentRequestRunning,
    InvalidRequest,
)
from service.multipart import Upload
from service.services import Services

HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotency-Replayed"
CLAIM_LASTS = timedelta(minutes=1)
UPLOAD_CLAIM_LASTS = timedelta(minutes=15)
"""From the last bytes that came on, give or take a third."""


@dataclass(frozen=True)
class Answer:
    """The answer to a creating request."""

    status: int
    body: BaseModel
    headers: Mapping[str, str] = field(default_factory=dict)
    stored_body: BaseModel | None = None
    """What is remembered instead of the body: an answer with a secret must not be stored."""

    def response(self) -> JSONResponse:
        """As a response."""
        return JSONResponse(_document(self.body), self.status, dict(self.headers))


@dataclass(frozen=True)
class StoredAnswer:
    """The answer that an earlier request with the same key got."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str]

    def response(self) -> JSONResponse:
        """As a response, marked as a repetition."""
        return JSONResponse(self.body, self.status, {**self.headers, REPLAYED_HEADER: "true"})


class Once:
    """Does the request at hand once, if it carries a key.

    In order: `begin`, `earlier`, the work with `complete` in its transaction; `release` if it
    fails.
    """

    def __init__(
        self, sessions: SessionFactory, tenant_id: str, key: str | None, *, remembered: timedelta
    ) -> None:
        """`sessions` are for writing; without `key` nothing is remembered."""
        self._sessions = sessions
        self._tenant_id = tenant_id
        self._key = key
        self._remembered = remembered
        self._claimed_at: datetime | None = None
        self._lasts = CLAIM_LASTS
        self._renewed_at: datetime | None = None
        self._found: IdempotencyRecord | None = None

    def begin(self, *, lasts: timedelta = CLAIM_LASTS) -> None:
        """Takes the key, or finds the answer of the request that took it before.

        Raises:
            IdempotentRequestRunning: The first request has not ended.
        """
        if self._key is None:
            return
        now = self._renewed_at = utc_now()
        self._lasts = lasts
        # Two that insert at the same time: the primary key lets one in, the other is told so.
        with suppress(IntegrityError), transaction(self._sessions) as session:
            session.execute(
                delete(IdempotencyRecord).where(*self._mine(), IdempotencyRecord.expires_at <= now)
            )
            self._found = session.scalar(select(IdempotencyRecord).where(*self._mine()))
            if self._found is None:
                session.add(
                    IdempotencyRecord(
                        tenant_id=self._tenant_id,
                        key=self._key,
                        fingerprint="",  # an upload's is not known before its end
                        created_at=now,
                        expires_at=now + lasts,
                    )
                )
                session.flush()
                self._claimed_at = now
        if self._claimed_at is None and (self._found is None or self._found.status_code is None):
            raise IdempotentRequestRunning(
                f"The first request with the idempotency key {self._key!r} has not ended."
            )

    async def keep(self) -> None:
        """Renews the claim where a third of its time is over: the request is being worked on."""
        now = utc_now()
        if self._claimed_at is None or self._renewed_at is None:
            return
        if now - self._renewed_at >= self._lasts / 3:
            self._renewed_at = now
            await run_in_threadpool(self._renew, now)

    def _renew(self, now: datetime) -> None:
        # If that fails, the next time may not.
        with suppress(SQLAlchemyError), transaction(self._sessions) as session:
            session.execute(
                update(IdempotencyRecord)
                .where(*self._unfinished())
                .values(expires_at=now + self._lasts)
            )

    def earlier(self, fingerprint: str) -> StoredAnswer | None:
        """The answer of an earlier request with the same key and payload.

        Raises:
            IdempotencyKeyReused: The payload was another one.
        """
        if self._found is None or self._found.status_code is None:
            return None
        if fingerprint != self._found.fingerprint:
            raise IdempotencyKeyReused(
                f"The idempotency key {self._key!r} came before with another request.",
                errors=[FieldError(f"/header/{HEADER}", "belongs to another request")],
            )
        return StoredAnswer(
            self._found.status_code, self._found.body or {}, self._found.headers or {}
        )

    def complete(self, session: Session, fingerprint: str, answer: Answer) -> None:
        """Stores the answer in the transaction of the work.

        Raises:
            IdempotentRequestRunning: The claim ran out and another request took the key.
        """
        if self._key is None:
            return
        values = {
            "fingerprint": fingerprint,
            "status_code": answer.status,
            "headers": dict(answer.headers),
            "body": _document(answer.stored_body or answer.body),
            "expires_at": utc_now() + self._remembered,
        }
        stored = session.scalar(
            update(IdempotencyRecord)
            .where(*self._unfinished())
            .values(**values)
            .returning(IdempotencyRecord.key)
        )
        if stored is not None:
            return
        # The claim ran out. Where nobody took the key since, it is as good as ours.
        if session.scalar(select(IdempotencyRecord.key).where(*self._mine())) is None:
            with suppress(IntegrityError):
                session.add(
                    IdempotencyRecord(
                        tenant_id=self._tenant_id, key=self._key, created_at=utc_now(), **values
                    )
                )
                session.flush()
                return
        raise IdempotentRequestRunning(
            f"The request took so long that another one took over the key {self._key!r}."
        )

    def release(self) -> None:
        """Gives the key back. If that fails, the claim runs out by itself."""
        if self._claimed_at is None:
            return
        with suppress(*DATABASE_AWAY), transaction(self._sessions) as session:
            session.execute(delete(IdempotencyRecord).where(*self._unfinished()))

    def run(
        self,
        session: Session,
        fingerprint: str,
        work: Callable[[], Answer],
        *,
        repeat: Callable[[StoredAnswer], JSONResponse] = StoredAnswer.response,
    ) -> JSONResponse:
        """All the steps, for work in the transaction of `session`, which ends with it."""
        self.begin()
        earlier = self.earlier(fingerprint)
        if earlier is not None:
            return repeat(earlier)
        try:
            answer = work()
            session.flush()
            self.complete(session, fingerprint, answer)
            session.commit()  # here: should it fail, the key must be given back too
        except BaseException:
            session.rollback()  # its locks would keep `release` waiting
            self.release()
            raise
        return answer.response()

    def _mine(self) -> tuple[Any, ...]:
        return (
            IdempotencyRecord.tenant_id == self._tenant_id,
            IdempotencyRecord.key == self._key,
        )

    def _unfinished(self) -> tuple[Any, ...]:
        return (
            *self._mine(),
            IdempotencyRecord.created_at == self._claimed_at,
            IdempotencyRecord.status_code.is_(None),
        )


async def run_upload(
    once: Once,
    request: Request,
    services: Services,
    *,
    key: str,
    limit: int,
    fields: type[BaseModel],
    work: Callable[[Session, Upload], Answer],
    look: multipart.Look = multipart.look_away,
) -> JSONResponse:
    """All the steps for an upload: no transaction is open while the file arrives.

    Args:
        once: The request's key.
        request: Its body is the upload.
        services: Where rows and the file go.
        key: The key of the file in the store.
        limit: Bytes the file may have.
        fields: The fields beside the file.
        work: Makes the row, in the transaction it is given.
        look: As of `multipart.receive`.
    """

    def finish(upload: Upload) -> JSONResponse:
        payload = fingerprint(request, upload.identity())
        try:
            earlier = once.earlier(payload)
            if earlier is not None:
                upload.kept = False
                return earlier.response()
            with transaction(services.write_sessions) as session:
                answer = work(session, upload)
                session.flush()
                once.complete(session, payload, answer)
        except BaseException:
            upload.kept = False
            raise
        return answer.response()

    await run_in_threadpool(once.begin, lasts=UPLOAD_CLAIM_LASTS)
    try:
        async with multipart.receive(
            request,
            services.store,
            key,
            limit=limit,
            fields=fields,
            on_arrival=once.keep,
            look=look,
        ) as upload:
            # From here on the file stays unless `finish` says that no row names it: should this
            # task be cancelled while the thread commits, a file without a row is the lesser evil.
            upload.kept = True
            return await run_in_threadpool(finish, upload)
    except BaseException:
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(once.release)
        raise


def fingerprint(request: Request, payload: Any) -> str:
    """What makes a request the same: method, path and payload (JSON)."""
    canonical = json.dumps(
        [request.method, request.url.path, payload], sort_keys=True, separators=(",", ":")
    )
    return hashlib.sha256(canonical.encode()).hexdigest()


def _document(body: BaseModel) -> dict[str, Any]:
    return body.model_dump(mode="json", by_alias=True)


async def _get_once(
    services: ServicesDep,
    caller: Writer,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="A name of your own for this request, such as a UUID. Sent again with it, "
            "the request is not done again: its first answer is repeated. Remembered for 24 hours "
            "unless the operator set another time.",
        ),
    ] = None,
) -> Once:
    if idempotency_key is not None and not idempotency_key.isprintable():
        raise InvalidRequest(
            "The idempotency key must be printable text.",
            errors=[FieldError(f"/header/{HEADER}", "must be printable text")],
        )
    return Once(
        services.write_sessions,
        caller.tenant_id,
        idempotency_key,
        remembered=timedelta(hours=services.settings.idempotency_hours),
    )


OnceDep = Annotated[Once, Depends(_get_once)]
