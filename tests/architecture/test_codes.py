"""Codes that clients branch on are listed in one place; nobody makes one up elsewhere."""

import ast
from collections.abc import Iterator
from pathlib import Path

from sanitizer.warning_codes import WarningCode
from service.jobs.codes import ERROR_MEANINGS, WARNING_MEANINGS, WorkerCode

ROOT = Path(__file__).parents[2]
SOURCES = [
    ast.parse(path.read_text(encoding="utf-8"))
    for package in ("sanitizer", "service", "worker")
    for path in sorted((ROOT / package).rglob("*.py"))
]
TELLING = {"ErrorEvent", "RunFailed", "WarningEvent", "WarningRecord", "warn", "_own_fault"}
"""What is called with a code, as its first argument or as `code`."""


def codes_given() -> Iterator[ast.expr]:
    for tree in SOURCES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func).rpartition(".")[2]
                named = {word.arg: word.value for word in node.keywords}
                if called in TELLING:
                    yield named["code"] if "code" in named else node.args[0]
                if "error_code" in named:
                    yield named["error_code"]


def test_no_code_of_an_error_or_a_warning_is_made_up_where_it_is_told() -> None:
    given = list(codes_given())
    assert len(given) > len(WarningCode)
    assert [ast.unparse(code) for code in given if isinstance(code, ast.Constant)] == []


def test_every_code_that_is_listed_is_told_somewhere() -> None:
    used = {
        (node.value.id, node.attr)
        for tree in SOURCES
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert {("WarningCode", code.name) for code in WarningCode} <= used
    assert {("WorkerCode", code.name) for code in WorkerCode} <= used


def test_every_code_says_what_it_means_and_stands_for_one_thing() -> None:
    assert all({**ERROR_MEANINGS, **WARNING_MEANINGS}.values())
    assert not set(ERROR_MEANINGS) & set(WARNING_MEANINGS)
