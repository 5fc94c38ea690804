"""`sanitizer login`."""

import sys
from typing import Annotated

import typer

from service.cli.terminal import say


def login(
    url: Annotated[str, typer.Argument(help="Address of the server: http://127.0.0.1:8000")],
    key: Annotated[
        str | None,
        typer.Option(help="The key; - reads it from standard input. Asked for if left out."),
    ] = None,
) -> None:
    """Remember a server and a key for it, after checking that they work."""
    from service.cli.config import Login, is_loopback, normal_url, save_login
    from service.cli.remote import Remote

    url = normal_url(url)
    if url.startswith("http://") and not is_loopback(url):
        say("Warning: without https anybody on the way can read the key.", style="yellow")
    wanted = Login(url, _read_key(key))
    with Remote(wanted) as remote:
        remote.check_key()
    path = save_login(wanted)
    say(f"Logged in to {url}. Saved in {path}, readable by you alone.", style="green")


def _read_key(given: str | None) -> str:
    from service.cli.failures import WrongUsage

    if given is None:
        given = typer.prompt("Key", hide_input=True, err=True)
    elif given == "-":
        given = sys.stdin.readline()
    key = str(given).strip()
    if not key or not key.isascii() or not key.isprintable():
        raise WrongUsage("No key came, or something that cannot be one.")
    return key
