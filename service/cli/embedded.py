"""The embedded default over one folder: settings, a lock, the first key."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr

from service.cli import founding
from service.cli.failures import CommandFailed
from service.settings import Settings

TENANT = "default"


class FolderInUse(CommandFailed):
    """Another stack runs over the same folder."""


def embedded_settings(folder: Path, **changes: object) -> Settings:
    """SQLite and files in a folder; everything else as the environment says."""
    folder = folder.resolve()
    return Settings.model_validate(
        {
            "database_url": SecretStr(f"sqlite:///{folder / 'sanitizer.db'}"),
            "storage_url": f"file:{folder / 'store'}",
            "work_dir": folder / "work",
            "log_json": True,
        }
        | changes
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder, made if it is not there, for this process alone.

    The lock goes with the process, however it ends.

    Raises:
        FolderInUse: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / "up.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise FolderInUse(
                f"Another `sanitizer up` (process {file.read().strip() or 'unknown'}) runs over "
                f"{folder}.",
                hint="Stop that one, or give another folder with --data-dir.",
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def first_key(settings: Settings) -> str | None:
    """An admin key of the tenant `default`, where nobody was given a key yet."""
    if founding.has_keys(settings):
        return None
    return founding.make_admin_key(settings, TENANT, "made by sanitizer up")
