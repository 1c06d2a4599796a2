"""The Celery application of the speech workers, and how chunks get into its queues.

``celery -A tasks worker`` starts a speech worker: Celery imports ``tasks.worker`` then, which
brings the batching consumer. Importing this module alone costs no torch, so the web uses it too.
"""

import warnings
from collections.abc import Iterable

from celery import Celery
from celery.platforms import SecurityWarning
from kombu import Producer
from kombu.exceptions import BatchPublishError, OperationalError

from tasks.messages import Chunk

SYNTHESIZE = "tasks.synthesize_chunk"
ADVANCE = "tasks.advance_job"

# Celery warns root at length because a pickled message could run code; ours are JSON only.
warnings.filterwarnings("ignore", category=SecurityWarning)

app = Celery("tasks", include=["tasks.worker"])
app.config_from_object("celeryconfig")


def send_chunks(chunks: Iterable[Chunk], expires_s: float) -> None:
    """Put chunks into their queues, all in one pipeline.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """
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
        # What Flower shows of a chunk: enough to find it, not the user's text.
        argsrepr=f"('{chunk.job_id}', {chunk.index})",
        kwargsrepr="{}",
    )


def send_advance(job_id: str) -> None:
    """Ask the files worker to move a long job forward."""
    app.send_task(ADVANCE, args=(job_id,), queue="files", ignore_result=True, retry=False)
