import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from scripts.image_sbom import Image, main, make_document, not_in_lock
from scripts.locks import read_lock

ROOT = Path(__file__).parents[2]
SITE = "/opt/venv/lib/python3.13/site-packages"
IMAGE = Image(
    name="sanitizer-service",
    digest=f"sha256:{'ab' * 32}",
    created=datetime(2026, 11, 22, tzinfo=UTC),
    labels={"org.opencontainers.image.version": "0.1.0"},
)


def _distribution(name: str = "Pillow", version: str = "13.0.0", **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "license_expression": "MIT-CMU",
        "license": None,
        "classifiers": [],
        "location": SITE,
        "record_sha256": "cd" * 32,
        "sboms": [],
    } | more


def _inventory(*python: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "os": {"ID": "debian", "VERSION_ID": "13", "PRETTY_NAME": "Debian GNU/Linux 13 (trixie)"},
        "debian": [
            {
                "name": "libssl3t64",
                "version": "3.5.1-1",
                "architecture": "amd64",
                "source": "openssl",
                "source_version": "3.5.1-1",
            }
        ],
        "python": list(python),
        "interpreter": "3.13.7",
    }


def _components(*python: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    document = json.loads(make_document(IMAGE, _inventory(*python)))
    return {component["name"]: component for component in document["components"]}


def test_document_names_the_image_and_all_that_is_in_it() -> None:
    document = json.loads(make_document(IMAGE, _inventory(_distribution())))

    assert document["specVersion"] == "1.6"
    assert document["metadata"]["component"]["version"] == IMAGE.digest
    assert document["metadata"]["timestamp"] == "2026-11-22T00:00:00+00:00"
    names = {component["name"] for component in document["components"]}
    assert names == {"debian", "libssl3t64", "python", "Pillow"}
    (graph,) = (each for each in document["dependencies"] if each["ref"] == "image")
    assert len(graph["dependsOn"]) == 4


def test_same_image_gives_the_same_bytes() -> None:
    inventory = _inventory(_distribution(), _distribution("torch", "2.15.0"))
    turned = inventory | {"python": inventory["python"][::-1]}

    assert make_document(IMAGE, inventory) == make_document(IMAGE, turned)


def test_debian_package_has_the_address_that_advisories_go_by() -> None:
    package = _components()["libssl3t64"]

    assert package["purl"] == "pkg:deb/debian/libssl3t64@3.5.1-1?arch=amd64&distro=debian-13"
    assert {"name": "backdoor-sanitizer:deb:source", "value": "openssl"} in package["properties"]


def test_distribution_has_address_place_and_record() -> None:
    pillow = _components(_distribution())["Pillow"]

    assert pillow["purl"] == "pkg:pypi/pillow@13.0.0"
    assert pillow["evidence"]["occurrences"] == [{"location": SITE}]
    assert pillow["properties"] == [
        {"name": "backdoor-sanitizer:python:record-sha256", "value": "cd" * 32}
    ]


def test_one_distribution_in_two_places_is_there_twice() -> None:
    both = _inventory(_distribution(), _distribution(location="/usr/lib/python3/dist-packages"))

    document = json.loads(make_document(IMAGE, both))

    found = [each for each in document["components"] if each["name"] == "Pillow"]
    assert len({each["bom-ref"] for each in found}) == 2


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"license_expression": "MIT OR Apache-2.0"}, [{"expression": "MIT OR Apache-2.0"}]),
        ({"license_expression": "MIT"}, [{"license": {"id": "MIT"}}]),
        (
            {
                "license_expression": None,
                "classifiers": [
                    "License :: OSI Approved",
                    "License :: OSI Approved :: BSD License",
                    "Topic :: Text",
                ],
            },
            [{"license": {"name": "BSD License"}}],
        ),
        ({"license_expression": None, "license": "Apache 2"}, [{"license": {"name": "Apache 2"}}]),
        ({"license_expression": None, "license": "Copyright\n" * 50}, None),
    ],
    ids=["expression", "one id", "classifiers", "name", "whole text"],
)
def test_licence_is_what_the_project_declares(
    declared: dict[str, Any], expected: list[dict[str, Any]] | None
) -> None:
    pillow = _components(_distribution(**declared))["Pillow"]

    licenses = pillow.get("licenses")
    for each in licenses or ():
        assert each.get("license", each).pop("acknowledgement") == "declared"
    assert licenses == expected


def test_what_is_compiled_in_lies_below_its_distribution() -> None:
    auditwheel = {
        "components": [
            {"name": "pillow", "version": "13.0.0"},
            {"name": "libXau", "version": "1.0.9", "purl": "pkg:rpm/almalinux/libXau@1.0.9"},
            {"name": "odd", "version": "1", "purl": "no address"},
        ]
    }

    pillow = _components(_distribution(sboms=[auditwheel]))["Pillow"]

    inside = {part["name"]: part.get("purl") for part in pillow["components"]}
    assert inside == {"libXau": "pkg:rpm/almalinux/libXau@1.0.9", "odd": None}


@pytest.mark.parametrize(
    "installed",
    [
        _distribution("Torch", "2.15.0+cpu"),
        _distribution("backdoor-sanitizer", "0.1.0"),
        _distribution("pip", "26.0", location="/usr/local/lib/python3.13/site-packages"),
        _distribution("jaraco.text", "4.0", location=f"{SITE}/setuptools/_vendor"),
    ],
    ids=["a build of the locked version", "ourselves", "of the base image", "carried by another"],
)
def test_what_belongs_in_an_image_is_no_stranger(installed: dict[str, Any]) -> None:
    assert not_in_lock([installed], read_lock(ROOT / "requirements/worker.txt")) == []


def test_another_version_than_the_locked_one_is_named() -> None:
    installed = _distribution("torch", "2.14.0")

    strangers = not_in_lock([installed], read_lock(ROOT / "requirements/worker.txt"))

    assert strangers == [f"torch 2.14.0 ({SITE})"]


def test_without_docker_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    lock = str(ROOT / "requirements/service.txt")

    assert main(["sanitizer-service", "--lock", lock, "--out", str(tmp_path / "sbom.json")]) == 2
    assert "docker is not installed here" in capsys.readouterr().err
    assert not (tmp_path / "sbom.json").exists()
