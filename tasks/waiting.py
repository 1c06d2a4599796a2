"""What waits in a speech worker, and what it is speaking: the one thing that all its threads share.

The hub thread puts chunks in, the pool's threads take batches out. Who goes next, and with whom, is
decided in tasks/batching.py; here it is asked with the clock, for one thread at a time.
"""

import threading
import time
from dataclasses import dataclass

from celery.worker.request import Request

from tasks.batching import BatchLimits, Waiting, take, wait_until
from tasks.messages import Chunk, Kind
from tasks.pace import work

# The clock may be set meanwhile; and Python cannot wait until a year that a message may name.
LOOK_S = 1.0


@dataclass(slots=True, eq=False)
class Held:
    """A received chunk: the scheduler's view of it and Celery's."""

    item: Waiting
    request: Request


class WaitingList:
    """The chunks that wait, and by thread the batches that were taken and are being spoken.

    A pool's thread comes when ``add`` asks for it, and leaves when ``next_batch`` has nothing left.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits  # may be set anew at any time
        self.is_closed = False
        self.speaking: dict[int, list[Chunk]] = {}
        self._held: list[Held] = []
        self._pulling = 0  # pool threads at work
        self._changed = threading.Condition()

    def add(self, held: Held) -> bool:
        """Whether a thread is free to take it: then the caller has to send one."""
        with self._changed:
            self._held.append(held)
            self._changed.notify_all()
            if self._pulling == self.limits.pace.batches_at_once:
                return False
            self._pulling += 1
            return True

    def next_batch(self) -> list[Held]:
        """Wait for this thread's next batch; empty when nothing waits, and the thread is to leave.

        Until it says ``batch_ended``, the batch counts as being spoken.
        """
        with self._changed:
            while self._held and not self.is_closed:
                now = time.time()
                beside = list(self.speaking.values())
                items = {id(held.item): held for held in self._held}
                batch = take([held.item for held in self._held], now, self.limits, beside)
                if batch:
                    chosen = [items[id(item)] for item in batch]
                    taken = {id(held) for held in chosen}
                    self._held = [held for held in self._held if id(held) not in taken]
                    chunks = [item.chunk for item in batch]
                    self.speaking[threading.get_ident()] = chunks
                    # Before anybody else chooses, or two would take the turn of the long jobs.
                    self.limits.pace.took(chunks, now)
                    return chosen
                waiting = [held.item for held in self._held]
                start_at = wait_until(waiting, now, self.limits, beside)
                self._changed.wait(min(start_at - now, LOOK_S))
            self._pulling -= 1
            self._changed.notify_all()
            return []

    def batch_ended(self) -> None:
        """This thread's batch is not spoken any more."""
        with self._changed:
            del self.speaking[threading.get_ident()]
            # Some may have let this batch finish first.
            self._changed.notify_all()

    def thread_failed(self) -> None:
        """This thread leaves without having been told to. Its core would count as busy for ever."""
        with self._changed:
            self._pulling -= 1
            self._changed.notify_all()

    def drop(self, job_id: str) -> list[Held]:
        """Take out what nobody waits for now that this job is over. Chunks with a content key may
        be wanted by other jobs: about these Redis is asked when a batch is formed.
        """

        def is_dropped(held: Held) -> bool:
            return held.item.chunk.job_id == job_id and not held.item.chunk.content

        with self._changed:
            dropped = [held for held in self._held if is_dropped(held)]
            if dropped:
                self._held = [held for held in self._held if not is_dropped(held)]
            return dropped

    def take_all(self) -> list[Held]:
        """Take out all that waits."""
        with self._changed:
            unstarted, self._held = self._held, []
            return unstarted

    def close(self) -> None:
        """No batch begins here any more."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def threads_have_left(self, timeout_s: float) -> bool:
        """Whether all threads have left, or do so within this time."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pulling, timeout_s)

    # -- what is known of it -----------------------------------------------------------------

    def chunks(self) -> list[Chunk]:
        """Those that wait now."""
        return [held.item.chunk for held in list(self._held)]

    def is_alone(self) -> bool:
        """Whether this thread's batch may have all cores: nobody is beside it, and nobody else
        goes before it is done.
        """
        with self._changed:
            if len(self.speaking) > 1:
                return False
            chunks, now = self.speaking[threading.get_ident()], time.time()
            next_at = wait_until([held.item for held in self._held], now, self.limits, [chunks])
        return next_at > now + self.limits.pace.cost.of([work(chunk) for chunk in chunks])

    def is_crowded(self) -> bool:
        """Whether chunks wait that a listener needs now."""
        now = time.time()
        with self._changed:
            return any(
                held.item.chunk.due <= now and held.item.chunk.kind is not Kind.LONG
                for held in self._held
            )

    def work_s(self) -> float:
        """The work of all that waits, as tasks/pace.py counts it."""
        with self._changed:
            return sum(work(held.item.chunk) for held in self._held)
