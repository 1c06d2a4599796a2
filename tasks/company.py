"""Batches in company, and chunks that must be alone.

A chunk that was begun before and not finished may be the one that killed its worker. While it is
spoken, no other batch may be, or an innocent chunk would be begun and lost with it each time.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Company:
    """Any number of threads may be inside together, or a single one alone."""

    def __init__(self) -> None:
        self._inside = 0
        self._want_alone = 0
        self._changed = threading.Condition()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Waits while somebody is, or wants to be, alone."""
        with self._changed:
            while self._want_alone:
                self._changed.wait()
            self._inside += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until nobody else is inside; not to be used from inside."""
        with self._changed:
            self._want_alone += 1
            while self._inside:
                self._changed.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._want_alone -= 1
            self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()
