"""Models over HTTP."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.databases import every_database
from tests.service.problem_documents import code_and_pointers, problem, read_problem

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def upload(client: httpx.Client, content: bytes = CONTENT, **fields: Any) -> httpx.Response:
    """Uploads a model with httpx's own encoder."""
    filename = fields.pop("filename", "model.pth.tar")
    headers = fields.pop("headers", None)
    return client.post(
        "/v1/models", files={"file": (filename, content)}, data=fields, headers=headers
    )


def stored_files(settings: Settings) -> list[Path]:
    """All files in the store."""
    folder = Path(settings.storage_url.removeprefix("file:"))
    return [path for path in folder.rglob("*") if path.is_file()]


def send_raw(client: httpx.Client, body: bytes, boundary: str = "xyz") -> httpx.Response:
    """Sends a body as it is."""
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return client.post("/v1/models", content=body, headers=headers)


@every_database
def test_uploaded_model_is_answered_listed_and_read_back(client: httpx.Client) -> None:
    answer = upload(
        client,
        name="suspect",
        architecture="wrn-16-1",
        input_size="32,32",
        mean="[0.5, 0.25, 0.125]",
        std=["0.5", "0.5", "0.5"],
        metadata=json.dumps({"team": "vision"}),
        sha256=SHA256.upper(),
    )
    assert answer.status_code == 201
    body = answer.json()
    assert body == {
        "object": "model",
        "id": body["id"],
        "name": "suspect",
        "filename": "model.pth.tar",
        "bytes": len(CONTENT),
        "sha256": SHA256,
        "architecture": "wrn-16-1",
        "input_size": [32, 32],
        "mean": [0.5, 0.25, 0.125],
        "std": [0.5, 0.5, 0.5],
        "metadata": {"team": "vision"},
        "source_job_id": None,
        "created_at": body["created_at"],
        "links": {"self": f"/v1/models/{body['id']}", "file": f"/v1/models/{body['id']}/file"},
    }
    assert answer.headers["location"] == f"/v1/models/{body['id']}"
    assert client.get(answer.headers["location"]).json() == body
    assert client.get("/v1/models").json() == {
        "object": "list",
        "data": [body],
        "has_more": False,
        "next_cursor": None,
    }
    assert client.get(f"/v1/models/{body['id']}/file").content == CONTENT


