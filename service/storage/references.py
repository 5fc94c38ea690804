"""Data that stays where it lies: `file://` references inside the folders an operator allows."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit


class ReferenceRefused(Exception):
    """A reference does not lead to a file or folder inside an allowed root.

    The message says no more than the caller may know: not whether something exists elsewhere.
    """

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(f"The reference {uri} is refused: {reason}.")
        self.uri = uri
        self.reason = reason


def resolve(uri: str, roots: Sequence[Path]) -> Path:
    """The path of a `file://` reference, links followed, which lies inside one of the roots.

    Raises:
        ReferenceRefused: It does not, or is no such reference.
    """
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ReferenceRefused(uri, "expected file:///PATH on this machine")
    if parts.query or parts.fragment:
        raise ReferenceRefused(uri, "expected a path alone; write ? as %3F and # as %23")
    text = unquote(parts.path, errors="surrogateescape")
    if not text.startswith("/") or "\0" in text:
        raise ReferenceRefused(uri, "expected an absolute path")
    if not roots:
        raise ReferenceRefused(uri, "this server takes no references (reference_roots is empty)")
    allowed = [root.resolve() for root in roots]
    path = Path(os.path.realpath(text))
    if not any(path.is_relative_to(root) for root in allowed):
        raise ReferenceRefused(uri, "it lies outside the folders that the operator allows")
    if not (path.is_file() or path.is_dir()):
        raise ReferenceRefused(uri, "there is no file or folder there")
    if path.is_dir():
        _refuse_links(uri, path)
    return path


def _refuse_links(uri: str, folder: Path) -> None:
    """A run follows none, wherever it leads: it may lead elsewhere by then."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            entry = os.path.join(parent, name)
            if os.path.islink(entry):
                raise ReferenceRefused(
                    uri,
                    f"{os.path.relpath(entry, folder)!r} in it is a link, and runs follow none; "
                    "put the file itself there",
                )
