"""Who is spoken next, and with whom. Pure functions of what waits, what time it is and the pace.

Order is by deadline: the moment a listener needs the first sample. A first chunk is due when it is
sent, the chunk after ten seconds of audio is due ten seconds later, and later still if its
listener got the audio before it late. Long jobs have nobody listening; they get what listeners
leave over, and a turn now and then where that is nothing. docs/scheduling.md says what the rules
were chosen by.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.messages import Chunk, Kind
from tasks.pace import Cost, Pace, work

# No batch is predicted to compute longer than this, unless a single chunk does: it is how long a
# first chunk may find the device taken.
BATCH_S = 0.25
# Where a pass costs much before its first row, that would leave no room for rows, and most of the
# time would go into beginnings. Then it is this many times the beginning.
FIXED_TIMES = 4
# Who would be late after one more batch counts as urgent.
SOON_S = BATCH_S
# With more than this waiting for each core, batches are filled up (`_most_ride_s`).
PRESSURE_S = 1.0
# With more than that due within this time, no core is spared for another's sake (`_give_way`).
AHEAD_S = 10.0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one batch: rows, estimated audio seconds, the wait for company; and the pace."""

    max_batch: int
    max_seconds: float
    max_wait_s: float
    pace: Pace = field(default_factory=Pace)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A chunk in the worker's hands, and when it came into them (same clock as ``now``)."""

    chunk: Chunk
    arrived: float


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A waiting chunk with what the choice looks at."""

    item: Waiting
    due: float
    work: float
    is_low: bool
    urgent_at: float
    is_urgent: bool

    @property
    def is_first(self) -> bool:
        return _is_first(self.item.chunk)

    @property
    def order(self) -> tuple[float, float, int, str]:
        chunk = self.item.chunk
        return (self.due, self.item.arrived, chunk.index, chunk.job_id)


def take(
    waiting: Sequence[Waiting],
    now: float,
    limits: BatchLimits,
    beside: Sequence[Sequence[Chunk]] = (),
) -> list[Waiting]:
    """Choose the next batch, or nothing if waiting a little may find company.

    The most urgent chunk always goes. Others join in order of urgency while the batch stays within
    its limits, and no chunk goes before an earlier one of its job. ``beside`` are the batches
    that other cores speak meanwhile: what is not urgent may have to wait for them (`_give_way`).
    """
    candidates = _candidates(waiting, now, limits)
    going = _give_way(candidates, now, limits, beside)
    if not going or _start_at(going, now, limits) > now:
        return []
    first, *others = sorted(going, key=lambda one: one.order)
    most = _most_rows([first, *others], limits)
    cost = limits.pace.cost
    bound = longest_s(cost)
    batch, passed = [first], set[str]()
    seconds, total_work = first.item.chunk.seconds, first.work
    n_joined, ride_s, most_ride_s = 1, 0.0, _most_ride_s(candidates, most, limits)
    for one in others:
        chunk = one.item.chunk
        if len(batch) == limits.max_batch:
            break
        joins = _joins(first, one) and n_joined < most
        own_s = 0.0 if joins else cost.s_per_row + cost.s_per_work * one.work
        if (
            chunk.job_id in passed
            or not (joins or _may_ride(first, one))
            or ride_s + own_s > most_ride_s
            or seconds + chunk.seconds > limits.max_seconds
            or cost.seconds(len(batch) + 1, total_work + one.work) > bound
        ):
            passed.add(chunk.job_id)
            continue
        batch.append(one)
        seconds, total_work = seconds + chunk.seconds, total_work + one.work
        n_joined, ride_s = n_joined + joins, ride_s + own_s
    return [one.item for one in batch]


def _joins(first: _Candidate, one: _Candidate) -> bool:
    """Whether it is what the batch is made for: no less urgent than the first, and as new."""
    if first.is_urgent and (not one.is_urgent or one.is_low > first.is_low):
        return False
    return one.is_first or not first.is_first


def _may_ride(first: _Candidate, one: _Candidate) -> bool:
    """Whether it may come along because a batch begins anyway, and go without a beginning of its
    own. The others wait for it, so all of these together take no longer than that beginning.
    """
    return not one.is_first and one.is_low <= first.is_low


def _most_ride_s(candidates: Sequence[_Candidate], most: int, limits: BatchLimits) -> float:
    """How much longer a batch may take for those that ride: nothing, unless much is waiting. Only
    then does a beginning saved help anybody. And nothing while more wait for their first sound than
    this batch takes.
    """
    if sum(one.is_first for one in candidates) > most:
        return 0.0
    return limits.pace.cost.fixed_s if _is_much(candidates, limits) else 0.0


def _is_much(candidates: Sequence[_Candidate], limits: BatchLimits) -> bool:
    """Whether it is so much that throughput is what everybody needs most."""
    pace, cost = limits.pace, limits.pace.cost
    works = [one.work for one in candidates if not one.is_low]
    waiting_s = cost.s_per_row * len(works) + cost.s_per_work * sum(works)
    return waiting_s > PRESSURE_S * pace.batches_at_once


def _give_way(
    candidates: Sequence[_Candidate],
    now: float,
    limits: BatchLimits,
    beside: Sequence[Sequence[Chunk]],
) -> Sequence[_Candidate]:
    """Those that may go now. Cores share memory and caches, so a batch on one slows the others. For
    a first chunk somebody waits in silence; what is wanted later leaves it half of the cores until
    it is done, unless there is so much of it that no core can be spared.
    """
    if 2 * len(beside) < limits.pace.batches_at_once:
        return candidates
    if not any(_is_first(chunk) for batch in beside for chunk in batch):
        return candidates
    if _is_much([one for one in candidates if one.due <= now + AHEAD_S], limits):
        return candidates
    return [one for one in candidates if one.is_first or one.is_urgent]


def _is_first(chunk: Chunk) -> bool:
    """Somebody hears nothing yet."""
    return chunk.index == 0 and chunk.kind is not Kind.LONG


def wait_until(
    waiting: Sequence[Waiting],
    now: float,
    limits: BatchLimits,
    beside: Sequence[Sequence[Chunk]] = (),
) -> float:
    """When the batch should start: ``now``, or a few milliseconds after the oldest arrival; or when
    the first of those that give way may wait no longer. If ``beside`` ends before, ask again.

    One chunk that is due goes at once: nothing says that company is near. Two or more mean that
    listeners are arriving right now, and a short wait then fills the batch. Chunks that are not
    due wait too: the first chunk of their own request may be on the other lane, a moment behind
    them, and would otherwise have to wait for a whole batch.
    """
    candidates = _candidates(waiting, now, limits)
    going = _give_way(candidates, now, limits, beside)
    if not going:
        return min((one.urgent_at for one in candidates), default=math.inf)
    return _start_at(going, now, limits)


def _start_at(candidates: Sequence[_Candidate], now: float, limits: BatchLimits) -> float:
    due = [one for one in candidates if one.due <= now]
    if len(candidates) >= limits.max_batch or len(due) == 1:
        return now
    return max(now, min(one.item.arrived for one in due or candidates) + limits.max_wait_s)


def longest_s(cost: Cost) -> float:
    """Bound of a batch's predicted computing, where it is more than a single chunk."""
    return max(BATCH_S, FIXED_TIMES * cost.fixed_s)


