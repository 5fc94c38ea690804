"""Files on their way from the server: resumed, verified, and never half there under their name."""

import hashlib
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.cli.failures import CommandFailed, NoAnswer, Refused, WrongUsage
from service.cli.uploading import OnBytes, sha256_of

Open = Callable[[int], AbstractContextManager[httpx.Response]]
"""Opens the file on the server from a byte on."""

TRIES_WITHOUT_PROGRESS = 4
_CHUNK = 1 << 18


class Damaged(CommandFailed):
    """What arrived is not what the server says the file is."""


@dataclass(frozen=True)
class WantedFile:
    """A file on the server."""

    filename: str
    bytes: int
    sha256: str
    open: Open


def safe_name(filename: str) -> str:
    """A file name without folders, whatever the server says."""
    name = re.split(r"[/\\]", filename)[-1]
    name = "".join(c for c in name if c.isprintable()).strip()
    return name if name.strip(".") else "download"


def destination(output: Path | None, filename: str) -> Path:
    """Where a file goes: into a folder that exists, to a path, or here under its own name."""
    if output is None:
        return Path(safe_name(filename))
    return output / safe_name(filename) if output.is_dir() else output


def download(
    wanted: WantedFile,
    target: Path,
    *,
    force: bool = False,
    on_bytes: OnBytes | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetches a file; what an earlier try left is not fetched again.

    Args:
        wanted: The file.
        target: Where it goes.
        force: Replace what is there.
        on_bytes: Told of the bytes that are there, those of an earlier try included.
        pause: Waits so many seconds between tries.

    Raises:
        Damaged: The checksum differs; what was fetched is removed.
        NoAnswer: The connection broke again and again; what was fetched is kept.
        WrongUsage: There is a file already.
    """
    _refuse_to_replace(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{wanted.sha256[:12]}.part")
    report = on_bytes or (lambda _count: None)
    report(_size(partial))
    failures = 0
    while (before := _size(partial)) < wanted.bytes:
        try:
            _fetch_rest(wanted, partial, report)
        except (NoAnswer, Refused) as failure:
            if isinstance(failure, Refused) and failure.status != httpx.codes.SERVICE_UNAVAILABLE:
                raise
            failures = 0 if _size(partial) > before else failures + 1
            if failures >= TRIES_WITHOUT_PROGRESS:
                failure.hint = "The same command goes on where this one stopped."
                raise
            pause(2.0**failures / 2)
    _verify(wanted, partial)
    _refuse_to_replace(target, force)
    partial.replace(target)
    return target


def _fetch_rest(wanted: WantedFile, partial: Path, report: OnBytes) -> None:
    have = _size(partial)
    with wanted.open(have) as response:
        if have and response.status_code != httpx.codes.PARTIAL_CONTENT:
            report(-have)  # the server sends it from the start
            have = 0
        with partial.open("r+b" if have else "wb") as file:
            file.seek(have)
            for piece in response.iter_bytes(_CHUNK):
                file.write(piece)
                report(len(piece))
    if _size(partial) == have < wanted.bytes:
        raise NoAnswer(f"The server sent nothing of {wanted.filename}.")


def _verify(wanted: WantedFile, partial: Path) -> None:
    digest = sha256_of(partial) if partial.exists() else hashlib.sha256(b"").hexdigest()
    if digest != wanted.sha256:
        partial.unlink(missing_ok=True)
        raise Damaged(
            f"{wanted.filename} arrived damaged: its SHA-256 is {digest}, the server says "
            f"{wanted.sha256}.",
            hint="Nothing was kept; run the command again.",
        )


def _refuse_to_replace(target: Path, force: bool) -> None:
    if target.is_dir():
        raise WrongUsage(f"{target} is a folder.")
    if target.exists() and not force:
        raise WrongUsage(
            f"{target} exists already.", hint="Give another --output, or --force to replace it."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
