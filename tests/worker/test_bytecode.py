"""What runs import is compiled once, by another Python."""

import os
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from worker.bytecode import compile_by_import


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "slow.py"
    source.write_text("import other_slow\n")
    (tmp_path / "other_slow.py").touch()
    return source


def _import(source: Path) -> str:
    return f"import sys; sys.path.insert(0, {str(source.parent)!r}); import slow"


def test_module_and_what_it_imports_are_compiled(source: Path) -> None:
    thread = compile_by_import(source, _import(source))
    assert thread is not None
    thread.join(60)
    for name in ("slow.py", "other_slow.py"):
        assert Path(cache_from_source(source.with_name(name))).exists()


def test_what_is_compiled_is_left_alone(source: Path) -> None:
    thread = compile_by_import(source, _import(source))
    assert thread is not None
    thread.join(60)
    assert compile_by_import(source, _import(source)) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_nothing_is_begun_where_nothing_can_be_kept(source: Path) -> None:
    source.parent.chmod(0o500)
    assert compile_by_import(source, _import(source)) is None
    source.parent.chmod(0o700)


def test_import_that_fails_is_told(source: Path) -> None:
    with capture_logs() as logs:
        thread = compile_by_import(source, "import slow_that_is_not_there")
        assert thread is not None
        thread.join(60)
    assert "slow_that_is_not_there" in logs[-1]["stderr"]
