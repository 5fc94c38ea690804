"""Writes what an image holds as a CycloneDX 1.6 document: `python -m scripts.image_sbom IMAGE`.

The image is asked by docker, in a container without a network, without capabilities and with a
read-only file system; see `scripts.image_inventory` for what runs in it. The same image gives the
same document, byte for byte: its number and its time are those of the image.
"""

import argparse
import json
import subprocess
import sys
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.component_evidence import ComponentEvidence, Occurrence
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseAcknowledgement
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.locks import LockError, read_lock

INVENTORY_PROGRAM = Path(__file__).with_name("image_inventory.py")
PROPERTY = "backdoor-sanitizer"
"""Begins the names of our own properties, as CycloneDX asks for."""
UNLOCKED_EXPECTED = frozenset({"backdoor-sanitizer", "pip", "setuptools", "wheel"})
"""Ourselves, and what the base image brings."""
MAX_LICENSE_NAME = 100
"""Some projects put the whole text where the name belongs."""


class SbomError(Exception):
    """No document could be made, or it is not one that may be handed out."""


@dataclass(frozen=True)
class Image:
    """What docker says of an image.

    Attributes:
        digest: Its id: SHA-256 of its configuration, which names every layer.
    """

    name: str
    digest: str
    created: datetime
    labels: Mapping[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.image_sbom", description=__doc__)
    parser.add_argument("image", help="name of an image that docker has")
    parser.add_argument("--lock", type=Path, required=True, help="what it was built from")
    parser.add_argument("--out", type=Path, required=True, help="where the document goes")
    options = parser.parse_args(arguments)
    try:
        inventory = ask(options.image)
        document = make_document(inspect(options.image), inventory)
        strangers = not_in_lock(inventory["python"], read_lock(options.lock))
    except (SbomError, LockError) as error:
        print(error, file=sys.stderr)  # noqa: T201  # to a person at a terminal
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(document, encoding="utf-8")
    debian, python = len(inventory["debian"]), len(inventory["python"])
    print(f"{options.out}: {debian} Debian packages, {python} Python distributions")  # noqa: T201
    if strangers:
        print(  # noqa: T201
            f"Not as {options.lock} has it: {', '.join(strangers)}. Build the image anew from the "
            "lock.",
            file=sys.stderr,
        )
        return 1
    return 0


# --- What docker says ----------------------------------------------------------------------------


def inspect(name: str) -> Image:
    """What docker says of an image.

    Raises:
        SbomError: It has none of this name, or does not answer.
    """
    (found,) = json.loads(_docker(["image", "inspect", name]))
    return Image(
        name=name,
        digest=found["Id"],
        created=datetime.fromisoformat(found["Created"]),
        labels=found["Config"].get("Labels") or {},
    )


def ask(name: str) -> dict[str, Any]:
    """The inventory of an image, taken inside it.

    Raises:
        SbomError: docker cannot run it, or there is no Python in it.
    """
    # As root, so that no folder is closed to it; it can do nothing with that.
    command = [
        *("run", "--rm", "--interactive", "--network", "none", "--read-only", "--user", "0:0"),
        *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--entrypoint", "python"),
        *(name, "-I", "-S", "-", "/"),
    ]
    inventory: dict[str, Any] = json.loads(_docker(command, INVENTORY_PROGRAM.read_bytes()))
    return inventory


def _docker(arguments: Sequence[str], given: bytes = b"") -> bytes:
    try:
        ran = subprocess.run(
            ["docker", *arguments], input=given, capture_output=True, check=False, timeout=600
        )
    except FileNotFoundError as error:
        raise SbomError(
            "docker is not installed here; an image can only be asked by it."
        ) from error
    if ran.returncode != 0:
        raise SbomError(
            f"docker {arguments[0]} ended with {ran.returncode}: "
            f"{ran.stderr.decode(errors='replace').strip()}"
        )
    return ran.stdout


# --- The lock ------------------------------------------------------------------------------------


def not_in_lock(
    distributions: Iterable[Mapping[str, Any]], locked: Mapping[str, set[Version]]
) -> list[str]:
    """Distributions that the lock does not have, as `name version (where)`."""
    strangers = []
    for each in distributions:
        name, version = canonicalize_name(each["name"]), Version(each["version"])
        carried = "_vendor" in Path(each["location"]).parts
        # `2.9.0+cpu` is a build of the locked 2.9.0.
        known = {version, Version(version.public)} & locked.get(name, set())
        if not known and not carried and name not in UNLOCKED_EXPECTED:
            strangers.append(f"{each['name']} {each['version']} ({each['location']})")
    return strangers


# --- The document --------------------------------------------------------------------------------


def make_document(image: Image, inventory: Mapping[str, Any]) -> str:
    """The document, valid under the strict schema of CycloneDX 1.6.

    Raises:
        SbomError: It is not valid.
    """
    root = Component(
        name=image.name,
        version=image.digest,
        type=ComponentType.CONTAINER,
        bom_ref="image",
        properties=[
            Property(name=f"{PROPERTY}:label:{name}", value=value)
            for name, value in image.labels.items()
        ],
    )
    parts = [
        *_operating_system(inventory["os"]),
        *(_debian(each, inventory["os"]) for each in inventory["debian"]),
        *_interpreter(inventory["interpreter"]),
        *(_distribution(each) for each in inventory["python"]),
    ]
    bom = Bom(
        components=parts,
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, image.digest),
        metadata=BomMetaData(component=root, timestamp=image.created),
    )
    bom.register_dependency(root, parts)
    document = JsonV1Dot6(bom).output_as_string(indent=2)
    fault = JsonStrictValidator(SchemaVersion.V1_6).validate_str(document)
    if fault is not None:
        raise SbomError(f"The document is not valid CycloneDX 1.6: {fault}")
    return document


