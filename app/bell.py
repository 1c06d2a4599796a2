"""One subscription per web process that tells waiting streams when their job has news.

A stream does not poll and does not hold a Redis connection of its own: it waits for an event that
this thread sets. The bell carries only job ids. A missed ring (Redis restarted, a full buffer)
costs nothing but time, because every stream looks again by itself once a second.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from tasks.events import BELL

logger = logging.getLogger(__name__)


class Bell:
    """Wakes the listeners of a job when something is published about it."""

    def __init__(self, client: "redis.Redis") -> None:
        self.redis = client
        self._listeners: dict[str, set[threading.Event]] = defaultdict(set)
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="bell", daemon=True).start()

    @contextmanager
    def listen(self, job_id: str) -> Iterator[threading.Event]:
        """An event that is set whenever job ``job_id`` has news."""
        ring = threading.Event()
        with self._lock:
            self._listeners[job_id].add(ring)
        try:
            yield ring
        finally:
            with self._lock:
                self._listeners[job_id].discard(ring)
                if not self._listeners[job_id]:
                    del self._listeners[job_id]

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self._hear()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                logger.warning("the bell lost Redis (%s), reconnecting", error)
                pause.wait(0.5)

    def _hear(self) -> None:
        with self.redis.pubsub(ignore_subscribe_messages=True) as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(BELL)
            self._ring_all()
            while True:
                # The timeout lets the client send its health check on a quiet line.
                message = subscription.get_message(timeout=5)
                if message is not None:
                    self._ring(message["data"].decode())

    def _ring(self, job_id: str) -> None:
        with self._lock:
            for ring in self._listeners.get(job_id, ()):
                ring.set()

    def _ring_all(self) -> None:
        """After a reconnect: anything may have happened meanwhile."""
        with self._lock:
            for rings in self._listeners.values():
                for ring in rings:
                    ring.set()
