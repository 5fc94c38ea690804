"""What a process has loaded once it has imported a part: heavy packages use the back door."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "numpy", "PIL", "matplotlib", "pyarrow", "sklearn"}


def _loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stdout.split())


@pytest.mark.parametrize("module", ["service.app", "worker.app", "service.cli", "worker.reconcile"])
def test_process_that_only_serves_loads_nothing_heavy(module: str) -> None:
    assert _loaded_by(module) & HEAVY == set()


def test_worker_loads_no_web_framework() -> None:
    assert _loaded_by("worker.app") & {"fastapi", "starlette", "uvicorn"} == set()


def test_contracts_of_the_library_load_nothing_heavy() -> None:
    report = ("report.model", "report.verdict")
    cost = ("cost.estimate", "cost.measured", "cost.profile", "cost.workload")
    names = ("errors", "spec", "catalog", "events", *report, *cost)
    loaded = _loaded_by(", ".join(f"sanitizer.{name}" for name in names))
    assert loaded & (HEAVY | {"sqlalchemy", "celery", "fastapi"}) == set()
