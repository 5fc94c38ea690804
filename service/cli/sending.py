"""Uploads with a bar, checked by their checksum on the other side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.cli.answers import DatasetAnswer, ModelAnswer
from service.cli.failures import WrongUsage
from service.cli.progress import bytes_bar, count_bar
from service.cli.remote import Remote
from service.cli.uploading import images_in, readable_file, sendable, sha256_of, zipped


def send_model(remote: Remote, path: Path, fields: Mapping[str, Any]) -> ModelAnswer:
    """Uploads a file of weights."""
    digest = _checksum(readable_file(path))
    with bytes_bar(f"Uploading {path.name}", path.stat().st_size) as on_bytes:
        return remote.upload_model(path, {**fields, "sha256": digest}, on_bytes)


def send_data(remote: Remote, given: str, fields: Mapping[str, Any]) -> DatasetAnswer:
    """Uploads an archive, or a folder as one; a `file://` URI stays where it is."""
    if given.startswith("file://"):
        return remote.refer_to_dataset({**fields, "uri": given})
    if "://" in given:
        raise WrongUsage(f"{given}: only file:// references are known; give a file or a folder.")
    path = Path(given)
    if not path.is_dir():
        return _send_archive(remote, readable_file(path), fields)
    named = {"name": sendable(path.resolve().name), **fields}
    with (
        count_bar(f"Packing {path}", len(images_in(path))) as on_file,
        zipped(path, on_file) as archive,
    ):
        return _send_archive(remote, archive, named)


def _send_archive(remote: Remote, path: Path, fields: Mapping[str, Any]) -> DatasetAnswer:
    digest = _checksum(path)
    with bytes_bar(f"Uploading {path.name}", path.stat().st_size) as on_bytes:
        return remote.upload_dataset(path, {**fields, "sha256": digest}, on_bytes)


def _checksum(path: Path) -> str:
    with bytes_bar(f"Reading {path.name}", path.stat().st_size) as on_bytes:
        return sha256_of(path, on_bytes)
