"""One subscription to Redis that is kept up until it is closed, or as long as the process lives."""

import logging
import threading
from collections.abc import Callable

import redis

logger = logging.getLogger(__name__)

PAUSE_S = 0.5
# On a quiet line: lets the client send its health check, and the thread see that it is closed.
LOOK_S = 1.0


class Hearing:
    """Calls ``take`` with channel and content of each message, in a thread called ``name``.

    ``missed`` is called when anything may have been missed: after each connecting, and when a
    message could not be taken, which is logged.
    """

    def __init__(
        self,
        client: "redis.Redis",
        name: str,
        channels: list[str],
        take: Callable[[bytes, bytes], None],
        missed: Callable[[], None] = lambda: None,
    ) -> None:
        self.redis = client
        self.name = name
        self.channels = channels
        self.take = take
        self.missed = missed
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more messages; returns when the thread has ended, as a rule within a second."""
        self._is_closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closed.is_set():
            try:
                self._hear()
            except redis.RedisError as error:
                logger.warning("%s lost Redis (%s), reconnecting", self.name, error)
                self._is_closed.wait(PAUSE_S)

    def _hear(self) -> None:
        with self.redis.pubsub() as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(*self.channels)
            while not self._is_closed.is_set():
                message = subscription.get_message(timeout=LOOK_S)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    # Also after the client has connected anew by itself and told nobody.
                    self.missed()
                else:
                    self._take(message["channel"], message["data"])

    def _take(self, channel: bytes, content: bytes) -> None:
        try:
            self.take(channel, content)
        except Exception:
            # Without this thread everybody would look for himself, once a second.
            logger.exception("%s: a message that cannot be taken", self.name)
            self.missed()
