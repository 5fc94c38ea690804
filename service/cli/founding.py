"""The first things in a database: its tables, a tenant, a key. Directly, with no server."""

from sqlalchemy import select
from sqlalchemy.exc import OperationalError, ProgrammingError

from service.cli.failures import CommandFailed
from service.db import migrate
from service.db.session import for_writing, transaction
from service.db.tables import ApiKey, Scope
from service.keys import service as keys
from service.settings import Settings


def make_admin_key(settings: Settings, tenant: str, name: str) -> str:
    """Makes a key with every scope, and its tenant if there is none; returns the secret.

    Raises:
        CommandFailed: The database does not answer, or has no tables.
    """
    try:
        with transaction(for_writing(settings.sessions)) as session:
            _, secret = keys.create_key(
                session, keys.ensure_tenant(session, tenant), name, [Scope.ADMIN]
            )
    except (OperationalError, ProgrammingError) as error:
        raise CommandFailed(
            f"The database cannot be used: {error.orig}.",
            hint="Is SANITIZER_DATABASE_URL right, and has `sanitizer migrate` run?",
        ) from error
    return secret


def has_keys(settings: Settings) -> bool:
    """Whether anybody was given a key yet."""
    with transaction(settings.sessions) as session:
        return session.scalar(select(ApiKey.id).limit(1)) is not None


def upgrade(settings: Settings) -> None:
    """Brings the tables up to date.

    Raises:
        CommandFailed: The database does not answer.
    """
    try:
        migrate.upgrade(settings.database_url.get_secret_value())
    except OperationalError as error:
        raise CommandFailed(f"The database cannot be used: {error.orig}.") from error
