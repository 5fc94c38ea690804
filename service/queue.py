"""The way to the broker: messages that make workers look at jobs, and wake-ups for streams.

A message says only "look at this job". It may be lost or come twice: the row in the database is
what counts, and reconcile sends again what was lost.
"""

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import redis
import redis.asyncio
import structlog
from celery import Celery
from kombu import Queue
from kombu.exceptions import OperationalError
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sanitizer.spec import Device
from service.settings import Settings

RUN_JOB = "sanitizer.run_job"
"""Name of the one task there is; its argument is the id of a job."""
QUEUE = "sanitizer.jobs"
"""Where jobs wait that take whatever device the worker has; others wait in `QUEUE.DEVICE`."""
DEVICES: tuple[Device | None, ...] = (None, Device.CPU, Device.CUDA)
"""The kinds of device that jobs ask for, each with a queue of its own."""
CONNECT_SECONDS = 0.5
ANSWER_SECONDS = 1.0
MARGIN_SECONDS = 3600.0

log = structlog.get_logger(__name__)


class BrokerUnavailable(Exception):
    """The broker does not answer; callers log it and go on: reconcile sends what was not sent."""


def make_producer(settings: Settings) -> Celery:
    """What sends messages: a Celery app that gives up within about a second."""
    return make_celery(settings, "sanitizer.service", socket_timeout=ANSWER_SECONDS, max_retries=0)


def make_celery(settings: Settings, name: str, **transport_options: Any) -> Celery:
    """A Celery app over the broker of the settings: JSON alone, no results, one queue."""
    url = settings.broker_url.get_secret_value()
    celery = Celery(name, broker=url, set_as_current=False)
    if url.startswith("rediss:") and "ssl_cert_reqs" not in url:
        # kombu would take any certificate.
        celery.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    celery.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_publish_retry=False,
        task_queues=[Queue(queue_of(device)) for device in DEVICES],
        task_default_queue=QUEUE,
        task_create_missing_queues=False,
        broker_transport_options={
            # Redis hands a message out again that was not acknowledged for this long. The lease
            # makes that harmless; longer than any job, so that it does not happen for nothing.
            "visibility_timeout": settings.job_timeout_seconds + MARGIN_SECONDS,
            "socket_connect_timeout": CONNECT_SECONDS,
            # A worker that waits for messages notices so that its network was cut.
            "socket_keepalive": True,
            "socket_keepalive_options": {
                socket.TCP_KEEPIDLE: 10,
                socket.TCP_KEEPINTVL: 5,
                socket.TCP_KEEPCNT: 3,
                socket.TCP_USER_TIMEOUT: 20_000,
            }
            if sys.platform == "linux"
            else None,
            **transport_options,
        },
        broker_connection_timeout=CONNECT_SECONDS,
    )
    return celery


def queue_of(device: str | None) -> str:
    """Name of the queue of jobs that ask for a kind of device; none: for any."""
    return f"{QUEUE}.{device}" if device else QUEUE


def queues_taken(*, has_cuda: bool, only_asked_for: bool = False) -> list[str]:
    """The queues that a worker takes jobs from.

    Args:
        has_cuda: Whether it computes on CUDA devices.
        only_asked_for: Whether it leaves jobs alone that name no device.
    """
    left = set() if has_cuda else {Device.CUDA}
    return [
        queue_of(device)
        for device in DEVICES
        if device not in left and not (only_asked_for and device is None)
    ]


def send_job(celery: Celery, job_id: str, device: str | None = None) -> None:
    """Tells the workers that have the device to look at a job.

    Raises:
        BrokerUnavailable: It does not answer, within about a second.
    """
    with _unavailable():
        celery.send_task(
            RUN_JOB, args=(job_id,), queue=queue_of(device), retry=False, ignore_result=True
        )


def count_messages(celery: Celery) -> dict[Device | None, int]:
    """How many messages no worker has taken yet, by the device that their jobs ask for.

    Raises:
        BrokerUnavailable: It does not answer.
    """
    with _unavailable(), celery.connection_for_write() as connection:
        client = connection.default_channel.client
        return {device: int(client.llen(queue_of(device))) for device in DEVICES}


def publish_wakeup(celery: Celery, job_id: str) -> None:
    """Tells whoever streams the job's events that there are new ones. May be lost, never raises."""
    with suppress(BrokerUnavailable), _unavailable(), celery.pool.acquire(block=True) as connection:
        connection.default_channel.client.publish(_channel(job_id), b"")


@contextmanager
def _unavailable() -> Iterator[None]:
    """What kombu and redis raise when the broker is down, by one name."""
    try:
        yield
    except (OperationalError, redis.RedisError, OSError) as error:
        raise BrokerUnavailable(str(error)) from error


def _channel(job_id: str) -> str:
    return f"sanitizer.events.{job_id}"


@asynccontextmanager
async def wakeups(
    settings: Settings, job_id: str
) -> AsyncIterator[Callable[[float], Awaitable[None]]]:
    """Listens for wake-ups of a job.

    Gives a function that waits for one, at most as many seconds as it is told. Without a broker it
    waits those seconds, so that its caller polls.
    """
    client = redis.asyncio.from_url(
        settings.broker_url.get_secret_value(),
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    channel = client.pubsub()

    listening = False

    async def wait(seconds: float) -> None:
        nonlocal listening
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            if not listening:
                await channel.subscribe(_channel(job_id))
                listening = True
            while (left := deadline - asyncio.get_running_loop().time()) > 0:
                if await channel.get_message(True, timeout=left) is not None:
                    return
        except (redis.RedisError, OSError) as error:
            log.debug("no wake-ups, polling instead", job_id=job_id, reason=str(error))
            listening = False
            with suppress(redis.RedisError, OSError):
                await channel.aclose()  # type: ignore[no-untyped-call]  # redis leaves it out
            await asyncio.sleep(max(0.0, deadline - asyncio.get_running_loop().time()))

    try:
        await wait(0.0)
        yield wait
    finally:
        with suppress(redis.RedisError, OSError):
            await channel.aclose()  # type: ignore[no-untyped-call]  # as above
            await client.aclose()
