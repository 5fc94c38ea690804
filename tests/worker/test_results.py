"""Names of the files of a result."""

import hashlib
from pathlib import Path

import pytest

from sanitizer.events import Artifact
from sanitizer.report.model import ArtifactKind
from service.settings import Settings
from service.storage import make_store
from tests.reports import make_report
from worker import results
from worker.outcomes import RunFailed, Succeeded
from worker.patience import Patience

CONTENT = make_report().model_dump_json().encode()


def _keep(folder: Path, name: str) -> Succeeded:
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
        store, "job_1", folder, [report], check=lambda: None, patience=Patience(0, bool)
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
