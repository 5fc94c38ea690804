"""Log lines: JSON by setting, with what is bound, whoever writes them."""

import json
import logging
import subprocess
import sys

import httpx
import pytest

from service.logs import Seldom

PROGRAM = """
import logging, sys, structlog
from service import logs
from service.settings import Settings

logs.configure(Settings(_env_file=None, log_json=sys.argv[1] == "json", log_level="INFO"))
log = structlog.get_logger("ours")
with structlog.contextvars.bound_contextvars(job_id="job_1"):
    log.info("job begins", attempt=1)
    logging.getLogger("theirs").warning("disk %s", "full")
    logging.getLogger("kombu").info("chatter")
    for _ in range(3):
        logging.getLogger("opentelemetry.sdk").warning("nobody answers")
    log.debug("hidden")
    try:
        1 / 0
    except ZeroDivisionError:
        log.exception("failed")
"""


def _lines(form: str) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, form], capture_output=True, text=True, check=True
    )
    assert ran.stdout == ""
    return ran.stderr.splitlines()


def test_json_lines_have_what_is_bound_and_one_line_each() -> None:
    first, second, seldom, third = (json.loads(line) for line in _lines("json"))
    assert first["timestamp"].endswith("Z")
    assert {key: first[key] for key in ("event", "level", "logger", "job_id", "attempt")} == {
        "event": "job begins",
        "level": "info",
        "logger": "ours",
        "job_id": "job_1",
        "attempt": 1,
    }
    assert (second["event"], second["logger"], second["job_id"]) == ("disk full", "theirs", "job_1")
    assert seldom["event"] == "nobody answers"
    assert "ZeroDivisionError" in third["exception"]


def test_lines_for_a_terminal_are_no_json() -> None:
    lines = _lines("plain")
    assert "job begins" in lines[0]
    assert "job_id" in lines[0]
    assert not lines[0].startswith("{")


def test_tenant_is_in_every_line_of_a_request_once_it_is_known(
    capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    # The app takes hold of standard error when it is made, so it is made after `capsys`.
    client: httpx.Client = request.getfixturevalue("client")
    anonymous: httpx.Client = request.getfixturevalue("anonymous")
    assert client.get("/v1/models").status_code == 200
    assert anonymous.get("/v1/models").status_code == 401
    known, unknown = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert known["tenant_id"].startswith("tenant_")
    assert "tenant_id" not in unknown
    assert "trace_id" not in known


def test_seldom_lets_a_level_of_a_logger_through_once_and_others_always() -> None:
    seldom = Seldom("library", 3600)

    def passes(name: str, level: int) -> bool:
        return seldom.filter(logging.LogRecord(name, level, "f", 1, "m", (), None))

    assert [passes("library.export", logging.WARNING) for _ in range(3)] == [True, False, False]
    assert passes("library.export", logging.ERROR)
    assert passes("library", logging.WARNING)
    assert [passes("ours", logging.WARNING) for _ in range(2)] == [True, True]
