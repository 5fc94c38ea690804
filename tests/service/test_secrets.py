"""Keys and passwords come out nowhere: not in logs, not in errors, not in what is printed."""

import httpx
import pytest
from pydantic import SecretStr

from service.db.base import Base
from service.db.session import SessionFactory, transaction
from service.db.tables import Scope
from service.settings import Settings
from tests.service.conftest import MakeClient, MakeKey

PASSWORD = "correct-horse-battery"


def test_settings_print_no_password() -> None:
    settings = Settings(
        _env_file=None,
        database_url=SecretStr(f"postgresql+psycopg://sanitizer:{PASSWORD}@db/sanitizer"),
        broker_url=SecretStr(f"redis://:{PASSWORD}@broker/0"),
        s3_access_key_id="AKIA",
        s3_secret_access_key=SecretStr(PASSWORD),
    )
    assert PASSWORD not in f"{settings!r} {settings} {settings.model_dump()}"


class TestLog:
    """Everything is logged, and the broker, which has a password, is down."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        broker = SecretStr(f"redis://:{PASSWORD}@127.0.0.1:1/0")
        return settings.model_copy(update={"broker_url": broker, "log_level": "DEBUG"})

    def test_no_key_and_no_password_is_in_it(
        self, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
    ) -> None:
        # The app takes hold of standard error when it is made, so it is made after `capsys`.
        make_client: MakeClient = request.getfixturevalue("make_client")
        make_key: MakeKey = request.getfixturevalue("make_key")
        secret = make_key("acme", [Scope.ADMIN])
        client, intruder = make_client(secret), make_client("bds_not_a_key_that_is_known")

        made = client.post("/v1/keys", json={"name": "n"}, headers={"Idempotency-Key": "k"}).json()
        answers = [
            client.get("/v1/keys"),
            client.get("/readyz"),
            client.get("/v1/models/nothing"),
            client.post("/v1/jobs", json={"unknown": secret}),
            intruder.get("/v1/keys"),
        ]

        assert [answer.status_code for answer in answers] == [200, 503, 404, 422, 401]
        logged = capsys.readouterr().err
        assert logged.count('"event": "request"') == 1 + len(answers)
        for hidden in (secret, made["secret"], "bds_not_a_key_that_is_known", PASSWORD):
            assert hidden not in logged


def test_no_row_holds_the_secret_of_a_key(client: httpx.Client, sessions: SessionFactory) -> None:
    made = client.post("/v1/keys", json={"name": "n"}, headers={"Idempotency-Key": "k"}).json()

    with transaction(sessions) as session:
        stored = [
            str(session.execute(table.select()).all()) for table in Base.metadata.sorted_tables
        ]

    assert any(made["id"] in rows for rows in stored)
    assert not any(made["secret"] in rows for rows in stored)
