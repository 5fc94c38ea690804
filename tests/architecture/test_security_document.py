"""docs/security.md names for each control where it is and what holds it; neither may be made up."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from re import findall

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "security.md"
COLUMNS = ["control", "where", "held by"]


@dataclass(frozen=True)
class Row:
    """One control.

    Attributes:
        where: `path` or `path::name`.
        held_by: Node ids of tests, as pytest has them.
    """

    control: str
    where: tuple[str, ...]
    held_by: tuple[str, ...]


def _rows() -> Iterator[Row]:
    """The rows of every table with the three columns."""
    inside = False
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif cells == COLUMNS:
            inside = True
        elif inside and not cells[0].startswith("---"):
            control, where, held_by = cells
            yield Row(control, _quoted(where), _quoted(held_by))


def _quoted(cell: str) -> tuple[str, ...]:
    return tuple(findall(r"`([^`]+)`", cell))


ROWS = list(_rows())
EACH = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.control[:40])


@cache
def _names(path: Path) -> dict[str, ast.AST]:
    """What a module defines, by dotted name."""
    found: dict[str, ast.AST] = {}

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for statement in body:
            if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found[prefix + statement.name] = statement
                walk(statement.body, f"{prefix}{statement.name}::")
            elif isinstance(statement, ast.Assign):
                found.update(
                    {prefix + t.id: statement for t in statement.targets if isinstance(t, ast.Name)}
                )
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                found[prefix + statement.target.id] = statement

    walk(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def test_document_has_its_controls() -> None:
    assert len(ROWS) >= 50


@EACH
def test_control_is_where_the_document_says(row: Row) -> None:
    assert row.where, f"{row.control}: the document does not say where it is"
    for place in row.where:
        name, _, symbol = place.partition("::")
        assert (ROOT / name).is_file(), f"{row.control}: there is no file {name}"
        if symbol:
            assert symbol in _names(ROOT / name), f"{row.control}: {name} has no {symbol}"


@EACH
def test_control_is_held_by_a_test(row: Row) -> None:
    assert row.held_by, f"{row.control}: no test is named"
    for node in row.held_by:
        name, _, test = node.partition("::")
        assert name.startswith("tests/"), f"{row.control}: {name} is no test"
        assert (ROOT / name).is_file(), f"{row.control}: there is no file {name}"
        assert test.rpartition("::")[2].startswith("test_"), f"{row.control}: {node} is no test"
        found = _names(ROOT / name).get(test)
        assert isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef), (
            f"{row.control}: {name} has no test {test}"
        )
        marks = {ast.unparse(decorator) for decorator in found.decorator_list}
        left_out = [mark for mark in marks if findall(r"mark\.(skip|xfail|slow)\b", mark)]
        assert not left_out, f"{row.control}: {node} does not run: {left_out}"
