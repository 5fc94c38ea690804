"""Names, sizes and types of the files of a result."""

import hashlib
from pathlib import Path

import pytest

from sanitizer.events import Artifact
from sanitizer.report.artifacts import sha256_of
from sanitizer.report.model import ArtifactKind
from service.settings import Settings
from service.storage import make_store
from tests.reports import make_report
from worker import results
from worker.outcomes import RunFailed, Succeeded
from worker.patience import Patience

CONTENT = make_report().model_dump_json().encode()


def _keep(folder: Path, name: str, *others: Artifact) -> Succeeded:
    """Takes a result whose report has this name."""
    report = Artifact(
        name=name,
        kind=ArtifactKind.REPORT,
        media_type="application/json",
        bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    store = make_store(Settings(_env_file=None, storage_url=f"file:{folder / 'store'}"))
    return results.keep(
        store, "job_1", folder, [report, *others], check=lambda: None, patience=Patience(0, bool)
    )


@pytest.mark.parametrize(
    "name",
    ["a\u00a0b.pt", "\u202eb.pt", "a\\b.pt", "-", " ", "\U000f0000", "\u00e9" * 127 + "x"],
)
def test_name_that_a_file_can_have_is_taken(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CONTENT)
    assert [artifact.name for artifact in _keep(tmp_path, name).artifacts] == [name]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "a\0", "a\nb", "\x85", "\ud800", "\u00e9" * 128]
)
def test_name_that_leads_elsewhere_or_cannot_be_kept_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunFailed, match="a file is named"):
        _keep(tmp_path, name)


def _other(folder: Path, kind: ArtifactKind, size: int) -> Artifact:
    """A file beside the report, of zeros."""
    path = folder / f"{kind}.bin"
    with path.open("wb") as file:
        file.truncate(size)
    return Artifact(
        name=path.name, kind=kind, media_type="text/html", bytes=size, sha256=sha256_of(path)
    )


@pytest.mark.parametrize(
    ("kind", "limit"), [(ArtifactKind.REPORT_PAGE, 64 << 20), (ArtifactKind.PLOT, 16 << 20)]
)
def test_page_or_picture_over_its_limit_is_refused_and_nothing_stays(
    tmp_path: Path, kind: ArtifactKind, limit: int
) -> None:
    (tmp_path / "report.json").write_bytes(CONTENT)
    with pytest.raises(RunFailed, match=f"has more than {limit} bytes"):
        _keep(tmp_path, "report.json", _other(tmp_path, kind, limit + 1))
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_type_of_a_file_follows_from_its_kind_and_not_from_what_the_run_says(
    tmp_path: Path,
) -> None:
    (tmp_path / "report.json").write_bytes(CONTENT)
    others = [_other(tmp_path, kind, 5) for kind in ArtifactKind if kind != ArtifactKind.REPORT]
    kept = _keep(tmp_path, "report.json", *others).artifacts
    assert {artifact.kind: artifact.media_type for artifact in kept} == {
        "model": "application/octet-stream",
        "report": "application/json",
        "report_page": "text/html; charset=utf-8",
        "plot": "image/png",
    }
