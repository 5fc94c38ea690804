"""README.md is followed by people who have this repository and nothing else."""

import re
from pathlib import Path

from sanitizer import demo

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_file_it_links_to_is_there() -> None:
    files = {link.partition("#")[0] for link in re.findall(r"\]\(([^)#][^)]*)\)", PAGE)}
    local = {name for name in files if not name.startswith("https://")}
    assert local
    assert {name for name in local if not (ROOT / name).exists()} == set()


def test_it_takes_nothing_from_beside_the_repository() -> None:
    assert "../" not in PAGE


def test_files_it_takes_of_the_demo_are_those_that_the_demo_makes() -> None:
    taken = set(re.findall(r"\bdemo/([\w.]+)", PAGE))
    assert taken == {"victim.pth", "clean.zip", "evaluation.zip", "job.json"}
    assert demo.make.__doc__ is not None
    assert all(f"`{name}`" in demo.make.__doc__ for name in taken)
    assert f"-F input_size={demo.SIZE},{demo.SIZE} " in PAGE
