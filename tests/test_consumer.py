"""What the batching consumer's threads do; test_queue_faults.py has it in a worker."""

import pytest

from tasks.consumer import BatchingConsumer
from tests.test_waiting import a_list, held


def test_a_thread_that_fails_leaves_its_core_to_another() -> None:
    consumer = BatchingConsumer.__new__(BatchingConsumer)
    consumer.waiting = a_list(held("now"))
    consumer.waiting.limits = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        consumer._pull()
    assert consumer.waiting.threads_have_left(0.0)
