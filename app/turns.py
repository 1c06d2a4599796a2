"""Texts of one connection that wait until those before them have been spoken. Their number is
bounded, whatever the client sends.
"""

import threading
from collections import deque
from typing import Generic, TypeVar

from app.errors import Problem
from app.fragments import Fragments
from app.schemas import WishBody

# What may wait: texts, and characters in all.
MAX_WISHES = 100
MAX_WAITING_CHARS = 500_000
# With what marks the ends of texts.
MAX_TURNS = 2 * MAX_WISHES

Mark = TypeVar("Mark")


class Turns(Generic[Mark]):
    """Texts, and marks between them that say something else is due in its turn.

    ``changed`` is the lock, and is notified. Whoever else decides under it may take turns too.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._waiting: deque[WishBody | Mark] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self) -> WishBody | Mark:
        """The next one, which has to be there."""
        return self._waiting.popleft()

    def add(self, wish: WishBody) -> None:
        """Raises Problem: 429 where too much is waiting."""
        with self._changed:
            texts = [each for each in self._waiting if isinstance(each, WishBody)]
            if len(texts) >= MAX_WISHES:
                detail = f"{MAX_WISHES} texts are waiting already; send more when some are done"
                raise Problem(429, detail)
            # One text may always wait, whatever length the settings allow.
            if texts and sum(map(_characters, [*texts, wish])) > MAX_WAITING_CHARS:
                detail = f"with this text more than {MAX_WAITING_CHARS} characters are waiting"
                raise Problem(429, f"{detail}; send it when some are done")
            self._append(wish)

    def add_sentences(self, fragments: Fragments, wish: WishBody) -> None:
        """What of a text in fragments is whole, joined to what of it is waiting.

        Raises:
            Problem: 429 where too much is waiting; the fragments are as they were before.
        """
        with self._changed:
            is_waiting = bool(self._waiting) and self._waiting[-1] is fragments.last
            if is_waiting and (joined := fragments.joined(wish)):
                self._waiting[-1] = joined
                return
            try:
                self.add(wish)
            except Problem:
                fragments.take_back()
                raise
            fragments.went_on(wish)

    def mark(self, mark: Mark) -> None:
        """Raises Problem: 429 where too many are waiting."""
        with self._changed:
            if len(self._waiting) >= MAX_TURNS:
                raise Problem(429, "Too many texts have ended that wait for their turn.")
            self._append(mark)

    def close(self, mark: Mark) -> list[WishBody]:
        """Nothing but this comes any more; the texts that waited."""
        with self._changed:
            dropped = self.drop()
            self._append(mark)
            return dropped

    def drop(self) -> list[WishBody]:
        """Nothing waits any more; the texts that did."""
        with self._changed:
            dropped = [each for each in self._waiting if isinstance(each, WishBody)]
            self._waiting.clear()
            return dropped

    def _append(self, turn: WishBody | Mark) -> None:
        self._waiting.append(turn)
        self._changed.notify()


def _characters(wish: WishBody) -> int:
    lexicon = sum(len(written) + len(spoken) for written, spoken in wish.lexicon.items())
    return len(wish.text) + len(wish.voice) + len(wish.language) + lexicon
