"""The server that a command talks to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.cli.remote import Remote


@contextmanager
def connected() -> "Iterator[Remote]":
    """The server of the environment or of the saved login.

    Raises:
        NotLoggedIn: There is neither.
    """
    from service.cli.config import find_login
    from service.cli.remote import Remote

    with Remote(find_login()) as remote:
        yield remote
