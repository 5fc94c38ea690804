"""The OpenAPI document: the contract with every client."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service import openapi
from service.problems import MEDIA_TYPE

SNAPSHOT = Path(__file__).parents[2] / "docs" / "openapi.json"
PUBLIC = {"/healthz", "/readyz", "/metrics", "/problems", "/problems/{slug}"}


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_snapshot_is_the_document(document: dict[str, Any]) -> None:
    # A change of the contract is made on purpose: `make openapi`, then look at the diff.
    assert SNAPSHOT.read_text() == openapi.render(document)


def test_document_is_served(anonymous: httpx.Client, document: dict[str, Any]) -> None:
    assert anonymous.get("/openapi.json").json() == document


def test_every_operation_has_id_summary_description_and_tag(document: dict[str, Any]) -> None:
    found = operations(document)
    ids = [operation["operationId"] for _, _, operation in found]
    assert len(ids) == len(set(ids)) == 34
    for _, _, operation in found:
        assert operation["summary"]
        assert operation["description"]
        assert len(operation["tags"]) == 1
    tags = {tag["name"] for tag in document["tags"]}
    assert {operation["tags"][0] for _, _, operation in found} == tags


def test_every_operation_declares_its_problems(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        declared = {
            status
            for status, response in operation["responses"].items()
            if MEDIA_TYPE in response.get("content", {})
        }
        assert {"422", "500"} <= declared
        assert ({"401", "403"} <= declared) == (path not in PUBLIC)
        if "{" in path:
            assert "404" in declared


def test_every_operation_with_a_body_declares_what_a_body_can_be_refused_for(
    document: dict[str, Any],
) -> None:
    for _, _, operation in operations(document):
        if "requestBody" in operation:
            assert {"400", "413", "415"} <= set(operation["responses"])


def test_what_an_operation_declares_of_its_own_does_not_hide_what_all_answer(
    document: dict[str, Any],
) -> None:
    for _, _, operation in operations(document):
        assert "`invalid_request`" in operation["responses"]["422"]["description"]


def test_headers_that_clients_need_are_declared(document: dict[str, Any]) -> None:
    def of(path: str, method: str, status: str) -> set[str]:
        return set(document["paths"][path][method]["responses"][status].get("headers", {}))

    assert of("/v1/jobs", "post", "202") == {"Location", "Idempotency-Replayed"}
    assert of("/v1/jobs", "post", "401") == {"WWW-Authenticate"}
    assert of("/v1/jobs", "post", "429") == of("/v1/jobs", "post", "503") == {"Retry-After"}
    file = "/v1/models/{model_id}/file"
    assert of(file, "get", "200") == {"ETag", "Accept-Ranges", "Content-Disposition"}
    assert of(file, "get", "206") == of(file, "get", "200") | {"Content-Range"}
    assert of(file, "get", "416") == {"Content-Range"}
    taken = {each["name"] for each in document["paths"][file]["get"]["parameters"]}
    assert taken == {"model_id", "Range", "If-Range", "If-None-Match"}


def test_codes_are_listed_but_a_client_need_not_refuse_others(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    for name, known in (
        ("JobError", "class_mismatch"),
        ("JobWarning", "preparation_suspected"),
        ("Problem", "model_not_found"),
    ):
        code = schemas[name]["properties"]["code"]
        assert known in code["x-extensible-enum"]
        assert "enum" not in code


def test_every_operation_but_the_public_ones_needs_a_key(document: dict[str, Any]) -> None:
    unsecured = {path for path, _, operation in operations(document) if "security" not in operation}
    assert unsecured == PUBLIC
    assert document["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"


def test_every_creating_operation_takes_an_idempotency_key(document: dict[str, Any]) -> None:
    taking = {
        operation["operationId"]
        for _, _, operation in operations(document)
        if "idempotency-key" in [p["name"].lower() for p in operation.get("parameters", [])]
    }
    assert taking == {
        "create_model",
        "create_dataset",
        "create_dataset_reference",
        "create_job",
        "retry_job",
        "create_key",
    }


def test_uploads_declare_their_form(document: dict[str, Any]) -> None:
    body = document["paths"]["/v1/models"]["post"]["requestBody"]["content"]
    assert body == {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/ModelUpload"}}}
    form = document["components"]["schemas"]["ModelUpload"]
    assert form["required"] == ["file"]
    assert form["properties"]["file"]["format"] == "binary"
    assert sorted(form["properties"]) == [
        "architecture",
        "file",
        "input_size",
        "mean",
        "metadata",
        "name",
        "sha256",
        "std",
    ]


def test_printed_document_does_not_depend_on_the_environment(tmp_path: Path) -> None:
    printed = subprocess.run(
        [sys.executable, "-m", "service.openapi"],
        env={"SANITIZER_DATABASE_URL": "sqlite:///elsewhere.db", "PYTHONPATH": str(Path.cwd())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout == SNAPSHOT.read_text()
    assert list(tmp_path.iterdir()) == []


def test_typed_client_is_generated_without_a_warning_and_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [
        str(Path(sys.executable).with_name("openapi-python-client")),
        "generate",
        *("--path", str(SNAPSHOT)),
        *("--meta", "none"),
        *("--output-path", str(tmp_path / "generated_client")),
        "--fail-on-warning",
    ]
    # The generator formats what it makes with the ruff beside it.
    environment = {"PATH": str(Path(sys.executable).parent)}
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, "")
    assert "warning" not in made.stdout.lower()
    monkeypatch.syspath_prepend(tmp_path)
    for operation in operations(json.loads(SNAPSHOT.read_text())):
        tag, name = operation[2]["tags"][0], operation[2]["operationId"]
        module = importlib.import_module(f"generated_client.api.{tag}.{name}")
        assert callable(module.sync_detailed)
