"""Log lines: JSON by setting, with what is bound, whoever writes them."""

import json
import subprocess
import sys

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
    first, second, third = (json.loads(line) for line in _lines("json"))
    assert first["timestamp"].endswith("Z")
    assert {key: first[key] for key in ("event", "level", "logger", "job_id", "attempt")} == {
        "event": "job begins",
        "level": "info",
        "logger": "ours",
        "job_id": "job_1",
        "attempt": 1,
    }
    assert (second["event"], second["logger"], second["job_id"]) == ("disk full", "theirs", "job_1")
    assert "ZeroDivisionError" in third["exception"]


def test_lines_for_a_terminal_are_no_json() -> None:
    lines = _lines("plain")
    assert "job begins" in lines[0]
    assert "job_id" in lines[0]
    assert not lines[0].startswith("{")
