"""Which jobs are over, as a speech worker hears it: their chunks need not wait for a batch.

Whether a chunk may enter a batch is asked of Redis when the batch is formed, so nothing depends on
this. It only spares the queue what nobody waits for. It is soon forgotten, because a job that Redis
had lost with its end may be restored and live.
"""

import time
from collections import OrderedDict
from collections.abc import Callable

import redis

from tasks.hearing import Hearing
from tasks.names import OVER

# Chunks of a job that ended longer ago, or before so many others, are told apart when they begin.
REMEMBERED_S = 15.0
REMEMBERED = 10_000


class JobsOver:
    """The jobs that ended lately. ``on_end`` is called with each, in a thread of its own."""

    def __init__(self, client: "redis.Redis", on_end: Callable[[str], None]) -> None:
        self.on_end = on_end
        self._ids: OrderedDict[str, float] = OrderedDict()  # when each was over
        Hearing(client, "jobs-over", [OVER], lambda _, job_id: self.add(job_id.decode()))

    def __contains__(self, job_id: str) -> bool:
        return self._ids.get(job_id, 0.0) > time.monotonic() - REMEMBERED_S

    def add(self, job_id: str) -> None:
        self._ids[job_id] = time.monotonic()
        while len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)
        self.on_end(job_id)
