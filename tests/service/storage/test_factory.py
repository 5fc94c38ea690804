"""The store that the settings name."""

from pathlib import Path

import pytest

from service.settings import Settings
from service.storage import ObjectStore
from service.storage.factory import UnknownStore, make_store
from tests.s3 import S3Server


def _make(url: str) -> ObjectStore:
    return make_store(Settings(_env_file=None, storage_url=url))


def test_relative_folder_is_made_below_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _make("file:var/store").ping()
    assert (tmp_path / "var/store").is_dir()


def test_url_with_three_slashes_is_an_absolute_folder(tmp_path: Path) -> None:
    _make(f"file://{tmp_path}/store").ping()
    assert (tmp_path / "store").is_dir()


def test_bucket_is_on_the_server_of_the_settings(s3_server: S3Server) -> None:
    make_store(Settings(_env_file=None, **s3_server.settings())).ping()


@pytest.mark.parametrize("url", ["ftp://somewhere", "file:", "store", "s3:bucket"])
def test_unknown_kind_of_store_is_refused(url: str) -> None:
    with pytest.raises(UnknownStore, match=r"file:FOLDER or s3://BUCKET/PREFIX"):
        _make(url)
