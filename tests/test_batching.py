"""Who is spoken next: properties of the schedule, for any mix of chunks, clocks and limits."""

import math
import random

from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.batching import (
    AHEAD_S,
    BATCH_S,
    PRESSURE_S,
    SOON_S,
    BatchLimits,
    Waiting,
    take,
    wait_until,
)
from tasks.messages import Kind
from tasks.pace import LOW_SHARE, Cost, Pace, work
from tests.examples import a_chunk, waiting_chunk

NOW = 1000.0
AT_ONCE = BatchLimits(max_batch=8, max_seconds=1000.0, max_wait_s=0.0)

costs = st.builds(
    Cost,
    fixed_s=st.floats(0, 0.5),
    s_per_row=st.floats(0, 0.1),
    s_per_work=st.floats(0, 0.2),
)
paces = st.builds(
    Pace,
    measured=costs,
    batches_at_once=st.integers(1, 4),
    scale=st.floats(0.5, 2),
    low_due=st.floats(NOW - 10, NOW + 10),
)
limits = st.builds(
    BatchLimits,
    max_batch=st.integers(1, 12),
    max_seconds=st.floats(1, 200),
    max_wait_s=st.floats(0, 0.2),
    pace=paces,
)
a_waiting = st.builds(
    waiting_chunk,
    job_id=st.sampled_from(["a", "b", "c"]),
    index=st.integers(0, 20),
    # Far away, or within the wait.
    due=st.floats(NOW - 100, NOW + 100) | st.floats(NOW - 0.2, NOW + 0.2),
    seconds=st.floats(0.1, 60),
    steps=st.integers(1, 10),
    kind=st.sampled_from([Kind.STREAM, Kind.STREAM, Kind.LONG]),
    arrived=st.floats(NOW - 0.1, NOW),
)
# The same chunk may wait twice: it was sent again because it seemed lost.
some = st.lists(a_waiting, min_size=1, max_size=30)


def start_of(waiting: list[Waiting], bounds: BatchLimits) -> float:
    return wait_until(waiting, NOW, bounds)


def batch_of(waiting: list[Waiting], bounds: BatchLimits) -> list[Waiting]:
    """The batch of a worker that waited as long as it was told to, and a little more."""
    return take(waiting, NOW + 1.0, bounds)


def without(waiting: list[Waiting], batch: list[Waiting]) -> list[Waiting]:
    taken = {id(item) for item in batch}
    return [item for item in waiting if id(item) not in taken]


@given(some, limits)
def test_taking_again_and_again_leaves_nobody_behind(waiting: list, bounds: BatchLimits) -> None:
    for _ in range(len(waiting)):
        waiting = without(waiting, batch_of(waiting, bounds))
    assert waiting == []


@given(some, limits)
def test_a_batch_is_made_of_waiting_chunks_each_once(waiting: list, bounds: BatchLimits) -> None:
    batch = batch_of(waiting, bounds)
    taken = [id(item) for item in batch]
    assert len(set(taken)) == len(taken)
    assert set(taken) <= {id(item) for item in waiting}


def due_of(item: Waiting, bounds: BatchLimits, now: float = NOW) -> float:
    """When a chunk is due, by its listener or by its job's turn."""
    turn = bounds.pace.low_due
    if item.chunk.kind is Kind.LONG:
        return turn if turn <= now else math.inf
    return item.chunk.due


@given(some, limits)
def test_the_most_urgent_chunk_always_goes(waiting: list, bounds: BatchLimits) -> None:
    soonest = min(due_of(item, bounds, NOW + 1.0) for item in waiting)
    assert due_of(batch_of(waiting, bounds)[0], bounds, NOW + 1.0) == soonest


@given(some, limits)
def test_a_batch_stays_within_its_limits(waiting: list, bounds: BatchLimits) -> None:
    lengths = [item.chunk.seconds for item in batch_of(waiting, bounds)]
    assert len(lengths) <= bounds.max_batch
    # One chunk alone may be longer than a batch should be: it has to be spoken somehow.
    assert len(lengths) == 1 or sum(lengths) <= bounds.max_seconds + 1e-9


