"""One subscription to Redis that is kept up as long as the process lives."""

import logging
import threading
from collections.abc import Callable

import redis

logger = logging.getLogger(__name__)

PAUSE_S = 0.5


def hear_for_ever(
    client: "redis.Redis",
    name: str,
    channels: list[str],
    take: Callable[[bytes, bytes], None],
    missed: Callable[[], None] = lambda: None,
) -> None:
    """Call ``take`` with channel and content of each message, in a thread called ``name``.

    ``missed`` is called when anything may have been missed: after each connecting, and when a
    message could not be taken, which is logged.
    """

    def hear() -> None:
        with client.pubsub() as subscription:  # type: ignore[no-untyped-call]
            subscription.subscribe(*channels)
            while True:
                # The timeout lets the client send its health check on a quiet line.
                message = subscription.get_message(timeout=5)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    # Also after the client has connected anew by itself and told nobody.
                    missed()
                else:
                    _take(message["channel"], message["data"])

    def _take(channel: bytes, content: bytes) -> None:
        try:
            take(channel, content)
        except Exception:
            # Without this thread everybody would look for himself, once a second.
            logger.exception("%s: a message that cannot be taken", name)
            missed()

    def run() -> None:
        pause = threading.Event()
        while True:
            try:
                hear()
            except redis.RedisError as error:
                logger.warning("%s lost Redis (%s), reconnecting", name, error)
                pause.wait(PAUSE_S)

    threading.Thread(target=run, name=name, daemon=True).start()
