"""Data sets over HTTP."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.settings import Settings
from tests.databases import every_database
from tests.service.problem_documents import code_and_pointers, problem, read_problem


def make_zip() -> bytes:
    """A zip of two class folders (of files that are no images: nothing looks into them here)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("0/a.png", b"a")
        archive.writestr("1/b.png", b"b")
    return buffer.getvalue()


def make_npz() -> bytes:
    """An npz of two tiny images."""
    buffer = io.BytesIO()
    np.savez(buffer, images=np.zeros((2, 4, 4, 3), np.uint8), labels=np.array([0, 1]))
    return buffer.getvalue()


def make_parquet() -> bytes:
    """A parquet file of two rows."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"label": [0, 1]}), buffer)
    return buffer.getvalue()


def upload(client: httpx.Client, content: bytes, **fields: Any) -> httpx.Response:
    """Uploads a data set under a name that says nothing."""
    return client.post("/v1/datasets", files={"file": ("data.bin", content)}, data=fields)


@every_database
def test_uploaded_data_set_is_answered_listed_and_read_back(client: httpx.Client) -> None:
    content = make_zip()
    answer = upload(
        client, content, name="clean", class_names='["0", "1"]', metadata=json.dumps({"a": "b"})
    )
    assert answer.status_code == 201
    body = answer.json()
    assert body == {
        "object": "dataset",
        "id": body["id"],
        "name": "clean",
        "format": "zip",
        "filename": "data.bin",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "reference": None,
        "class_names": ["0", "1"],
        "metadata": {"a": "b"},
        "created_at": body["created_at"],
        "links": {"self": f"/v1/datasets/{body['id']}"},
    }
    assert answer.headers["location"] == body["links"]["self"]
    assert client.get(body["links"]["self"]).json() == body
    assert client.get("/v1/datasets").json()["data"] == [body]


@pytest.mark.parametrize(
    ("content", "format"),
    [(make_zip(), "zip"), (make_npz(), "npz"), (make_parquet(), "parquet")],
    ids=["zip", "npz", "parquet"],
)
def test_format_is_told_by_the_content(client: httpx.Client, content: bytes, format: str) -> None:
    assert upload(client, content).json()["format"] == format


def test_class_names_may_come_in_three_ways(client: httpx.Client) -> None:
    for given in ("cat,dog", '["cat", "dog"]', ["cat", "dog"]):
        assert upload(client, make_zip(), class_names=given).json()["class_names"] == ["cat", "dog"]


def test_other_content_is_refused_and_not_kept(client: httpx.Client, settings: Settings) -> None:
    answer = upload(client, b"<html>not found</html>")
    assert read_problem(answer) == problem(
        "unknown_data_format",
        422,
        instance="/v1/datasets",
        title="The data set has no known format",
        detail="data.bin is neither a zip, an npz nor a parquet file: it starts with the bytes 3c "
        "68 74 6d 6c 3e 6e 6f.",
        errors=[{"pointer": "/file", "detail": "has no known format"}],
    )
    assert "pack a zip instead" in upload(client, b"\x1f\x8b rest").json()["detail"]
    folder = Path(settings.storage_url.removeprefix("file:"))
    assert [path for path in folder.rglob("*") if path.is_file()] == []


@every_database
def test_strangers_data_set_is_not_found(client: httpx.Client, stranger: httpx.Client) -> None:
    path = upload(client, make_zip()).json()["links"]["self"]
    assert code_and_pointers(stranger.get(path)) == (404, "dataset_not_found", [])
    assert code_and_pointers(stranger.delete(path)) == (404, "dataset_not_found", [])
    assert stranger.get("/v1/datasets").json()["data"] == []


def test_deleted_data_set_is_gone_with_its_file(client: httpx.Client, settings: Settings) -> None:
    path = upload(client, make_zip()).json()["links"]["self"]
    assert client.delete(path).status_code == 204
    assert client.get(path).status_code == 404
    assert client.get("/v1/datasets").json()["data"] == []
    folder = Path(settings.storage_url.removeprefix("file:"))
    assert [p for p in folder.rglob("*") if p.is_file()] == []


class TestReferences:
    """Data that stays where it lies."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        root = tmp_path / "open"
        (root / "folder" / "0").mkdir(parents=True)
        (root / "data.parquet").write_bytes(make_parquet())
        return root

    @pytest.fixture
    def settings(self, settings: Settings, root: Path) -> Settings:
        return settings.model_copy(update={"reference_roots": (root,)})

    def refer(self, client: httpx.Client, uri: str, **fields: Any) -> httpx.Response:
        return client.post("/v1/datasets/references", json={"uri": uri, **fields})

    def test_file_in_an_open_folder_is_referred_to(self, client: httpx.Client, root: Path) -> None:
        answer = self.refer(client, f"file://{root}/data.parquet", class_names=["a", "b"])
        assert answer.status_code == 201
        body = answer.json()
        assert body == {
            "object": "dataset",
            "id": body["id"],
            "name": "data.parquet",
            "format": "parquet",
            "filename": None,
            "bytes": None,
            "sha256": None,
            "reference": f"file://{root}/data.parquet",
            "class_names": ["a", "b"],
            "metadata": {},
            "created_at": body["created_at"],
            "links": {"self": f"/v1/datasets/{body['id']}"},
        }
        assert client.get(answer.headers["location"]).json() == body

    def test_folder_is_a_format_of_its_own(self, client: httpx.Client, root: Path) -> None:
        assert self.refer(client, f"file://{root}/folder").json()["format"] == "folder"

    def test_deleting_a_reference_leaves_the_data(self, client: httpx.Client, root: Path) -> None:
        path = self.refer(client, f"file://{root}/folder").json()["links"]["self"]
        assert client.delete(path).status_code == 204
        assert (root / "folder").is_dir()

    @pytest.mark.parametrize(
        "uri",
        [
            "file:///etc/passwd",
            "file://{root}/../secret.parquet",
            "file://{root}/%2e%2e/secret.parquet",
            "file://{root}/link.parquet",
            "file://{root}/missing.parquet",
            "file://elsewhere/{root}/data.parquet",
            "file://{root}/data.parquet?x=1",
            "s3://bucket/data.parquet",
            "{root}/data.parquet",
            "file://[",
            "file:data.parquet",
        ],
    )
    def test_anything_else_is_refused(self, client: httpx.Client, root: Path, uri: str) -> None:
        secret = root.parent / "secret.parquet"
        secret.write_bytes(make_parquet())
        (root / "link.parquet").symlink_to(secret)
        answer = self.refer(client, uri.format(root=root))
        assert code_and_pointers(answer) == (422, "reference_refused", ["/uri"])

    def test_file_of_no_known_format_is_refused(self, client: httpx.Client, root: Path) -> None:
        (root / "notes.txt").write_text("hello")
        answer = self.refer(client, f"file://{root}/notes.txt")
        assert code_and_pointers(answer) == (422, "unknown_data_format", ["/uri"])

    def test_same_request_is_done_once(self, client: httpx.Client, root: Path) -> None:
        body = {"uri": f"file://{root}/folder"}
        headers = {"Idempotency-Key": "once"}
        first, second = (
            client.post("/v1/datasets/references", json=body, headers=headers) for _ in range(2)
        )
        assert second.json() == first.json()
        assert len(client.get("/v1/datasets").json()["data"]) == 1