def zipped(*names: str, padding: int = 0) -> bytes:
    """A zip with members of these names, the first one as large as it is told."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr(name, bytes(0 if number else padding))
    return content.getvalue()


FOREIGN = {
    "page": (b"<!DOCTYPE html><html>sign in</html>", "a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
    "onnx": (b"\x08\x07\x12\x07pytorch", "ONNX"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(400), "HDF5"),
    "gguf": (b"GGUF\x03" + bytes(400), "GGUF"),
    "gzip": (b"\x1f\x8b\x08" + bytes(400), "gzip: unpack it first"),
    "tar": (b"model.pth".ljust(257, b"\0") + b"ustar" + bytes(300), "a tar archive"),
    "npy": (b"\x93NUMPY\x01\x00", "a NumPy array"),
    "npz": (zipped("images.npy", "labels.npy"), "no data.pkl, but images.npy, labels.npy"),
    "script": (zipped("m/data/0", "m/data.pkl", "m/code/m.py", "m/constants.pkl"), "TorchScript"),
    "large": (zipped("photos/a.png", padding=3 << 20), "no data.pkl, but photos/a.png"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_surely_no_checkpoint_is_refused_and_not_kept(
    client: httpx.Client, settings: Settings, kind: str
) -> None:
    content, words = FOREIGN[kind]
    answer = upload(client, content)
    assert code_and_pointers(answer) == (422, "unknown_model_format", ["/file"])
    assert words in answer.json()["detail"]
    assert stored_files(settings) == []


@pytest.mark.parametrize(
    "content",
    [zipped("m/data.pkl", "m/version", "m/data/0", padding=3 << 20), b"\x80\x02\x8a\nl\xfc", b"x"],
    ids=["zip", "legacy", "unknown"],
)
def test_what_may_be_a_checkpoint_is_left_to_the_job(client: httpx.Client, content: bytes) -> None:
    assert upload(client, content).status_code == 201


def test_fields_that_are_left_out_get_their_defaults(client: httpx.Client) -> None:
    body = upload(client).json()
    kept = ("name", "architecture", "input_size", "mean", "std", "metadata")
    assert {field: body[field] for field in kept} == {
        "name": "model.pth.tar",
        "architecture": "auto",
        "input_size": None,
        "mean": None,
        "std": None,
        "metadata": {},
    }


def test_fields_may_stand_before_and_behind_the_file(client: httpx.Client) -> None:
    def part(name: str, value: bytes, extra: bytes = b"") -> bytes:
        head = b'--xyz\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
        return head % (name.encode(), extra) + value + b"\r\n"

    body = (
        part("name", b"before")
        + part("file", CONTENT, b'; filename="m.pt"')
        + part("architecture", b"resnet18")
        + b"--xyz--\r\n"
    )
    answer = send_raw(client, body).json()
    assert (answer["name"], answer["architecture"], answer["sha256"]) == (
        "before",
        "resnet18",
        SHA256,
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\models\\net.pt", "net.pt"),
        ("Modell für Zoë.pt", "Modell für Zoë.pt"),
        ("..", "file"),
        ("a" * 300 + ".safetensors", "a" * 138 + ".safetensors"),
    ],
)
def test_file_name_is_kept_for_people_and_made_harmless(
    client: httpx.Client, given: str, kept: str
) -> None:
    assert upload(client, filename=given).json()["filename"] == kept


@pytest.mark.parametrize(
    ("fields", "pointers"),
    [
        ({"colour": "red"}, ["/colour"]),
        ({"input_size": "32"}, ["/input_size/1"]),
        ({"input_size": "32,-1"}, ["/input_size/1"]),
        ({"mean": "0.5,0.5", "std": "0.5"}, [""]),
        ({"mean": "nan"}, ["/mean/0"]),
        ({"mean": "125.3,123.0,113.9", "std": "0.25,0.24,0.26"}, ["/mean"]),
        ({"std": "[0.5"}, ["/std"]),
        ({"metadata": '{"a": 1}'}, ["/metadata/a"]),
        ({"metadata": "a=b"}, ["/metadata"]),
        ({"name": ["a", "b"]}, ["/name"]),
        ({"name": "a\0b"}, ["/name"]),
        ({"sha256": "abc"}, ["/sha256"]),
        ({"architecture": "resnet51"}, ["/architecture"]),
    ],
)
def test_wrong_field_is_refused_by_name_and_nothing_is_stored(
    client: httpx.Client, settings: Settings, fields: dict[str, Any], pointers: list[str]
) -> None:
    answer = upload(client, **fields)
    assert code_and_pointers(answer) == (422, "invalid_request", pointers)
    assert stored_files(settings) == []


def test_a_misspelt_architecture_is_told_what_it_may_be(client: httpx.Client) -> None:
    assert "did you mean resnet50" in upload(client, architecture="resnet51").json()["detail"]


def test_content_that_differs_from_its_checksum_is_refused(
    client: httpx.Client, settings: Settings
) -> None:
    answer = upload(client, sha256="0" * 64)
    assert read_problem(answer) == problem(
        "checksum_mismatch",
        422,
        instance="/v1/models",
        title="The content differs from its checksum",
        detail=f"sha256 says {'0' * 64}, but the content that arrived has {SHA256}.",
        errors=[{"pointer": "/sha256", "detail": "is not that of the file"}],
        expected_sha256="0" * 64,
        received_sha256=SHA256,
    )
    assert stored_files(settings) == []


def test_empty_file_is_refused(client: httpx.Client, settings: Settings) -> None:
    assert code_and_pointers(upload(client, b"")) == (422, "empty_file", [])
    assert stored_files(settings) == []


def test_upload_without_a_file_is_refused(client: httpx.Client) -> None:
    answer = send_raw(
        client, b'--xyz\r\nContent-Disposition: form-data; name="name"\r\n\r\nb\r\n--xyz--'
    )
    assert code_and_pointers(answer) == (422, "invalid_request", ["/file"])


def test_upload_with_two_files_is_refused(client: httpx.Client, settings: Settings) -> None:
    files = [("file", ("a", b"1")), ("file", ("b", b"2"))]
    answer = client.post("/v1/models", files=files)
    assert code_and_pointers(answer) == (422, "invalid_request", ["/file"])
    assert stored_files(settings) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no multipart at all",
        b'--xyz\r\nContent-Disposition: form-data; name="file"\r\n\r\nbreaks off',
        b"--xyz\r\nContent-Type: text/plain\r\n\r\nno name\r\n--xyz--",
    ],
)
def test_body_that_is_no_multipart_is_refused(
    client: httpx.Client, settings: Settings, body: bytes
) -> None:
    assert code_and_pointers(send_raw(client, body)) == (400, "bad_request", [])
    assert stored_files(settings) == []


def test_multipart_without_boundary_is_refused(client: httpx.Client) -> None:
    headers = {"Content-Type": "multipart/form-data"}
    answer = client.post("/v1/models", content=b"x", headers=headers)
    assert code_and_pointers(answer) == (400, "bad_request", [])


def test_other_media_type_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/models", json={})
    assert read_problem(answer) == problem(
        "unsupported_media_type",
        415,
        instance="/v1/models",
        title="The body has the wrong media type",
        detail="The body must be multipart/form-data, not application/json.",
    )


class TestLimits:
    """Uploads where models may have a thousand bytes."""

    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"max_model_bytes": 1000})

    def test_file_over_the_limit_is_refused_with_the_limit(
        self, client: httpx.Client, settings: Settings
    ) -> None:
        answer = upload(client, b"x" * 1001)
        assert read_problem(answer) == problem(
            "content_too_large",
            413,
            instance="/v1/models",
            title="The body is too large",
            detail="At most 1000 bytes are accepted here; more was sent.",
            limit_bytes=1000,
            received_bytes=None,
        )
        assert stored_files(settings) == []

    def test_file_at_the_limit_is_taken(self, client: httpx.Client) -> None:
        assert upload(client, b"x" * 1000).status_code == 201

    def test_fields_have_a_limit_of_their_own(self, client: httpx.Client) -> None:
        answer = upload(client, b"x", metadata="x" * (1 << 20 | 1))
        assert answer.status_code == 413


@every_database
def test_strangers_model_is_not_found(client: httpx.Client, stranger: httpx.Client) -> None:
    model_id = upload(client).json()["id"]
    for answer in (
        stranger.get(f"/v1/models/{model_id}"),
        stranger.get(f"/v1/models/{model_id}/file"),
        stranger.delete(f"/v1/models/{model_id}"),
        client.get("/v1/models/model_%00"),
    ):
        assert code_and_pointers(answer) == (404, "model_not_found", [])
    assert stranger.get("/v1/models").json()["data"] == []


@every_database
def test_models_are_listed_in_pages_newest_first(client: httpx.Client) -> None:
    made = [upload(client, name=f"m{i}").json()["id"] for i in range(5)]
    seen: list[str] = []
    after: dict[str, str] = {}
    sizes = []
    while True:
        page = client.get("/v1/models", params={"limit": 2, **after}).json()
        seen += [model["id"] for model in page["data"]]
        sizes.append(len(page["data"]))
        if not page["has_more"]:
            assert page["next_cursor"] is None
            break
        after = {"after": page["next_cursor"]}
    assert seen == made[::-1]
    assert sizes == [2, 2, 1]


def test_page_size_that_is_too_large_is_coerced(client: httpx.Client) -> None:
    assert client.get("/v1/models", params={"limit": 5000}).status_code == 200


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": "x"}, {"after": "x!"}, {"after": "YQ=="}]
)
def test_wrong_page_is_refused(client: httpx.Client, query: dict[str, Any]) -> None:
    status, code, pointers = code_and_pointers(client.get("/v1/models", params=query))
    assert (status, code, pointers) == (422, "invalid_request", [f"/query/{next(iter(query))}"])


def test_deleted_model_is_gone_with_its_file(client: httpx.Client, settings: Settings) -> None:
    model_id = upload(client).json()["id"]
    assert len(stored_files(settings)) == 1
    answer = client.delete(f"/v1/models/{model_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert stored_files(settings) == []
    assert client.get(f"/v1/models/{model_id}").status_code == 404
    assert client.delete(f"/v1/models/{model_id}").status_code == 404
    assert client.get("/v1/models").json()["data"] == []


def test_file_name_is_offered_in_two_encodings(client: httpx.Client) -> None:
    model_id = upload(client, filename="für.pt").json()["id"]
    answer = client.get(f"/v1/models/{model_id}/file")
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"f_r.pt\"; filename*=UTF-8''f%C3%BCr.pt"
    )
    assert answer.headers["etag"] == f'"{SHA256}"'


def test_file_is_for_its_client_alone_and_never_a_page(client: httpx.Client) -> None:
    file = client.get(f"/v1/models/{upload(client).json()['id']}/file")
    assert file.headers["cache-control"] == "private, no-cache"
    assert file.headers["x-content-type-options"] == "nosniff"
    assert file.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("range_", "status", "content_range", "content"),
    [
        ("bytes=0-9", 206, "bytes 0-9/10240", CONTENT[:10]),
        ("bytes=10200-", 206, "bytes 10200-10239/10240", CONTENT[10200:]),
        ("bytes=-5", 206, "bytes 10235-10239/10240", CONTENT[-5:]),
        ("bytes=10000-99999", 206, "bytes 10000-10239/10240", CONTENT[10000:]),
        ("bytes=-99999", 206, "bytes 0-10239/10240", CONTENT),
        ("bytes=0-1,5-6", 200, None, CONTENT),
        ("lines=1-2", 200, None, CONTENT),
        ("bytes=9-2", 200, None, CONTENT),
    ],
)
def test_range_gives_that_part(
    client: httpx.Client, range_: str, status: int, content_range: str | None, content: bytes
) -> None:
    model_id = upload(client).json()["id"]
    answer = client.get(f"/v1/models/{model_id}/file", headers={"Range": range_})
    assert (answer.status_code, answer.headers.get("content-range")) == (status, content_range)
    assert answer.content == content
    assert answer.headers["content-length"] == str(len(content))


@pytest.mark.parametrize("range_", ["bytes=10240-", "bytes=-0", "bytes=20000-30000"])
def test_range_outside_the_file_is_refused_with_its_size(client: httpx.Client, range_: str) -> None:
    model_id = upload(client).json()["id"]
    answer = client.get(f"/v1/models/{model_id}/file", headers={"Range": range_})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */10240"
    assert read_problem(answer)["file_bytes"] == 10240


def test_range_of_another_version_gives_the_whole_file(client: httpx.Client) -> None:
    model_id = upload(client).json()["id"]
    headers = {"Range": "bytes=0-1", "If-Range": '"other"'}
    answer = client.get(f"/v1/models/{model_id}/file", headers=headers)
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_file_that_the_client_has_is_not_sent_again(client: httpx.Client) -> None:
    model_id = upload(client).json()["id"]
    headers = {"If-None-Match": f'"{SHA256}"'}
    answer = client.get(f"/v1/models/{model_id}/file", headers=headers)
    assert (answer.status_code, answer.content) == (304, b"")


def test_file_that_left_the_store_is_gone(client: httpx.Client, settings: Settings) -> None:
    model_id = upload(client).json()["id"]
    stored_files(settings)[0].unlink()
    answer = client.get(f"/v1/models/{model_id}/file")
    assert code_and_pointers(answer) == (410, "file_gone", [])


class TestIdempotency:
    """Uploads with an idempotency key."""

    @every_database
    def test_same_upload_is_stored_once_and_answered_twice(
        self, client: httpx.Client, settings: Settings
    ) -> None:
        headers = {"Idempotency-Key": "once"}
        first = upload(client, name="a", headers=headers)
        second = upload(client, name="a", headers=headers)
        assert (second.status_code, second.json()) == (201, first.json())
        assert second.headers["location"] == first.headers["location"]
        assert second.headers["idempotency-replayed"] == "true"
        assert len(client.get("/v1/models").json()["data"]) == 1
        assert len(stored_files(settings)) == 1

    @pytest.mark.parametrize("change", [{"content": b"other"}, {"name": "b"}])
    def test_other_upload_with_the_same_key_is_refused(
        self, client: httpx.Client, settings: Settings, change: dict[str, Any]
    ) -> None:
        headers = {"Idempotency-Key": "once"}
        upload(client, headers=headers)
        answer = upload(client, headers=headers, **change)
        assert code_and_pointers(answer) == (
            422,
            "idempotency_key_reused",
            ["/header/Idempotency-Key"],
        )
        assert len(stored_files(settings)) == 1

    def test_failed_upload_leaves_its_key_free(self, client: httpx.Client) -> None:
        headers = {"Idempotency-Key": "once"}
        assert upload(client, b"", headers=headers).status_code == 422
        assert upload(client, headers=headers).status_code == 201

    def test_key_of_another_tenant_is_another_key(
        self, client: httpx.Client, stranger: httpx.Client
    ) -> None:
        headers = {"Idempotency-Key": "once"}
        assert (
            upload(client, headers=headers).json()["id"]
            != (upload(stranger, headers=headers).json()["id"])
        )


# --- Changing ------------------------------------------------------------------------------------


@every_database
def test_what_was_forgotten_at_the_upload_is_given_later(client: httpx.Client) -> None:
    before = upload(client, architecture="wrn-16-1", metadata=json.dumps({"team": "vision"})).json()
    change = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "input_size": [32, 32]}
    answer = client.patch(before["links"]["self"], json=change)
    assert (answer.status_code, answer.json()) == (200, {**before, **change})
    assert client.get(before["links"]["self"]).json() == answer.json()
    assert client.get(before["links"]["file"]).content == CONTENT


def test_null_takes_a_field_back_and_what_is_left_out_stays(client: httpx.Client) -> None:
    before = upload(
        client, name="suspect", architecture="wrn-16-1", mean="0.5,0.5,0.5", std="1,1,1"
    ).json()
    change = {"name": None, "architecture": None, "mean": None, "metadata": {"a": "b"}}
    after = client.patch(before["links"]["self"], json=change).json()
    assert after == {
        **before,
        "name": "model.pth.tar",
        "architecture": "auto",
        "mean": None,
        "metadata": {"a": "b"},
    }
    again = client.patch(before["links"]["self"], json={"metadata": None}).json()
    assert again == {**after, "metadata": {}}
    assert client.patch(before["links"]["self"], json={}).json() == again


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"mean": [0.5, 0.5]}, ""),  # std has three
        ({"std": [0.0, 1.0, 1.0]}, "/std/0"),
        ({"architecture": "resnet_18"}, "/architecture"),
        ({"input_size": [32]}, "/input_size/1"),
        ({"filename": "other.pt"}, "/filename"),
        ({"name": ""}, "/name"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_change_is_checked_as_an_upload_is(
    client: httpx.Client, change: dict[str, Any], pointer: str
) -> None:
    before = upload(client, mean="0.5,0.5,0.5", std="1,1,1").json()
    answer = client.patch(before["links"]["self"], json=change)
    assert code_and_pointers(answer) == (422, "invalid_request", [pointer])
    assert client.get(before["links"]["self"]).json() == before


def test_strangers_model_is_not_changed(client: httpx.Client, stranger: httpx.Client) -> None:
    before = upload(client).json()
    answer = stranger.patch(before["links"]["self"], json={"name": "mine"})
    assert code_and_pointers(answer) == (404, "model_not_found", [])
    assert client.get(before["links"]["self"]).json() == before
