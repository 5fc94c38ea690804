"""Spans by OpenTelemetry, delivered by OTLP over HTTP. Imported only where traces are asked for."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.semconv.attributes import service_attributes
from opentelemetry.trace import Span, SpanKind, format_span_id, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service import build_info

DELIVER_MILLISECONDS = 1000
"""Between two deliveries. Most traces end with a job: people look for them right after."""
ANSWER_SECONDS = 5.0
"""How long the collector is asked again for one batch before that is dropped."""
CLOSE_SECONDS = 3.0
"""How long the end of a process waits for the collector."""
MAX_CHARACTERS = 1000
"""Of one attribute; paths come from clients, codes from the child."""

# The conventions for messaging are not stable yet, so the library keeps their names private.
MESSAGING_SYSTEM = "messaging.system"
MESSAGING_DESTINATION_NAME = "messaging.destination.name"
MESSAGING_OPERATION_NAME = "messaging.operation.name"
MESSAGING_OPERATION_TYPE = "messaging.operation.type"
# Ours
JOB_ID = "sanitizer.job.id"
TENANT_ID = "sanitizer.tenant.id"
REQUEST_ID = "sanitizer.request.id"

BROKER = "redis"


class Spans:
    """Makes spans and delivers them in batches, from a thread of its own.

    What the collector does not take in time is dropped: nothing waits for it but `close`.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._w3c = TraceContextTextMapPropagator()
        self.tracer = provider.get_tracer("sanitizer")

    @classmethod
    def delivered_to(cls, endpoint: str, service_name: str, instance_id: str | None = None) -> Self:
        """Spans that go to a collector.

        Args:
            endpoint: Its address, as http://HOST:4318.
            service_name: Goes into all of them, with the version of this project.
            instance_id: As well, if it is given.
        """
        names = {
            service_attributes.SERVICE_NAME: service_name,
            service_attributes.SERVICE_VERSION: build_info.version(),
        }
        if instance_id is not None:
            names[service_attributes.SERVICE_INSTANCE_ID] = instance_id
        provider = TracerProvider(
            resource=Resource.create(names),
            span_limits=SpanLimits(max_attribute_length=MAX_CHARACTERS),
            shutdown_on_exit=False,  # `close` does it, and does not wait as long
        )
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=ANSWER_SECONDS)
        provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=DELIVER_MILLISECONDS)
        )
        return cls(provider)

    def traceparent(self) -> str | None:
        """See `service.tracing.Tracing`."""
        carrier: dict[str, str] = {}
        self._w3c.inject(carrier)
        return carrier.get("traceparent")

    def parent_from(self, carrier: Mapping[str, str]) -> Context:
        """The span that a `traceparent` names, as a parent; without one a new trace begins."""
        return self._w3c.extract(carrier)

    @contextmanager
    def sending(self, queue: str, job_id: str) -> Iterator[object]:
        """See `service.tracing.Tracing`."""
        attributes = {
            MESSAGING_SYSTEM: BROKER,
            MESSAGING_DESTINATION_NAME: queue,
            MESSAGING_OPERATION_NAME: "send",
            MESSAGING_OPERATION_TYPE: "send",
            JOB_ID: job_id,
        }
        with self.tracer.start_as_current_span(
            f"send {queue}", kind=SpanKind.PRODUCER, attributes=attributes, record_exception=False
        ) as span:
            yield span

    def close(self) -> None:
        """See `service.tracing.Tracing`."""
        # The library waits half a minute for a collector that is away, and cannot be told not to.
        closing = threading.Thread(target=self._provider.shutdown, name="close traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


def log_fields(span: Span) -> dict[str, str]:
    """What joins a log line to a span; nothing where the span has no ids."""
    context = span.get_span_context()
    if not context.is_valid:
        return {}
    return {
        "trace_id": format_trace_id(context.trace_id),
        "span_id": format_span_id(context.span_id),
    }