def test_references_are_off_where_no_folder_is_open(client: httpx.Client) -> None:
    answer = client.post("/v1/datasets/references", json={"uri": "file:///etc/passwd"})
    body = read_problem(answer)
    assert (body["status"], body["code"]) == (422, "reference_refused")
    assert "reference_roots is empty" in body["detail"]


# --- Changing ------------------------------------------------------------------------------------


@every_database
def test_the_order_of_classes_is_given_later(client: httpx.Client) -> None:
    before = upload(client, make_zip(), name="clean").json()
    change = {"class_names": ["1", "0"], "name": None, "metadata": {"a": "b"}}
    answer = client.patch(before["links"]["self"], json=change)
    assert (answer.status_code, answer.json()) == (200, {**before, **change, "name": "data.bin"})
    after = client.patch(before["links"]["self"], json={"class_names": None}).json()
    assert after == {**answer.json(), "class_names": None}
    assert client.get(before["links"]["self"]).json() == after


def test_a_change_of_what_the_images_are_is_refused(client: httpx.Client) -> None:
    before = upload(client, make_zip()).json()
    for change, pointer in (
        ({"format": "npz"}, "/format"),
        ({"class_names": ["0"]}, "/class_names"),
    ):
        answer = client.patch(before["links"]["self"], json=change)
        assert code_and_pointers(answer) == (422, "invalid_request", [pointer])
    assert client.get(before["links"]["self"]).json() == before