@given(some, limits)
def test_nobody_is_begun_behind_a_batch_longer_than_its_bound(
    waiting: list, bounds: BatchLimits
) -> None:
    """What a first chunk that comes a moment later has to wait for."""
    cost = bounds.pace.cost
    works = [work(item.chunk) for item in batch_of(waiting, bounds)]
    at_most = max(BATCH_S, 4 * cost.fixed_s, cost.of([max(works)]))
    assert cost.of(works) <= at_most + 1e-9


@given(some, limits)
def test_no_chunk_goes_before_an_earlier_one_of_its_job(waiting: list, bounds: BatchLimits) -> None:
    in_order = sorted(waiting, key=lambda item: item.chunk.due)
    chunks = [
        waiting_chunk(
            item.chunk.job_id,
            index=index,
            due=item.chunk.due,
            seconds=item.chunk.seconds,
            kind=item.chunk.kind,
            arrived=NOW - 0.1,
        )
        for index, item in enumerate(in_order)
    ]
    left = chunks
    begun: list[Waiting] = []
    while left:
        batch = batch_of(left, bounds)
        left = without(left, batch)
        begun += batch
        for item in batch:
            job = (item.chunk.job_id, item.chunk.kind)
            behind = [x for x in left if (x.chunk.job_id, x.chunk.kind) == job]
            assert all(item.chunk.index < other.chunk.index for other in behind)
    assert len(begun) == len(waiting)


@given(some, limits)
def test_the_order_of_the_list_does_not_matter(waiting: list, bounds: BatchLimits) -> None:
    assume(len({(i.chunk.due, i.arrived, i.chunk.index) for i in waiting}) == len(waiting))
    assume(len({(i.arrived, i.chunk.index) for i in waiting}) == len(waiting))
    batch = batch_of(waiting, bounds)
    random.Random(len(waiting)).shuffle(waiting)
    assert batch_of(waiting, bounds) == batch


@given(some, limits)
def test_waiting_ends_within_its_limit_after_the_last_arrival(
    waiting: list, bounds: BatchLimits
) -> None:
    """A chunk may become due during the wait and change it, so the worker asks again and again."""
    now, asked = NOW, 0
    while not take(waiting, now, bounds):
        promised = wait_until(waiting, now, bounds)
        assert promised > now, "not taken, so there is something to wait for"
        now, asked = promised, asked + 1
    assert now <= max(NOW, max(item.arrived for item in waiting) + bounds.max_wait_s)
    assert asked <= len(waiting) + 1


@given(a_waiting, limits)
def test_a_lone_chunk_waits_only_if_it_is_not_due(item: Waiting, bounds: BatchLimits) -> None:
    assert take([item], max(NOW + 0.2, due_of(item, bounds, NOW + 10)), bounds) == [item]
    latest = max(NOW, item.arrived + bounds.max_wait_s)
    assert take([item], latest, bounds) == [item]


@given(a_waiting, some, limits)
def test_one_chunk_that_is_due_never_waits_for_those_that_are_not(
    item: Waiting, others: list, bounds: BatchLimits
) -> None:
    others = [other for other in others if due_of(other, bounds) > NOW]
    assume(due_of(item, bounds) <= NOW)
    assert take([*others, item], NOW, bounds)[0] is item


@given(some, limits)
def test_a_full_batch_never_waits(waiting: list, bounds: BatchLimits) -> None:
    assume(len(waiting) >= bounds.max_batch)
    assert take(waiting, NOW, bounds)


@given(some, limits)
def test_whoever_is_due_is_hardly_held_up_by_what_is_wanted_later(
    waiting: list, bounds: BatchLimits
) -> None:
    batch = take(waiting, NOW, bounds)
    assume(batch and due_of(batch[0], bounds) <= NOW)
    cost, ride_s = bounds.pace.cost, 0.0
    for item in batch:
        own_s = cost.of([work(item.chunk)])
        if due_of(item, bounds) - own_s > NOW + SOON_S:
            ride_s += own_s - cost.fixed_s
        # Long jobs have turns of their own.
        assert item.chunk.kind is batch[0].chunk.kind or batch[0].chunk.kind is Kind.LONG
    assert ride_s <= cost.fixed_s + 1e-9
    if seconds_waiting(waiting, cost) < PRESSURE_S:
        assert ride_s == 0


def seconds_waiting(waiting: list, cost: Cost) -> float:
    """On one core, all in one batch."""
    works = [work(item.chunk) for item in waiting if item.chunk.kind is not Kind.LONG]
    return cost.seconds(len(works), sum(works))


