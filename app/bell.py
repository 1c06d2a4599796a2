"""One subscription per web process that tells waiting streams what is new about their job.

A stream does not poll and does not hold a Redis connection of its own: it waits at a line, into
which this thread puts what it hears. Only the processes in which somebody follows a job are told
about it. A message that was missed (Redis restarted, a full buffer) costs nothing but time: after
a reconnect everybody looks for himself, and each stream does so once a second anyway.
"""

import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import redis

from tasks.hearing import Hearing
from tasks.names import BELL, PREFIX
from tasks.records import Event, news_from


class Line:
    """What one follower has heard and not yet taken."""

    def __init__(self) -> None:
        self._heard: SimpleQueue[list[Event] | None] = SimpleQueue()

    def tell(self, news: list[Event] | None) -> None:
        """None: something happened, look for yourself."""
        self._heard.put(news)

    def wait(self, timeout_s: float) -> list[Event] | None:
        """All that came so far, waiting for the first; None when it is time to look.

        Raises:
            queue.Empty: nothing came.
        """
        news = self._heard.get(timeout=timeout_s)
        while news is not None and not self._heard.empty():
            more = self._heard.get()
            news = None if more is None else news + more
        return news


class Bell:
    """Tells the followers of a job what is said about it."""

    def __init__(self, client: "redis.Redis") -> None:
        self.redis = client
        self.name = f"{PREFIX}bell:{uuid.uuid4().hex}"
        self._lines: dict[str, set[Line]] = defaultdict(set)
        self._lock = threading.Lock()
        self._hearing = Hearing(client, "bell", [BELL, self.name], self._take, self._tell_all)

    def close(self) -> None:
        """Tell nobody anything more, and end the thread."""
        self._hearing.close()

    @contextmanager
    def listen(self, job_id: str) -> Iterator[Line]:
        """A line on which job ``job_id``'s news come, from now on."""
        line = Line()
        with self._lock:
            self._lines[job_id].add(line)
        try:
            yield line
        finally:
            with self._lock:
                self._lines[job_id].discard(line)
                if not self._lines[job_id]:
                    del self._lines[job_id]

    def _take(self, channel: bytes, content: bytes) -> None:
        if channel == BELL.encode():
            self._tell(content.decode(), None)
        else:
            for job_id, news in news_from(content).items():
                self._tell(job_id, news)

    def _tell(self, job_id: str, news: list[Event] | None) -> None:
        with self._lock:
            for line in self._lines.get(job_id, ()):
                line.tell(news)

    def _tell_all(self) -> None:
        """After a reconnect: anything may have happened meanwhile."""
        with self._lock:
            for lines in self._lines.values():
                for line in lines:
                    line.tell(None)