def _candidates(waiting: Sequence[Waiting], now: float, limits: BatchLimits) -> list[_Candidate]:
    pace, cost, candidates = limits.pace, limits.pace.cost, []
    for item in waiting:
        chunk = item.chunk
        is_low = chunk.kind is Kind.LONG
        its_work = work(chunk)
        if is_low:
            # Its turn, or whatever listeners leave over.
            urgent_at = pace.low_due
            due = pace.low_due if urgent_at <= now else math.inf
        else:
            due = chunk.due + pace.delay(chunk)
            urgent_at = due - cost.of([its_work]) - SOON_S
        is_urgent = urgent_at <= now
        candidates.append(_Candidate(item, due, its_work, is_low, urgent_at, is_urgent))
    return candidates


def _most_rows(candidates: Sequence[_Candidate], limits: BatchLimits) -> int:
    """How many chunks a batch should hold at most.

    As many as the other limits allow, except where n listeners wait for their first sound. All rows
    of a batch come when the last is done, so a big batch serves the throughput and a small one the
    first in line. With a seconds per batch, b per row and c batches at once, batches of k rows
    serve them after n/(c·k) · (a + b·k) / 2 + (a + b·k) / 2 in the mean, which is least for
    k = √(n·a/(b·c)): many where passes are dear and rows cheap, as on a GPU, few on a CPU.
    """
    first, pace = candidates[0], limits.pace
    if not first.is_first:
        return limits.max_batch
    cost = pace.cost
    row_s = cost.s_per_row + cost.s_per_work * first.work
    n_firsts = sum(one.is_first for one in candidates) / pace.batches_at_once
    if n_firsts * cost.fixed_s >= row_s * limits.max_batch**2:
        return limits.max_batch
    return max(1, round(math.sqrt(n_firsts * cost.fixed_s / row_s)))
