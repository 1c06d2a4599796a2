"""Workers tell each other how late listeners are, because any of them may speak the next chunk.

Twice a second each worker adds what it has seen of each sending to a sum in Redis, and reads the
sums of the jobs it holds chunks of: one round trip, and none while nobody listens. A delay that
comes half a second late moves a deadline by little; chunks are seconds long.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import redis

from tasks.messages import Chunk, Kind
from tasks.names import PREFIX
from tasks.pace import Pace, delay_key

# Longer than a chunk waits in a queue that is of any use.
TTL_S = 120


def exchange(client: "redis.Redis", pace: Pace, waiting: Iterable[Chunk]) -> None:
    """Tell and learn delays. Raises ``redis.RedisError``; what was not told then is lost."""
    # One sum per sending: under load there are a thousand changes, and the hub waits for this.
    news: defaultdict[str, float] = defaultdict(float)
    for _ in range(len(pace.untold)):
        key, change = pace.untold.popleft()
        news[key] += change
    keys = sorted({delay_key(chunk) for chunk in waiting if chunk.kind is not Kind.LONG})
    if not keys and not news:
        return
    with client.pipeline(transaction=False) as pipe:
        for key, change in news.items():
            pipe.incrbyfloat(_name(key), change)
            pipe.expire(_name(key), TTL_S)
        if keys:
            pipe.mget([_name(key) for key in keys])
        replies: list[Any] = pipe.execute()
    # A copy: threads of the pool add to it.
    told_since = {key for key, _ in list(pace.untold)}
    for key, total in zip(keys, replies[-1] if keys else [], strict=True):
        if total is not None and key not in told_since:
            pace.learn_delay(key, float(total))


def _name(key: str) -> str:
    return f"{PREFIX}delay:{key}"