def test_a_first_chunk_takes_others_along_only_while_much_is_waiting() -> None:
    """One of 6 s of sound takes as long as a beginning does."""
    pace = Pace(measured=Cost(fixed_s=0.03, s_per_work=0.005), batches_at_once=2)
    bounds = BatchLimits(32, 160.0, 0.0, pace)

    def chunk(name: int, index: int, due: float, seconds: float) -> Waiting:
        return waiting_chunk(str(name), index, due=due, seconds=seconds, steps=2, arrived=NOW - 9)

    first = chunk(1000, 0, NOW, 2.0)
    later = [chunk(n, 1, NOW + 9 - n / 100, 6.0) for n in range(100)]
    assert pace.cost.of([6.0] * 60) < 2 * PRESSURE_S < pace.cost.of([6.0] * 70)
    assert take([first, *later[:60]], NOW, bounds) == [first]
    assert take([first, *later[:70]], NOW, bounds) == [first, later[69]]
    # Where more are waiting for their first sound, nobody else rides.
    burst = [chunk(1000 + n, 0, NOW, 2.0) for n in range(8)]
    assert take([*burst, *later], NOW, bounds) == burst[:3]


@given(some, some, limits)
def test_whoever_hears_nothing_yet_or_is_soon_due_lets_nobody_finish(
    waiting: list, beside: list, bounds: BatchLimits
) -> None:
    chunks = [item.chunk for item in beside]
    batches = [[chunk] for chunk in chunks]
    cost, low_due = bounds.pace.cost, bounds.pace.low_due
    start_at = wait_until(waiting, NOW, bounds, batches)
    assert (start_at > NOW) == (not take(waiting, NOW, bounds, batches))
    latest = max(NOW, max(item.arrived for item in waiting) + bounds.max_wait_s)
    for item in waiting:
        chunk = item.chunk
        urgent_at = chunk.due - cost.of([work(chunk)]) - SOON_S
        if chunk.kind is Kind.LONG:
            assert start_at <= max(latest, low_due)
        else:
            assert start_at <= max(latest, urgent_at if chunk.index else NOW)
    if not any(chunk.index == 0 and chunk.kind is not Kind.LONG for chunk in chunks):
        assert start_at == start_of(waiting, bounds)


def test_a_second_chunk_lets_the_first_one_finish_on_the_other_core() -> None:
    """It is wanted when the first one has been heard; until shortly before it leaves memory and
    caches to it, unless there is so much to do within the next seconds that both cores are needed.
    """
    pace = Pace(measured=Cost(fixed_s=0.02, s_per_row=0.01, s_per_work=0.01), batches_at_once=2)
    bounds = BatchLimits(32, 160.0, 0.005, pace)
    first = a_chunk("a", index=0, due=NOW, seconds=2.0)
    second = waiting_chunk("a", 1, due=NOW + 2.0, seconds=5.0, steps=2, arrived=NOW - 1)
    last = waiting_chunk("a", 2, due=NOW + 7.0, seconds=15.0, steps=2, arrived=NOW - 1)
    mine = [second, last]
    assert take(mine, NOW, bounds) == mine
    assert take(mine, NOW, bounds, [[first]]) == []
    urgent_at = NOW + 2.0 - 0.08 - SOON_S
    assert math.isclose(wait_until(mine, NOW, bounds, [[first]]), urgent_at)
    assert take(mine, urgent_at + 0.001, bounds, [[first]]) == [second]
    assert take(mine, NOW, bounds, [[second.chunk]]) == mine
    # Whoever hears nothing yet does not wait, nor does a long job whose turn it is.
    other = waiting_chunk("b", 0, due=NOW, seconds=2.0, steps=2)
    assert take([*mine, other], NOW, bounds, [[first]]) == [other]
    book = waiting_chunk("book", 0, kind=Kind.LONG, seconds=20.0)
    assert take([*mine, book], NOW, bounds, [[first]]) == [book]
    pace.low_due = NOW + 1
    assert take([*mine, book], NOW, bounds, [[first]]) == []

    # 14 · (0.01 + 0.15) s
    def crowd(size: int, due: float) -> list[Waiting]:
        later = {"due": due, "seconds": 15.0, "steps": 2, "arrived": NOW - 1}
        return [waiting_chunk(f"{n}", 2, **later) for n in range(size)]

    assert take(crowd(12, NOW + AHEAD_S - 1), NOW, bounds, [[first]]) == []
    assert take(crowd(14, NOW + AHEAD_S - 1), NOW, bounds, [[first]])
    assert take(crowd(30, NOW + AHEAD_S + 1), NOW, bounds, [[first]]) == []
    # Half of the cores are enough for it.
    pace.batches_at_once = 4
    assert take(mine, NOW, bounds, [[first]]) == mine
    assert take(mine, NOW, bounds, [[first], [second.chunk]]) == []


