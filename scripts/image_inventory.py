"""Lists what is installed below a folder, as JSON on standard output.

Runs inside an image, `python -I -S - / <image_inventory.py`, with the standard library alone and
nothing of ours installed. It looks at the whole file system: an image holds what its base brought
too, such as the pip beside the interpreter.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

SKIPPED = frozenset({"dev", "proc", "sys"})
"""At the top: they hold no files of the image."""
DEBIAN_FIELDS = ("Package", "Version", "Architecture", "source:Package", "source:Version")


def take_inventory(root: Path) -> dict[str, Any]:
    """Everything that is installed below a folder, as JSON values."""
    return {
        "os": _read_os(root),
        "debian": _list_debian(root),
        "python": _list_distributions(root),
        "interpreter": platform.python_version() if root == Path("/") else None,
    }


def _read_os(root: Path) -> dict[str, str]:
    for name in ("etc/os-release", "usr/lib/os-release"):
        path = root / name
        if path.is_file():
            pairs = (line.partition("=") for line in path.read_text().splitlines() if "=" in line)
            return {key: value.strip().strip('"') for key, _, value in pairs}
    return {}


def _list_debian(root: Path) -> list[dict[str, str]]:
    """Debian packages that are installed; none where there is no dpkg."""
    database = root / "var/lib/dpkg"
    if not (database / "status").is_file():
        return []
    form = "\t".join(f"${{{field}}}" for field in (*DEBIAN_FIELDS, "db:Status-Status")) + "\n"
    asked = subprocess.run(
        ["dpkg-query", "--admindir", str(database), "--show", "--showformat", form],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows = [line.split("\t") for line in asked.stdout.splitlines()]
    names = ("name", "version", "architecture", "source", "source_version")
    return [dict(zip(names, row[:-1], strict=True)) for row in rows if row[-1] == "installed"]


def _list_distributions(root: Path) -> list[dict[str, Any]]:
    """Python distributions in any folder, those that others carry inside them too."""
    found = []
    for folder, names, _ in os.walk(root):
        if Path(folder) == root:
            names[:] = [name for name in names if name not in SKIPPED]
        for name in sorted(names):
            path = Path(folder, name)
            marker = {".dist-info": "METADATA", ".egg-info": "PKG-INFO"}.get(path.suffix)
            if marker and (path / marker).is_file():
                found.append(_describe(path, root))
    return sorted(found, key=lambda each: (each["name"].lower(), each["location"]))


def _describe(path: Path, root: Path) -> dict[str, Any]:
    metadata = PathDistribution(path).metadata
    record = path / "RECORD"
    return {
        "name": metadata["Name"],
        "version": metadata["Version"],
        "license_expression": metadata["License-Expression"],
        "license": metadata["License"],
        "classifiers": metadata.get_all("Classifier") or [],
        "location": str(Path("/") / path.parent.relative_to(root)),
        "record_sha256": (
            hashlib.sha256(record.read_bytes()).hexdigest() if record.is_file() else None
        ),
        # PEP 770: what a wheel has compiled in, by whoever built it.
        "sboms": [
            json.loads(document.read_bytes()) for document in sorted(path.glob("sboms/*.json"))
        ],
    }


if __name__ == "__main__":
    json.dump(take_inventory(Path(sys.argv[1])), sys.stdout)
