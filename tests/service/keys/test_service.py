"""Keys: made, checked."""

import pytest

from service.db.session import SessionFactory, transaction
from service.db.tables import Scope
from service.errors import InvalidRequest, Unauthenticated
from service.keys.service import (
    Caller,
    authenticate,
    create_key,
    ensure_tenant,
    grant,
    with_included,
)


def test_key_cannot_grant_what_it_lacks(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        tenant = ensure_tenant(session, "acme")
        caller = Caller(tenant.id, "key_x", with_included([Scope.WRITE]))
        with pytest.raises(InvalidRequest, match="A key cannot grant what it lacks: admin"):
            grant(session, caller, "x", [Scope.ADMIN], None)
        row, _ = grant(session, caller, "x", [Scope.WRITE, Scope.READ], None)
        assert row.scopes == ["read", "write"]


def test_tenant_is_made_once(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        first = ensure_tenant(session, "acme")
    with transaction(sessions) as session:
        assert ensure_tenant(session, "acme").id == first.id


def test_secret_opens_its_own_key_alone(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        tenant = ensure_tenant(session, "acme")
        row, secret = create_key(session, tenant, "a", [Scope.READ])
        create_key(session, tenant, "b", [Scope.READ])
        assert authenticate(session, secret).id == row.id
        with pytest.raises(Unauthenticated):
            authenticate(session, secret[:-1])


def test_secrets_have_256_random_bits(sessions: SessionFactory) -> None:
    with transaction(sessions) as session:
        tenant = ensure_tenant(session, "acme")
        secrets = {create_key(session, tenant, "a", [Scope.READ])[1] for _ in range(20)}
    assert len(secrets) == 20
    assert {len(secret) for secret in secrets} == {len("bds_") + 43}
