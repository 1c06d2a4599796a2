"""The Celery application of the speech workers, and how chunks get into its queues.

``celery -A tasks worker`` starts a speech worker: Celery imports ``tasks.worker`` then, which
brings the batching consumer. Importing this module alone costs no torch, so the web uses it too.
"""

import warnings
from collections.abc import Sequence

from celery import Celery
from celery.platforms import SecurityWarning
from kombu import Producer
from kombu.exceptions import BatchPublishError, OperationalError

from tasks.envelopes import envelopes, shown
from tasks.events import EventStore
from tasks.messages import Chunk, Job, Piece
from tasks.settings import Settings

SYNTHESIZE = "tasks.synthesize_chunk"
ADVANCE = "tasks.advance_job"
DELIVER = "tasks.deliver_webhook"

# Celery warns root at length because a pickled message could run code; ours are JSON only.
warnings.filterwarnings("ignore", category=SecurityWarning)

_settings = Settings.from_env()

app = Celery("tasks", include=["tasks.worker"], amqp="tasks.connection:AMQP")
app.config_from_object("celeryconfig")


def start_job(
    store: EventStore, job: Job, pieces: Sequence[Piece], ttl_s: int, chunks: Sequence[Chunk]
) -> bool:
    """Store a new job and queue these chunks of it, which expire with it.

    With the queues in the same Redis that is one step and one round trip. False when the job is
    there already; then nothing is queued.

    Raises:
        redis.RedisError, kombu.exceptions.OperationalError: Redis or the broker cannot be reached.
    """
    if _settings.queues_are_in_redis:
        return store.create(job, pieces, ttl_s, envelopes(app, SYNTHESIZE, chunks, ttl_s))
    is_new = store.create(job, pieces, ttl_s)
    if is_new:
        _publish(chunks, ttl_s)
    return is_new


def send_chunks(store: EventStore, chunks: Sequence[Chunk], expires_s: float) -> None:
    """Queue chunks of a job that is stored already. Raises like ``start_job``."""
    if _settings.queues_are_in_redis:
        store.push(envelopes(app, SYNTHESIZE, chunks, expires_s))
    else:
        _publish(chunks, expires_s)


def _publish(chunks: Sequence[Chunk], expires_s: float) -> None:
    """Through Celery, on whatever broker there is: all at once where it can."""
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
        expires=expires_s,
        retry=False,
        argsrepr=shown(chunk),
        kwargsrepr="{}",
    )


def send_advance(job_id: str) -> None:
    """Ask the files worker to move a long job forward."""
    app.send_task(ADVANCE, args=(job_id,), queue="files", ignore_result=True, retry=False)
