"""What a job can name, over HTTP."""

import httpx
import pytest

from sanitizer.catalog import ARCHITECTURES, ATTACKS, METHODS
from sanitizer.spec import METHOD_ADAPTER
from tests.service.problem_documents import code_and_pointers


def test_methods_come_with_schema_and_defaults_that_make_a_request(client: httpx.Client) -> None:
    body = client.get("/v1/methods").json()
    assert (body["object"], body["has_more"], body["next_cursor"]) == ("list", False, None)
    names = [
        "finetune",
        "nad",
        "argd",
        "fine_pruning",
        "anp",
        "clp",
        "ft_sam",
        "fst",
        "i_bau",
        "mcr",
        "auto",
    ]
    assert [method["name"] for method in body["data"]] == names
    for method, entry in zip(body["data"], METHODS, strict=True):
        assert method == {
            "object": "method",
            "name": entry.name,
            "description": entry.description,
            "presets": list(entry.presets),
            "defaults": method["defaults"],
            "json_schema": entry.json_schema(),
        }
        assert METHOD_ADAPTER.validate_python(method["defaults"]) == entry.config()


def test_attacks_come_with_schema(client: httpx.Client) -> None:
    data = client.get("/v1/attacks").json()["data"]
    assert [attack["name"] for attack in data] == [
        "patch",
        "blend",
        "sinusoid",
        "image_mask",
        "warp",
        "reflection",
        "input_aware",
    ]
    assert [attack["json_schema"] for attack in data] == [a.json_schema() for a in ATTACKS]


def test_architectures_come_with_their_input_size(client: httpx.Client) -> None:
    data = client.get("/v1/architectures").json()["data"]
    assert data == [
        {
            "object": "architecture",
            "name": entry.name,
            "family": entry.family,
            "description": entry.description,
            "input_size": list(entry.input_size),
        }
        for entry in ARCHITECTURES
    ]
    assert "resnet50" in [entry["name"] for entry in data]


@pytest.mark.parametrize("path", ["/v1/methods", "/v1/attacks", "/v1/architectures"])
def test_catalog_needs_a_key(anonymous: httpx.Client, path: str) -> None:
    assert code_and_pointers(anonymous.get(path)) == (401, "unauthenticated", [])
