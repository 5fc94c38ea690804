"""Logs: JSON lines, or lines for a terminal, on standard error; the same for service and worker."""

import logging
import sys
import time

import structlog
from structlog.typing import Processor

from service.settings import Settings

_QUIET = ("kombu", "amqp", "redis", "asyncio", "httpx", "httpcore", "alembic", "urllib3")
"""Libraries that say at INFO what is of interest to their authors."""
_SELDOM = "opentelemetry"
"""Without its collector it says so with every delivery, or every span."""
SELDOM_SECONDS = 60.0


def configure(settings: Settings) -> None:
    """Sends every log line of this process, structlog's and the standard library's, one way.

    Fields bound with `structlog.contextvars` (request, job, attempt, tenant) are in every line.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    render: list[Processor]
    if settings.log_json:
        render = [
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        render = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    handler = logging.StreamHandler()
    handler.addFilter(Seldom(_SELDOM, SELDOM_SECONDS))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    # uvicorn gives its loggers handlers of their own; without them their lines come here too, but
    # for those of requests: RequestContext writes one of each, with more in it.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"


class Seldom(logging.Filter):
    """Lets a logger of a library through once in so many seconds at each level; all others always.

    Args:
        library: Its loggers are of this name or below it.
    """

    def __init__(self, library: str, seconds: float) -> None:
        super().__init__(library)
        self._seconds = seconds
        self._silent_until: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if not super().filter(record):
            return True
        now = time.monotonic()
        key = (record.name, record.levelno)
        if now < self._silent_until.get(key, 0.0):
            return False
        self._silent_until[key] = now + self._seconds
        return True
