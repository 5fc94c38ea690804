"""Brings a database to the newest schema, from a checkout or from an installed package."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import migrations
from service.db.session import make_engine


def upgrade(url: str, revision: str = "head") -> None:
    """Runs the missing migrations, all in one transaction; a second process that does so waits.

    The folder of an SQLite file is made if it is not there.
    """
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    command.upgrade(make_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Takes migrations back down to a revision; `base` is an empty database."""
    command.downgrade(make_config(url), revision)


def is_current(url: str) -> bool:
    """Whether the database has every migration."""
    head = ScriptDirectory.from_config(make_config(url)).get_current_head()
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision() == head
    finally:
        engine.dispose()


def make_config(url: str) -> Config:
    """Alembic's configuration for a database, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    config.attributes["url"] = url
    return config