def _operating_system(found: Mapping[str, str]) -> list[Component]:
    if "ID" not in found:
        return []
    name, version = found["ID"], found.get("VERSION_ID")
    return [
        Component(
            name=name,
            version=version,
            type=ComponentType.OPERATING_SYSTEM,
            bom_ref=f"os:{name}",
            description=found.get("PRETTY_NAME"),
        )
    ]


def _debian(package: Mapping[str, str], system: Mapping[str, str]) -> Component:
    name, version = package["name"], package["version"]
    qualifiers = {"arch": package["architecture"]}
    if "VERSION_ID" in system:
        qualifiers["distro"] = f"{system['ID']}-{system['VERSION_ID']}"
    # Debian's advisories name source packages.
    return Component(
        name=name,
        version=version,
        purl=PackageURL("deb", system.get("ID", "debian"), name, version, qualifiers),
        bom_ref=f"deb:{name}:{package['architecture']}",
        properties=[
            Property(name=f"{PROPERTY}:deb:source", value=package["source"]),
            Property(name=f"{PROPERTY}:deb:source-version", value=package["source_version"]),
        ],
    )


def _interpreter(version: str | None) -> list[Component]:
    if version is None:
        return []
    return [
        Component(
            name="python",
            version=version,
            type=ComponentType.PLATFORM,
            bom_ref="python",
            purl=PackageURL("generic", None, "python", version),
            cpe=f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*",
        )
    ]


def _distribution(found: Mapping[str, Any]) -> Component:
    name, version, location = found["name"], found["version"], found["location"]
    reference = f"python:{name}@{version}:{location}"
    properties = []
    if found["record_sha256"] is not None:
        properties.append(
            Property(name=f"{PROPERTY}:python:record-sha256", value=found["record_sha256"])
        )
    return Component(
        name=name,
        version=version,
        purl=PackageURL("pypi", None, canonicalize_name(name), version),
        bom_ref=reference,
        licenses=_licenses(found),
        evidence=ComponentEvidence(occurrences=[Occurrence(location=location)]),
        properties=properties,
        components=_compiled_in(found["sboms"], reference, own_name=canonicalize_name(name)),
    )


def _licenses(found: Mapping[str, Any]) -> list[License]:
    """What the project says of its licence: an expression, else classifiers, else its name."""
    make = LicenseFactory().make_from_string
    declared = LicenseAcknowledgement.DECLARED
    if found["license_expression"]:
        return [make(found["license_expression"], license_acknowledgement=declared)]
    named = [
        classifier.rpartition(" :: ")[2]
        for classifier in found["classifiers"]
        if classifier.startswith("License :: ") and not classifier.endswith(":: OSI Approved")
    ]
    if named:
        return [DisjunctiveLicense(name=name, acknowledgement=declared) for name in named]
    spelled = (found["license"] or "").strip()
    if spelled and "\n" not in spelled and len(spelled) <= MAX_LICENSE_NAME:
        return [make(spelled, license_acknowledgement=declared)]
    return []


def _compiled_in(
    documents: Iterable[Mapping[str, Any]], reference: str, *, own_name: str
) -> list[Component]:
    """What a wheel says is compiled into it: Rust crates, shared libraries."""
    parts: dict[tuple[str, str], Component] = {}
    for document in documents:
        for found in document.get("components", ()):
            name, version = found["name"], found.get("version", "")
            if canonicalize_name(name) == own_name:
                continue
            parts[name, version] = Component(
                name=name,
                version=version or None,
                bom_ref=f"{reference}/{name}@{version}",
                purl=_purl(found.get("purl")),
            )
    return list(parts.values())


def _purl(text: str | None) -> PackageURL | None:
    if text is None:
        return None
    try:
        return PackageURL.from_string(text)
    except ValueError:
        return None  # somebody else's spelling: the name and the version stay


if __name__ == "__main__":
    sys.exit(main())
