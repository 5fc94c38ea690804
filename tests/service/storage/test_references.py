"""References cannot leave the folders an operator allows."""

from pathlib import Path

import pytest

from service.storage.references import ReferenceRefused, resolve


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "digits" / "0").mkdir(parents=True)
    (root / "train set.parquet").write_bytes(b"PAR1")
    (tmp_path / "secret").write_bytes(b"secret")
    return root


def test_file_in_a_root_is_found(root: Path) -> None:
    assert resolve(f"file://{root}/train%20set.parquet", [root]) == root / "train set.parquet"


def test_folder_in_a_root_is_found(root: Path) -> None:
    assert resolve(f"file://localhost{root}/digits", [root]) == root / "digits"


@pytest.mark.parametrize("path", ["/../secret", "/%2e%2e/secret", "/link", "/digits/../../secret"])
def test_path_that_leaves_the_root_is_refused(root: Path, path: str) -> None:
    (root / "link").symlink_to(root.parent / "secret")
    with pytest.raises(ReferenceRefused, match="outside the folders"):
        resolve(f"file://{root}{path}", [root])


@pytest.mark.parametrize("target", ["secret", "root/train set.parquet"])
def test_folder_with_a_link_is_refused_wherever_it_leads(root: Path, target: str) -> None:
    """As the run would refuse it."""
    (root / "digits" / "0" / "a.png").symlink_to(root.parent / target)
    with pytest.raises(ReferenceRefused, match=r"'0/a\.png' in it is a link"):
        resolve(f"file://{root}/digits", [root])


def test_link_that_stays_inside_the_roots_is_followed(root: Path) -> None:
    (root / "link").symlink_to(root / "train set.parquet")
    assert resolve(f"file://{root}/link", [root]) == root / "train set.parquet"


def test_root_with_a_longer_name_is_another_root(root: Path) -> None:
    (root.parent / "root2").mkdir()
    with pytest.raises(ReferenceRefused, match="outside"):
        resolve(f"file://{root}2", [root])


def test_missing_file_is_refused(root: Path) -> None:
    with pytest.raises(ReferenceRefused, match="no file or folder"):
        resolve(f"file://{root}/missing", [root])


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "http://host/x",
        "file://host/etc",
        "file:relative",
        "file:///a?b",
        "file:///a%00",
    ],
)
def test_what_is_no_local_path_is_refused(root: Path, uri: str) -> None:
    with pytest.raises(ReferenceRefused, match="expected"):
        resolve(uri, [root])


def test_no_roots_means_no_references(root: Path) -> None:
    with pytest.raises(ReferenceRefused, match="takes no references"):
        resolve(f"file://{root}/digits", [])
