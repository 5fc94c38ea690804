"""The program as it runs in an image: by its text on standard input, without site-packages."""

import json
import shutil
import subprocess
import sys
from hashlib import sha256
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest

from scripts.image_sbom import INVENTORY_PROGRAM

STATUS = """\
Package: libssl3t64
Status: install ok installed
Architecture: amd64
Source: openssl
Version: 3.5.1-1
Maintainer: Debian
Description: library

Package: nano
Status: deinstall ok config-files
Architecture: amd64
Version: 8.4-1
Maintainer: Debian
Description: editor
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small file system, with pillow as it is installed here."""
    site = tmp_path / "opt/venv/lib/python3.13/site-packages"
    shutil.copytree(_pillow(), site / _pillow().name)
    old = site / "ancient.egg-info"
    old.mkdir()
    (old / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: ancient\nVersion: 0.1\n")
    (tmp_path / "proc" / "made.dist-info").mkdir(parents=True)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('ID=debian\nVERSION_ID="13"\n')
    return tmp_path


def _pillow() -> Path:
    (path,) = (f.locate() for f in distribution("pillow").files or () if f.name == "METADATA")
    return Path(str(path)).parent


def _inventory(root: Path) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-", str(root)],
        input=INVENTORY_PROGRAM.read_bytes(),
        capture_output=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()
    inventory: dict[str, Any] = json.loads(ran.stdout)
    return inventory


def test_distributions_are_found_wherever_they_lie(root: Path) -> None:
    ancient, pillow = _inventory(root)["python"]

    assert (ancient["name"], ancient["version"]) == ("ancient", "0.1")
    assert pillow["version"] == distribution("pillow").version
    assert pillow["location"] == "/opt/venv/lib/python3.13/site-packages"
    assert pillow["record_sha256"] == sha256((_pillow() / "RECORD").read_bytes()).hexdigest()


def test_what_a_wheel_has_compiled_in_comes_with_it(root: Path) -> None:
    _, pillow = _inventory(root)["python"]

    carried = {part["name"] for sbom in pillow["sboms"] for part in sbom.get("components", ())}
    assert any("zlib" in name.lower() for name in carried), carried


def test_operating_system_is_named(root: Path) -> None:
    assert _inventory(root)["os"] == {"ID": "debian", "VERSION_ID": "13"}


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="no Debian: dpkg-query is not here")
def test_debian_packages_that_are_installed_are_listed(root: Path) -> None:
    (root / "var/lib/dpkg").mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text(STATUS)

    assert _inventory(root)["debian"] == [
        {
            "name": "libssl3t64",
            "version": "3.5.1-1",
            "architecture": "amd64",
            "source": "openssl",
            "source_version": "3.5.1-1",
        }
    ]


def test_image_without_dpkg_has_no_debian_packages(root: Path) -> None:
    assert _inventory(root)["debian"] == []
