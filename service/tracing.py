"""Traces by OpenTelemetry, where a setting asks for them.

Without the setting nothing of the extra `tracing` is imported: SDK and exporter may be missing.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from service.settings import Settings

if TYPE_CHECKING:
    from service.spans import Spans


class TracingNotInstalled(Exception):
    """Traces are asked for, but what makes them is not there."""

    def __init__(self, missing: str | None) -> None:
        super().__init__(
            "SANITIZER_TRACING_ENDPOINT is set, but OpenTelemetry is not installed"
            f" (no module {missing}). Install the extra `tracing`, as in `pip install"
            ' "backdoor-sanitizer[tracing]"`, or unset it.'
        )
        self.missing = missing


class Tracing(Protocol):
    """What requests do about traces."""

    def traceparent(self) -> str | None:
        """W3C trace context of what is done at this moment; none where nothing is traced."""

    def sending(self, queue: str, job_id: str) -> AbstractContextManager[object]:
        """A span around the sending of a job's message."""

    def close(self) -> None:
        """Delivers what waits, as far as that is possible within a few seconds."""


class NoTracing:
    """Traces nothing."""

    def traceparent(self) -> str | None:
        """See `Tracing`."""
        return None

    def sending(self, queue: str, job_id: str) -> AbstractContextManager[object]:  # noqa: ARG002
        """See `Tracing`."""
        return nullcontext()

    def close(self) -> None:
        """See `Tracing`."""


def make_tracing(
    settings: Settings, service_name: str, *, instance_id: str | None = None
) -> "Spans | NoTracing":
    """Traces as the settings say.

    Args:
        service_name: What the spans of this process say they are of.
        instance_id: Tells it from others of that name; none: a random one.

    Raises:
        TracingNotInstalled: The extra is missing.
    """
    if settings.tracing_endpoint is None:
        return NoTracing()
    try:
        from service.spans import Spans
    except ImportError as error:
        raise TracingNotInstalled(error.name) from error
    return Spans.delivered_to(settings.tracing_endpoint, service_name, instance_id)


def require_installed(settings: Settings) -> None:
    """For processes that make their spans later, but shall not start without.

    Raises:
        TracingNotInstalled: The extra is missing.
    """
    if settings.tracing_endpoint is not None:
        try:
            import service.spans  # noqa: F401
        except ImportError as error:
            raise TracingNotInstalled(error.name) from error
