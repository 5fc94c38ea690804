"""Keys over HTTP."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
from fastapi import FastAPI
from sqlalchemy import select

from service.db.session import SessionFactory, transaction
from service.db.tables import ApiKey, IdempotencyRecord, Scope
from service.keys.service import hash_secret
from service.services import Services
from tests.databases import every_database
from tests.service.conftest import MakeClient, MakeKey
from tests.service.problem_documents import code_and_pointers, problem, read_problem
from tests.worker.faulty_database import FaultyDatabase


def test_created_key_is_answered_with_its_secret_once(
    client: httpx.Client, make_client: MakeClient
) -> None:
    expires = datetime.now(UTC) + timedelta(days=1)
    answer = client.post(
        "/v1/keys",
        json={"name": "ci", "scopes": ["read"], "expires_at": expires.isoformat()},
    )
    assert answer.status_code == 201
    body = answer.json()
    secret = body.pop("secret")
    assert secret.startswith("bds_")
    assert body == {
        "object": "api_key",
        "id": body["id"],
        "name": "ci",
        "prefix": secret[:12],
        "scopes": ["read"],
        "created_at": body["created_at"],
        "expires_at": expires.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "last_used_at": None,
        "revoked_at": None,
    }
    assert body in client.get("/v1/keys").json()["data"]
    assert make_client(secret).get("/v1/models").status_code == 200


def test_secret_is_stored_as_a_hash_alone(client: httpx.Client, sessions: SessionFactory) -> None:
    headers = {"Idempotency-Key": "once"}
    created = client.post("/v1/keys", json={"name": "ci"}, headers=headers).json()
    with transaction(sessions) as session:
        row = session.get_one(ApiKey, created["id"])
        record = session.scalars(select(IdempotencyRecord)).one()
    assert row.secret_sha256 == hash_secret(created["secret"])
    assert created["secret"] not in str(record.body)
    assert "secret" not in (record.body or {})


def test_repeated_request_names_the_key_but_does_not_repeat_the_secret(
    client: httpx.Client,
) -> None:
    headers = {"Idempotency-Key": "once"}
    created = client.post("/v1/keys", json={"name": "ci"}, headers=headers).json()
    again = client.post("/v1/keys", json={"name": "ci"}, headers=headers)
    assert read_problem(again) == problem(
        "secret_not_repeated",
        409,
        instance="/v1/keys",
        title="The secret is not shown again",
        detail=f"The key {created['id']} was made by an earlier request; its secret is not stored.",
        key_id=created["id"],
    )
    assert len(client.get("/v1/keys").json()["data"]) == 2


def test_revoked_key_works_no_more(client: httpx.Client, make_client: MakeClient) -> None:
    created = client.post("/v1/keys", json={"name": "ci"}).json()
    assert client.delete(f"/v1/keys/{created['id']}").status_code == 204
    assert client.delete(f"/v1/keys/{created['id']}").status_code == 204
    refused = make_client(created["secret"]).get("/v1/models")
    assert read_problem(refused) == problem(
        "unauthenticated",
        401,
        instance="/v1/models",
        title="A valid key is needed",
        detail=f"The key {created['prefix']}... was revoked.",
    )


def test_expired_key_works_no_more(
    client: httpx.Client, make_client: MakeClient, sessions: SessionFactory
) -> None:
    created = client.post("/v1/keys", json={"name": "ci"}).json()
    with transaction(sessions) as session:
        row = session.get_one(ApiKey, created["id"])
        row.expires_at = datetime.now(UTC)
    refused = make_client(created["secret"]).get("/v1/models")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == 'Bearer realm="sanitizer"'


def test_expiry_in_the_past_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/keys", json={"name": "x", "expires_at": "2020-01-01T00:00:00Z"})
    assert code_and_pointers(answer) == (422, "invalid_request", ["/expires_at"])


def test_expiry_without_a_zone_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/keys", json={"name": "x", "expires_at": "2099-01-01T00:00:00"})
    assert code_and_pointers(answer) == (422, "invalid_request", ["/expires_at"])


@every_database
def test_strangers_key_is_not_found(client: httpx.Client, stranger: httpx.Client) -> None:
    created = client.post("/v1/keys", json={"name": "ci"}).json()
    answer = stranger.delete(f"/v1/keys/{created['id']}")
    assert code_and_pointers(answer) == (404, "key_not_found", [])
    assert created["id"] not in [k["id"] for k in stranger.get("/v1/keys").json()["data"]]


@every_database
def test_id_with_a_nul_is_not_found(client: httpx.Client) -> None:
    assert client.delete("/v1/keys/key_%00").status_code == 404


def test_key_without_the_admin_scope_may_not_manage_keys(
    make_client: MakeClient, make_key: MakeKey
) -> None:
    writer = make_client(make_key("acme", [Scope.WRITE]))
    refused = writer.get("/v1/keys")
    assert read_problem(refused) == problem(
        "forbidden",
        403,
        instance="/v1/keys",
        title="The key may not do this",
        detail="This needs a key with the scope admin; yours has read, write.",
        needed_scope="admin",
    )


def test_reading_key_may_not_write(make_client: MakeClient, make_key: MakeKey) -> None:
    reader = make_client(make_key("acme", [Scope.READ]))
    assert reader.get("/v1/models").status_code == 200
    assert reader.delete("/v1/models/model_x").status_code == 403


def test_request_without_a_key_is_told_how_to_send_one(anonymous: httpx.Client) -> None:
    refused = anonymous.get("/v1/models")
    assert refused.headers["www-authenticate"] == 'Bearer realm="sanitizer"'
    assert read_problem(refused) == problem(
        "unauthenticated",
        401,
        instance="/v1/models",
        title="A valid key is needed",
        detail="No key came. Send it as `Authorization: Bearer bds_...`.",
    )


def test_unknown_key_is_refused(make_client: MakeClient) -> None:
    assert make_client("bds_unknown").get("/v1/models").status_code == 401


@every_database
def test_use_of_a_key_is_noted_at_most_once_a_minute(
    make_client: MakeClient, make_key: MakeKey, sessions: SessionFactory
) -> None:
    reader = make_client(make_key("acme", [Scope.READ]))

    def last_used() -> datetime | None:
        with transaction(sessions) as session:
            return session.scalars(select(ApiKey)).one().last_used_at

    reader.get("/v1/models")
    first = last_used()
    assert first is not None
    reader.get("/v1/models")
    assert last_used() == first
    with transaction(sessions) as session:
        session.scalars(select(ApiKey)).one().last_used_at = first - timedelta(seconds=61)
    reader.get("/v1/models")
    assert (last_used() or first) >= first


def test_key_is_good_while_its_use_cannot_be_noted(
    app: FastAPI, make_client: MakeClient, make_key: MakeKey
) -> None:
    services: Services = app.state.services
    database = FaultyDatabase(services.write_sessions)
    database.cut()
    app.state.services = replace(services, write_sessions=database.sessions)
    reader = make_client(make_key("acme", [Scope.READ]))
    assert reader.get("/v1/models").status_code == 200
    assert database.refused == 1


def test_keys_are_listed_in_pages_newest_first(client: httpx.Client) -> None:
    made = [client.post("/v1/keys", json={"name": f"k{i}"}).json()["id"] for i in range(3)]
    first = client.get("/v1/keys", params={"limit": 2}).json()
    assert [key["id"] for key in first["data"]] == [made[2], made[1]]
    assert first["has_more"] is True
    second = client.get("/v1/keys", params={"limit": 2, "after": first["next_cursor"]}).json()
    assert second["data"][0]["id"] == made[0]
    assert (second["has_more"], second["next_cursor"]) == (False, None)