def test_a_first_chunk_waits_for_the_running_batch_and_one_turn_of_a_long_job_at_most() -> None:
    """A worker's afternoon by a clock of its own: long jobs always wait, listeners come and go."""
    dice = random.Random(4)
    pace = Pace(measured=Cost(fixed_s=0.02, s_per_work=0.013))
    bounds = BatchLimits(max_batch=32, max_seconds=160.0, max_wait_s=0.0, pace=pace)
    one_chunk_s = pace.cost.of([20.0])
    waiting: list[Waiting] = []
    now, longest_wait, n_first, low_s = NOW, 0.0, 0, 0.0
    arrivals = [NOW + 3.0 * number + dice.random() for number in range(100)]
    while arrivals:
        while arrivals and arrivals[0] <= now:
            at, n_first = arrivals.pop(0), n_first + 1
            waiting.append(waiting_chunk(f"{n_first}", due=at, seconds=2.0, arrived=at))
            later = [(1, at + 2.0, 4.0), (2, at + 6.0, 19.0)]
            for index, due, seconds in later:
                waiting.append(
                    waiting_chunk(f"{n_first}", index, due=due, seconds=seconds, arrived=at)
                )
        waiting += [
            waiting_chunk("book", index, seconds=20.0, kind=Kind.LONG, arrived=now)
            for index in range(4 - sum(item.chunk.kind is Kind.LONG for item in waiting))
        ]
        batch = take(waiting, now, bounds)
        waiting = without(waiting, batch)
        pace.took([item.chunk for item in batch], now)
        firsts = [item for item in batch if item.chunk.job_id != "book" and item.chunk.index == 0]
        longest_wait = max([longest_wait, *(now - item.arrived for item in firsts)])
        now += pace.cost.of([work(item.chunk) for item in batch])
        low_s += any(item.chunk.kind is Kind.LONG for item in batch)
    running = max(BATCH_S, one_chunk_s)
    assert one_chunk_s / 2 < longest_wait <= running + one_chunk_s + 1e-9
    assert low_s > 100


def test_a_long_job_gets_its_share_however_many_listen() -> None:
    pace = Pace(measured=Cost(fixed_s=0.0, s_per_work=0.01))
    bounds = BatchLimits(max_batch=32, max_seconds=160.0, max_wait_s=0.0, pace=pace)
    now, of_job_s = NOW, 0.0
    for _ in range(2000):
        waiting = [waiting_chunk(str(n), due=now, seconds=20.0) for n in range(5)]
        waiting.append(waiting_chunk("book", seconds=20.0, kind=Kind.LONG))
        batch = [item.chunk for item in take(waiting, now, bounds)]
        pace.took(batch, now)
        seconds = pace.cost.of([work(chunk) for chunk in batch])
        of_job_s += seconds * (batch[0].kind is Kind.LONG)
        now += seconds
    share = of_job_s / (now - NOW)
    assert 0.8 * LOW_SHARE < share < 1.2 * LOW_SHARE


def test_a_long_job_takes_what_listeners_leave_over() -> None:
    pace = Pace(measured=Cost(0.0, 0.0, 0.01), low_due=NOW + 1)
    bounds = BatchLimits(max_batch=32, max_seconds=160.0, max_wait_s=0.0, pace=pace)
    book = waiting_chunk("book", seconds=20.0, kind=Kind.LONG)
    much_later = waiting_chunk("a", 5, due=NOW + 300, seconds=20.0)
    assert take([book, much_later], NOW, bounds) == [much_later]
    assert take([book], NOW, bounds) == [book]
    assert take([book, much_later], NOW + 2, bounds) == [book]


