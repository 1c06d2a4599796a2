"""Messages that nobody can use: kept for a while to be looked at, never tried again.

They are a list in Redis, the latest first, bounded in number, size and time.
"""

import json
import logging
import time
from typing import Any

import redis

logger = logging.getLogger(__name__)

DEAD_LETTERS = "supertonic:dead_letters"
MAX_LETTERS = 1000
MAX_CHARS = 4000
KEPT_S = 7 * 86400


def bury(client: "redis.Redis", queue: str, reason: str, message: object) -> None:
    """Keep a message with the reason why it is here, and drop what is too much."""
    if isinstance(message, bytes):
        message = message.decode(errors="replace")
    letter = {
        "at": round(time.time(), 3),
        "queue": queue,
        "reason": reason[:MAX_CHARS],
        "message": str(message)[:MAX_CHARS],
    }
    try:
        with client.pipeline(transaction=False) as pipe:
            pipe.lpush(DEAD_LETTERS, json.dumps(letter))
            pipe.ltrim(DEAD_LETTERS, 0, MAX_LETTERS - 1)
            pipe.expire(DEAD_LETTERS, KEPT_S)
            pipe.execute()
    except redis.OutOfMemoryError:
        logger.warning("no room in Redis for a dead letter")


def count(client: "redis.Redis") -> int:
    return int(client.llen(DEAD_LETTERS))


def letters(client: "redis.Redis", limit: int = 100) -> list[dict[str, Any]]:
    """The latest letters: ``at`` (epoch seconds), ``queue``, ``reason`` and ``message``."""
    rows: Any = client.lrange(DEAD_LETTERS, 0, limit - 1)
    return [json.loads(row) for row in rows]
