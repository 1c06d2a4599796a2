"""Which jobs are over, as a speech worker hears it: their chunks need not wait for a batch.

Whether a chunk may enter a batch is asked of Redis when the batch is formed, so nothing depends on
this. It only spares the queue what nobody waits for.
"""

from collections import OrderedDict
from collections.abc import Callable

import redis

from tasks.events import OVER
from tasks.hearing import hear_for_ever

# Chunks of a job that ended longer ago than so many others are told apart when they are begun.
REMEMBERED = 10_000


class JobsOver:
    """The jobs that ended lately. ``on_end`` is called with each, in a thread of its own."""

    def __init__(self, client: "redis.Redis", on_end: Callable[[str], None]) -> None:
        self.on_end = on_end
        self._ids: OrderedDict[str, None] = OrderedDict()
        hear_for_ever(client, "jobs-over", [OVER], lambda _, job_id: self.add(job_id.decode()))

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._ids

    def add(self, job_id: str) -> None:
        self._ids[job_id] = None
        while len(self._ids) > REMEMBERED:
            self._ids.popitem(last=False)
        self.on_end(job_id)
