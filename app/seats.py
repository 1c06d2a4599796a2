"""Threads that may be held for as long as somebody listens, and those that are kept for the rest.

A stream holds its thread until it ends. If streams could have all of them, nothing else would be
answered, not even whether this process lives.
"""

import threading
from typing import Any

from flask import request

from app.errors import Problem

KEPT = 4
# Endpoints that answer for as long as something is spoken or made, or a client takes to read it.
LASTING = {
    "books.job_book",
    "api.synthesize",
    "api.synthesize_stream",
    "jobs.job_audio",
    "jobs.job_events",
    "openai.create_speech",
    "websocket.synthesize",
}


class Seats:
    """Which connections of this process hold one of the threads that listeners may have."""

    def __init__(self) -> None:
        self._most: int | None = None
        self._taken: set[int] = set()
        self._lock = threading.Lock()

    def start(self, threads: int) -> None:
        """From now on ``threads`` less a few may be taken; before, any number."""
        self._most = threads - min(KEPT, threads // 2)

    def take(self, connection: Any) -> bool:
        """Whether there is one for this connection, until it ``leave``s."""
        with self._lock:
            if self._most is not None and len(self._taken) >= self._most:
                return False
            self._taken.add(id(connection))
            return True

    def leave(self, connection: Any) -> None:
        """May be said by those who have none."""
        with self._lock:
            self._taken.discard(id(connection))


SEATS = Seats()


def take_seat() -> None:
    """Before every request.

    Raises:
        Problem: 503 where listeners hold all threads that they may have.
    """
    connection = request.environ.get("gunicorn.socket")
    is_lasting = request.endpoint in LASTING or "wait" in request.args
    if is_lasting and connection is not None and not SEATS.take(connection):
        detail = "As many people listen as this process has threads for (SUPERTONIC_WEB_THREADS)."
        raise Problem(503, detail, retry_after_s=2)