def test_a_burst_goes_as_one_batch_where_passes_are_dear_and_in_small_ones_where_they_are_not() -> (
    None
):
    burst = [
        waiting_chunk(str(n), due=NOW, seconds=2.0, steps=2, arrived=NOW - 1) for n in range(20)
    ]

    def size(cores: int = 1, **cost: float) -> int:
        pace = Pace(measured=Cost(**cost), batches_at_once=cores)
        return len(take(burst, NOW, BatchLimits(32, 160.0, 0.005, pace)))

    assert size(fixed_s=0.03, s_per_work=0.0005) == 20  # a GPU
    assert size(fixed_s=0.008, s_per_work=0.0005) == 13  # a small model: √(20 · 8 / 1)
    assert size(fixed_s=0.02, s_per_work=0.014) == 4  # √(20 · 20 / 28)
    assert size(fixed_s=0.02, s_per_work=0.014, cores=2) == 3  # the other core has as many
    assert size(fixed_s=0.0, s_per_work=0.014) == 1


def test_who_hears_something_already_is_served_in_full_batches() -> None:
    late = [waiting_chunk(str(n), 1, due=NOW - 1, seconds=2.0, steps=2) for n in range(20)]
    pace = Pace(measured=Cost(fixed_s=0.02, s_per_work=0.007))
    batch = take(late, NOW, BatchLimits(32, 160.0, 0.005, pace))
    assert len(batch) == 16  # 0.02 + 0.007 · 2 · 16 = 0.244 s


def test_chunks_of_many_steps_make_smaller_batches() -> None:
    def size(steps: int) -> int:
        later = [waiting_chunk(str(n), 1, due=NOW + 50, seconds=3, steps=steps) for n in range(20)]
        pace = Pace(measured=Cost(fixed_s=0.01, s_per_work=0.01))
        return len(take(later, NOW, BatchLimits(32, 160.0, 0.0, pace)))

    assert (size(2), size(10), size(50)) == (8, 3, 1)


def test_a_listener_who_heard_the_first_chunk_late_needs_the_next_one_later() -> None:
    pace = Pace()
    bounds = BatchLimits(1, 100.0, 0.0, pace)
    late = waiting_chunk("late", index=1, count=3, due=NOW + 1)
    other = waiting_chunk("other", index=1, count=3, due=NOW + 2)
    assert take([late, other], NOW, bounds) == [late]
    first = a_chunk("late", count=3, due=NOW - 1, seconds=2.0, sent_at=late.chunk.sent_at)
    pace.published(first, seconds=2.0, now=NOW + 4)
    assert take([late, other], NOW + 4, bounds) == [other]


def test_nothing_comes_of_nothing() -> None:
    assert take([], NOW, AT_ONCE) == []


def test_two_chunks_wait_for_company_since_the_first_arrived() -> None:
    pair = [waiting_chunk("a", arrived=NOW - 0.004), waiting_chunk("b", arrived=NOW)]
    bounds = BatchLimits(max_batch=8, max_seconds=100.0, max_wait_s=0.005)
    assert take(pair, NOW, bounds) == []
    assert take(pair, NOW + 0.002, bounds) == pair


def test_a_first_chunk_goes_before_one_that_came_earlier_and_is_due_later() -> None:
    later = waiting_chunk("early bird", index=5, due=NOW + 10, arrived=NOW - 1)
    first = waiting_chunk("late comer", index=0, due=NOW, arrived=NOW)
    alone = BatchLimits(max_batch=1, max_seconds=100.0, max_wait_s=0.0)
    assert take([later, first], NOW, alone) == [first]


def test_chunks_of_equal_urgency_go_in_order_of_arrival_and_index() -> None:
    first = waiting_chunk("a", index=3, arrived=NOW - 2)
    second = waiting_chunk("a", index=1, arrived=NOW - 1)
    third = waiting_chunk("a", index=2, arrived=NOW - 1)
    assert take([third, second, first], NOW, AT_ONCE) == [first, second, third]


def test_a_chunk_too_long_for_the_batch_lets_shorter_ones_pass() -> None:
    first, second = waiting_chunk("a", due=NOW - 2), waiting_chunk("c", due=NOW)
    long = waiting_chunk("b", due=NOW - 1, seconds=50.0)
    assert take([first, long, second], NOW, BatchLimits(8, 10.0, 0.0)) == [first, second]
