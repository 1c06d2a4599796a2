"""Who is spoken next, and with whom. Pure functions of what waits and what time it is.

Order is by deadline: the moment a listener needs the first sample. A first chunk is due now, the
chunk after ten seconds of audio is due in ten seconds, a long job's chunk has nobody listening
and gets a deadline far enough away to let listeners pass, near enough that it always progresses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.messages import Chunk

# A long job's chunk may be passed by listeners for this long, then it counts like them.
LOW_PATIENCE_S = 30.0
# Padding a batch to its longest row may cost at most this much more than the rows by themselves.
PADDING_BOUND = 1.3
# Who is due must not wait for the computing of what is wanted later than this.
SOON_S = 1.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one batch: rows, estimated audio seconds, and the wait for company."""

    max_batch: int
    max_seconds: float
    max_wait_s: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """A chunk in the worker's hands, and when it came into them (same clock as ``now``)."""

    chunk: Chunk
    arrived: float

    @property
    def order(self) -> tuple[float, float, int]:
        return (self.chunk.due, self.arrived, self.chunk.index)


def take(waiting: Sequence[Waiting], now: float, limits: Limits) -> list[Waiting]:
    """Choose the next batch, or nothing if waiting a little may find company.

    The most urgent chunk always goes. Others join in order of urgency while the batch stays
    within its limits and padding stays bounded; only what is due soon joins one that is due.
    """
    if not waiting or wait_until(waiting, now, limits) > now:
        return []
    first, *others = sorted(waiting, key=lambda item: item.order)
    batch = [first]
    seconds = longest = first.chunk.seconds
    for item in others:
        is_later = first.chunk.due <= now and item.chunk.due > now + SOON_S
        if len(batch) == limits.max_batch or is_later:
            # In order of urgency, so whatever follows is later still.
            break
        length = item.chunk.seconds
        total = seconds + length
        padded = max(longest, length) * (len(batch) + 1)
        if total > limits.max_seconds or padded > PADDING_BOUND * total:
            continue
        batch.append(item)
        seconds, longest = total, max(longest, length)
    return batch


def wait_until(waiting: Sequence[Waiting], now: float, limits: Limits) -> float:
    """When the batch should start: ``now``, or a few milliseconds after the oldest arrival.

    One chunk that is due goes at once: nothing says that company is near. Two or more that are
    due mean that listeners are arriving right now, and a short wait then fills the batch. Chunks
    that are not due wait too: the first chunk of their own request may be on the other lane, a
    moment behind them, and would otherwise have to wait for a whole batch.
    """
    due = [item for item in waiting if item.chunk.due <= now]
    if not waiting or len(waiting) >= limits.max_batch or len(due) == 1:
        return now
    return max(now, min(item.arrived for item in due or waiting) + limits.max_wait_s)
