"""Keys: made, checked, revoked."""

import hashlib
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from service.db.base import utc_now
from service.db.tables import ApiKey, Scope, Tenant
from service.errors import FieldError, InvalidRequest, KeyNotFound, Unauthenticated
from service.keys.repository import KeyRepository

SECRET_PREFIX = "bds_"
SHOWN_CHARACTERS = 12
_SECRET_BYTES = 32
_USE_IS_NOTED_EVERY = timedelta(minutes=1)

_INCLUDES: dict[Scope, frozenset[Scope]] = {
    Scope.READ: frozenset({Scope.READ}),
    Scope.WRITE: frozenset({Scope.READ, Scope.WRITE}),
    Scope.ADMIN: frozenset(Scope),
}


@dataclass(frozen=True)
class Caller:
    """Who sends a request."""

    tenant_id: str
    key_id: str
    scopes: frozenset[Scope]
    """Scopes that follow from others are in it."""


def with_included(scopes: Iterable[str]) -> frozenset[Scope]:
    """The scopes and those they include."""
    return frozenset().union(*(_INCLUDES[Scope(scope)] for scope in scopes))


def ensure_tenant(session: Session, name: str) -> Tenant:
    """The tenant of this name, made if there is none."""
    keys = KeyRepository.from_session(session)
    tenant = keys.tenant_by_name(name)
    if tenant is None:
        tenant = Tenant(name=name)
        keys.add(tenant)
    return tenant


def create_key(
    session: Session,
    tenant: Tenant | str,
    name: str,
    scopes: Collection[Scope],
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Makes a key for a tenant (the row or its id).

    Returns:
        The row, and the secret: 256 random bits, stored nowhere.
    """
    secret = SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    row = ApiKey(
        tenant_id=tenant if isinstance(tenant, str) else tenant.id,
        name=name,
        prefix=secret[:SHOWN_CHARACTERS],
        secret_sha256=hash_secret(secret),
        scopes=sorted(set(scopes), key=list(Scope).index),
        expires_at=expires_at,
    )
    KeyRepository.from_session(session).add(row)
    return row, secret


def grant(
    session: Session, caller: Caller, name: str, scopes: Collection[Scope], until: datetime | None
) -> tuple[ApiKey, str]:
    """Makes a key on behalf of a caller.

    Raises:
        InvalidRequest: The caller lacks one of the scopes, or `until` has passed.
    """
    missing = set(scopes) - caller.scopes
    if missing:
        raise InvalidRequest(
            f"A key cannot grant what it lacks: {', '.join(sorted(missing))}.",
            errors=[FieldError("/scopes", "holds a scope that your own key lacks")],
        )
    if until is not None and until <= utc_now():
        raise InvalidRequest(
            f"expires_at lies in the past: {until.isoformat()}.",
            errors=[FieldError("/expires_at", "must lie in the future")],
        )
    return create_key(session, caller.tenant_id, name, scopes, until)


def revoke(session: Session, caller: Caller, key_id: str) -> ApiKey:
    """Ends a key; revoking it again changes nothing.

    Raises:
        KeyNotFound: The tenant has no such key.
    """
    row = KeyRepository.from_session(session).get(caller.tenant_id, key_id)
    if row is None:
        raise KeyNotFound(key_id)
    if row.revoked_at is None:
        row.revoked_at = utc_now()
    return row


def authenticate(session: Session, secret: str) -> ApiKey:
    """The key with this secret.

    Raises:
        Unauthenticated: There is none, or it is revoked or expired.
    """
    row = KeyRepository.from_session(session).by_secret(hash_secret(secret))
    if row is None:
        raise Unauthenticated("The key is not known here.")
    if row.revoked_at is not None:
        raise Unauthenticated(f"The key {row.prefix}... was revoked.")
    if row.expires_at is not None and row.expires_at <= utc_now():
        raise Unauthenticated(f"The key {row.prefix}... has expired.")
    return row


def still_holds(session: Session, caller: Caller) -> bool:
    """Whether the caller's key is neither revoked nor expired by now."""
    row = KeyRepository.from_session(session).get(caller.tenant_id, caller.key_id)
    return (
        row is not None
        and row.revoked_at is None
        and (row.expires_at is None or row.expires_at > utc_now())
    )


def use_is_due(row: ApiKey) -> bool:
    """Whether a use of the key has to be noted: at most once a minute."""
    return row.last_used_at is None or row.last_used_at < utc_now() - _USE_IS_NOTED_EVERY


def note_use(session: Session, key_id: str) -> None:
    """Notes that the key is used now, unless somebody did a moment ago."""
    now = utc_now()
    KeyRepository.from_session(session).touch(
        key_id, now=now, unless_since=now - _USE_IS_NOTED_EVERY
    )


def hash_secret(secret: str) -> str:
    """What is stored of a secret. It has 256 random bits, so a plain hash cannot be searched."""
    return hashlib.sha256(secret.encode()).hexdigest()
