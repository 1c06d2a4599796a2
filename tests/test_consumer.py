"""What the batching consumer decides by itself; test_queue_faults.py has it in a worker."""

import threading
import time

import pytest

from tasks.consumer import BatchingConsumer, Held
from tasks.messages import Kind
from tests.examples import waiting_chunk


def a_consumer(**due: tuple[Kind, float]) -> BatchingConsumer:
    """Outside of any worker, with a chunk of each kind that is due in so many seconds."""
    consumer = BatchingConsumer.__new__(BatchingConsumer)
    consumer._lock = threading.Condition()
    consumer.speaking, consumer.is_stopping, consumer.pulling = {}, False, 1
    consumer.waiting = [
        Held(waiting_chunk(job, kind=kind, due=time.time() + seconds), None)  # type: ignore[arg-type]
        for job, (kind, seconds) in due.items()
    ]
    return consumer


@pytest.mark.parametrize(
    ("due", "is_crowded"),
    [
        ({}, False),
        ({"book": (Kind.LONG, -60.0)}, False),
        ({"later": (Kind.STREAM, 5.0)}, False),
        ({"book": (Kind.LONG, -60.0), "now": (Kind.STREAM, -0.1)}, True),
        ({"now": (Kind.FILE, -0.1)}, True),
    ],
)
def test_only_listeners_who_need_sound_now_are_a_crowd(due: dict, is_crowded: bool) -> None:
    """A long job that waits keeps nobody from slices."""
    assert a_consumer(**due)._is_crowded() is is_crowded


def test_a_thread_that_fails_leaves_its_core_to_another() -> None:
    consumer = a_consumer(now=(Kind.STREAM, 0.0))
    consumer.limits = None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        consumer._pull()
    assert consumer.pulling == 0
