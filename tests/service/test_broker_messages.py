"""What a worker takes from the broker: JSON alone, whoever put it there."""

import pickle

import pytest
from kombu.exceptions import ContentDisallowed

from service.queue import QUEUE, make_celery
from service.settings import Settings


def test_pickled_message_is_refused_and_not_unpickled(settings: Settings) -> None:
    """As a stranger who reaches the broker would send it."""
    celery = make_celery(settings, "test")
    with celery.connection_for_write() as connection:
        queue = next(queue for queue in celery.conf.task_queues if queue.name == QUEUE)
        channel = connection.default_channel
        bound = queue(channel)
        bound.declare()
        with connection.Producer(channel) as producer:
            producer.publish(
                pickle.dumps(Ellipsis),
                routing_key=QUEUE,
                content_type="application/x-python-serialize",
                content_encoding="binary",
            )
        message = bound.get(accept=celery.conf.accept_content)
        assert message is not None
        with pytest.raises(ContentDisallowed):
            message.decode()
