"""Which server the command talks to, and with which key."""

import json
import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from service.cli.failures import WrongUsage

URL_VARIABLE = "SANITIZER_URL"
KEY_VARIABLE = "SANITIZER_API_KEY"


class NotLoggedIn(WrongUsage):
    """No server or no key is known."""


@dataclass(frozen=True)
class Login:
    """A server's address and the key for it."""

    url: str
    api_key: str


def login_path() -> Path:
    """Where `sanitizer login` keeps the login, as the XDG base directory specification has it."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "sanitizer" / "login.json"


def save_login(login: Login) -> Path:
    """Writes the login so that its owner alone can read it."""
    path = login_path()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # A new file under another name: the old one may be readable by others.
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"url": login.url, "api_key": login.api_key}, file)
    fresh.replace(path)
    return path


def saved_login() -> Login | None:
    """The login that was saved, if there is one.

    Raises:
        NotLoggedIn: The file is damaged.
    """
    path = login_path()
    try:
        saved = json.loads(path.read_text())
        return Login(str(saved["url"]), str(saved["api_key"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise NotLoggedIn(f"The saved login {path} cannot be read. Log in again.") from error


def find_login() -> Login:
    """The environment's server and key where set, else the saved ones.

    A saved key goes to the server it was saved for and to no other.

    Raises:
        NotLoggedIn: No server is known, or no key for it.
    """
    url, api_key = os.environ.get(URL_VARIABLE), os.environ.get(KEY_VARIABLE)
    saved = None if url and api_key else saved_login()
    if not url:
        url = saved.url if saved else None
    if not url:
        raise NotLoggedIn(
            f"No server is known. Run `sanitizer login URL` once, or set {URL_VARIABLE} and "
            f"{KEY_VARIABLE}. `sanitizer up` starts a server on this machine."
        )
    url = normal_url(url)
    if not api_key:
        api_key = saved.api_key if saved and normal_url(saved.url) == url else None
    if not api_key:
        raise NotLoggedIn(
            f"No key for {url} is known. Run `sanitizer login {url}` once, or set {KEY_VARIABLE}."
        )
    return Login(url, api_key)


def normal_url(url: str) -> str:
    """An address of a server, without a slash at the end.

    Raises:
        WrongUsage: It is no http(s) address.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise WrongUsage(
            f"{url!r} is no address of a server; expected something like http://127.0.0.1:8000."
        )
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether the address is this machine's own."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
