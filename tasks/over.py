"""Which jobs are over, as a speech worker hears it: their chunks need not wait for a batch.

Whether a chunk may enter a batch is asked of Redis when the batch is formed, so nothing depends on
this. It only spares the queue what nobody waits for.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

import redis

from tasks.events import OVER

logger = logging.getLogger(__name__)

# Chunks of a job that ended longer ago than so many others are told apart when they are begun.
REMEMBERED = 10_000


class JobsOver:
    """The jobs that ended lately. ``on_end`` is called with each, in a thread of its own."""

    def __init__(self, client: "redis.Redis", on_end: Callable[[str], None]) -> None:
        self.redis = client
        self.on_end = on_end
        self._ids: OrderedDict[str, None] = OrderedDict()
        threading.Thread(target=self._run, name="jobs-over", daemon=True).start()

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._ids

    def add(self, job_id: str) -> None:
        self._ids[job_id] = None
        while len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)
        self.on_end(job_id)

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self._hear()
            except redis.RedisError as error:
                logger.info("not hearing which jobs end (%s), reconnecting", error)
                pause.wait(0.5)

    def _hear(self) -> None:
        with self.redis.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(OVER)
            while True:
                message = subscription.get_message(timeout=5)
                if message is not None:
                    self.add(message["data"].decode())
