"""`sanitizer up`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.terminal import result, say

if TYPE_CHECKING:
    from service.cli.stack import Stack


def up(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the API.")] = 8000,
    host: Annotated[str, typer.Option(help="Where the API listens.")] = "127.0.0.1",
    data_dir: Annotated[Path, typer.Option(help="Folder of the database and all files.")] = Path(
        "var"
    ),
) -> None:
    """Run the whole service in this terminal: database, files, broker, API and a worker.

    Ctrl-C stops all of it; the exit code is then 0. The next start goes on with the same data.
    """
    from service.cli import founding
    from service.cli.attending import attend
    from service.cli.embedded import embedded_settings, first_key, locked
    from service.cli.processes import interrupted_by_signals
    from service.cli.stack import Stack

    _warn_about(host)
    try:
        with interrupted_by_signals(), locked(data_dir):
            settings = embedded_settings(data_dir)
            say(f"Starting over {data_dir.resolve()} ...")
            founding.upgrade(settings)
            with Stack(settings, data_dir.resolve(), host=host, port=port) as stack:
                _welcome(stack, first_key(settings))
                try:
                    attend(stack)
                finally:
                    say("Stopping ...")
    except KeyboardInterrupt:
        say("Stopped. The same command goes on with the same data.")


def _warn_about(host: str) -> None:
    from service.cli.config import is_loopback

    if not is_loopback(f"http://{f'[{host}]' if ':' in host else host}"):
        say(
            f"Warning: {host} is open to the network, and the API speaks no TLS: keys and models "
            "can be read on the way. Put a proxy with https before it.",
            style="yellow",
        )


def _welcome(stack: "Stack", key: str | None) -> None:
    result(f"The service runs at {stack.url}")
    result(f"API documentation:  {stack.url}/docs")
    if key is not None:
        result(f"Key (shown this once): {key}")
    _tell_of_login(stack.url, key)
    result("Try next, in another terminal:")
    result("  sanitizer upload MODEL_FILE")
    result("  sanitizer data add IMAGES")
    result("  sanitizer submit --model ID --clean ID --wait")
    result("Logs: " + str(stack.home / "logs"))


def _tell_of_login(url: str, key: str | None) -> None:
    from service.cli.config import Login, NotLoggedIn, save_login, saved_login

    try:
        saved = saved_login()
    except NotLoggedIn as failure:
        say(failure.message, style="yellow")
        return
    if saved is None and key is not None:
        result(f"Logged in with it: saved in {save_login(Login(url, key))}")
    elif saved is None or saved.url != url:
        here = f"The saved login is for {saved.url}. " if saved else "You are not logged in. "
        result(f"{here}For this server: sanitizer login {url}")
