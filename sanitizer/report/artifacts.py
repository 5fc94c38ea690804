"""The files a run leaves in its output folder."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sanitizer.events import Artifact
from sanitizer.report.model import ArtifactKind, Report

MAX_NAME_BYTES = 150


def result_name(filename: str) -> str:
    """What the sanitized file is called: `sanitized-` and the name of the upload, if not too long.

    File systems take 255 bytes, and the file has a longer name while it is written.
    """
    if len(filename.encode()) > MAX_NAME_BYTES:
        suffix = "".join(Path(filename).suffixes[-2:])
        filename = f"model{suffix}" if len(suffix.encode()) < 20 else "model"
    return f"sanitized-{filename}"


def model_artifact(path: Path) -> Artifact:
    """The sanitized model, as it was written."""
    return _artifact(path, ArtifactKind.MODEL, "application/octet-stream")


def write_report(report: Report, pictures: Mapping[str, bytes], out: Path) -> list[Artifact]:
    """Writes `report.json`, `report.html` and the pictures.

    Args:
        pictures: PNGs by file name.
        out: An existing folder.
    """
    from sanitizer.report.render import render_page

    files = {
        "report.json": (
            report.model_dump_json(indent=2).encode(),
            ArtifactKind.REPORT,
            "application/json",
        ),
        "report.html": (
            render_page(report, pictures).encode(),
            ArtifactKind.REPORT_PAGE,
            "text/html; charset=utf-8",
        ),
        **{name: (png, ArtifactKind.PLOT, "image/png") for name, png in pictures.items()},
    }
    artifacts = []
    for name, (content, kind, media_type) in files.items():
        (out / name).write_bytes(content)
        artifacts.append(_artifact(out / name, kind, media_type))
    return artifacts


def _artifact(path: Path, kind: ArtifactKind, media_type: str) -> Artifact:
    return Artifact(
        name=path.name,
        kind=kind,
        media_type=media_type,
        bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
