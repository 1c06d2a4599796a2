"""The Celery application of the speech workers, and how chunks get into its queues.

``celery -A tasks worker`` starts a speech worker: Celery imports ``tasks.worker`` then, which
brings the batching consumer. Importing this module alone costs no torch, so the web uses it too.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from amqp.exceptions import NotFound
from celery import Celery
from celery.platforms import SecurityWarning
from kombu import Producer, Queue
from kombu.exceptions import BatchPublishError, OperationalError

from tasks.demand import Admission, AdmissionLimits
from tasks.envelopes import Envelope, envelopes, shown
from tasks.events import EventStore
from tasks.messages import Chunk, Job, Piece
from tasks.names import QUEUES
from tasks.settings import Settings

SYNTHESIZE = "tasks.synthesize_chunk"
ADVANCE = "tasks.advance_job"
DELIVER = "tasks.deliver_webhook"
MAKE_BOOK = "tasks.make_book"
BROKER_TIMEOUT_S = 5.0

# Celery warns root at length because a pickled message could run code; ours are JSON only.
warnings.filterwarnings("ignore", category=SecurityWarning)

app = Celery("tasks", include=["tasks.worker"], amqp="tasks.connection:AMQP")
app.config_from_object("celeryconfig")


@cache
def _settings() -> Settings:
    """Not read while this is imported: `app.run` says in words what is wrong with a setting."""
    return Settings.from_env()


def start_job(
    store: EventStore,
    job: Job,
    pieces: Sequence[Piece],
    ttl_s: int,
    chunks: Sequence[Chunk],
    limits: AdmissionLimits | None = None,
) -> Admission:
    """Store a new job, if the limits let it in, and queue these chunks of it, which expire with it.

    With the queues in the same Redis that is one step and one round trip. Nothing is stored nor
    queued for a job that is refused, or there already.

    Raises:
        redis.RedisError, kombu.exceptions.OperationalError: Redis or the broker cannot be reached.
    """
    messages: Sequence[Envelope] = ()
    if _settings().queues_are_in_redis:
        messages = envelopes(app, SYNTHESIZE, chunks, ttl_s)
    admission = store.admit(job, pieces, ttl_s, chunks, messages, limits)
    if not _settings().queues_are_in_redis:
        to_send = set(admission.to_send)
        _publish([chunk for chunk in chunks if chunk.index in to_send], ttl_s)
    return admission


def send_chunks(store: EventStore, chunks: Sequence[Chunk], expires_s: float) -> None:
    """Queue chunks of a job that is stored already. Raises like ``start_job``."""
    if _settings().queues_are_in_redis:
        store.push(envelopes(app, SYNTHESIZE, chunks, expires_s))
    else:
        _publish(chunks, expires_s)


def _publish(chunks: Sequence[Chunk], expires_s: float) -> None:
    """Through Celery, on whatever broker there is: all at once where it can."""
    _twice(lambda: _publish_all(chunks, expires_s))


def _twice(send: Callable[[], object]) -> None:
    """Once more if it fails: a connection of the pool may be older than the broker. What is sent
    twice does no harm, a chunk is published once.
    """
    try:
        send()
    except OperationalError:
        send()


def _publish_all(chunks: Sequence[Chunk], expires_s: float) -> None:
    try:
        with app.producer_or_acquire() as producer, producer.batch(max_size=1000):
            for chunk in chunks:
                _send_chunk(producer, chunk, expires_s)
    except BatchPublishError as error:
        raise OperationalError(f"the queue does not take chunks: {error}") from error


def _send_chunk(producer: Producer, chunk: Chunk, expires_s: float) -> None:
    app.send_task(
        SYNTHESIZE,
        args=(chunk.to_json(),),
        queue=chunk.urgency.value,
        producer=producer,
        ignore_result=True,
        expires=max(0.0, chunk.due - time.time()) + expires_s,
        retry=False,
        argsrepr=shown(chunk),
        kwargsrepr="{}",
    )


def send_advance(job_id: str) -> None:
    """Ask the files worker to move a long job forward."""
    _send_to_files(ADVANCE, job_id)


def send_delivery(job_id: str) -> None:
    """Ask the files worker to tell a job's webhook that it has ended."""
    _send_to_files(DELIVER, job_id)


def send_book(job_id: str) -> None:
    """Ask the files worker to make a job's book."""
    _send_to_files(MAKE_BOOK, job_id)


def _send_to_files(task: str, job_id: str) -> None:
    options: dict[str, Any] = {"queue": "files", "ignore_result": True, "retry": False}
    _twice(lambda: app.send_task(task, args=(job_id,), **options))


def queue_lengths(store: EventStore) -> dict[str, int]:
    """Messages per queue on whatever broker there is. RabbitMQ does not tell what consumers hold,
    so ``held`` is only there where the queues are in Redis.

    Raises:
        redis.RedisError, kombu.exceptions.OperationalError: Redis or the broker cannot be reached.
    """
    if _settings().queues_are_in_redis:
        return store.queue_lengths()
    with app.pool.acquire(block=True, timeout=BROKER_TIMEOUT_S) as connection:

        def ask(channel: Any) -> dict[str, int]:
            lengths = dict.fromkeys(QUEUES, 0)
            for name in QUEUES:
                # A queue is made by its first consumer; to ask for none ends the channel.
                with suppress(NotFound), connection.channel() as own:
                    lengths[name] = Queue(name, channel=own).queue_declare(passive=True)[1]
            return lengths

        # Once more where the pool's connection is older than the broker.
        lengths: dict[str, int] = connection.autoretry(ask, max_retries=1, interval_start=0)()[0]
        return lengths
