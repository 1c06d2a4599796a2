"""Who is spoken next: properties of the schedule, for any mix of chunks, clocks and limits."""

from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.batching import PADDING_BOUND, SOON_S, Limits, Waiting, take, wait_until
from tests.examples import waiting_chunk

NOW = 1000.0
AT_ONCE = Limits(max_batch=8, max_seconds=1000.0, max_wait_s=0.0)

limits = st.builds(
    Limits,
    max_batch=st.integers(1, 12),
    max_seconds=st.floats(1, 200),
    max_wait_s=st.floats(0, 0.2),
)
a_waiting = st.builds(
    waiting_chunk,
    job_id=st.sampled_from(["a", "b", "c"]),
    index=st.integers(0, 20),
    # Far away, or within the wait.
    due=st.floats(NOW - 100, NOW + 100) | st.floats(NOW - 0.2, NOW + 0.2),
    seconds=st.floats(0.1, 60),
    arrived=st.floats(NOW - 0.1, NOW),
)
# The same chunk may wait twice: it was sent again because it seemed lost.
some = st.lists(a_waiting, min_size=1, max_size=30)


def start_of(waiting: list[Waiting], bounds: Limits) -> float:
    return wait_until(waiting, NOW, bounds)


def batch_of(waiting: list[Waiting], bounds: Limits) -> list[Waiting]:
    """The batch of a worker that waited as long as it was told to, and a little more."""
    return take(waiting, NOW + 1.0, bounds)


def without(waiting: list[Waiting], batch: list[Waiting]) -> list[Waiting]:
    taken = {id(item) for item in batch}
    return [item for item in waiting if id(item) not in taken]


@given(some, limits)
def test_taking_again_and_again_leaves_nobody_behind(waiting: list, bounds: Limits) -> None:
    for _ in range(len(waiting)):
        waiting = without(waiting, batch_of(waiting, bounds))
    assert waiting == []


@given(some, limits)
def test_a_batch_is_made_of_waiting_chunks_each_once(waiting: list, bounds: Limits) -> None:
    batch = batch_of(waiting, bounds)
    taken = [id(item) for item in batch]
    assert len(set(taken)) == len(taken)
    assert set(taken) <= {id(item) for item in waiting}


@given(some, limits)
def test_the_most_urgent_chunk_always_goes(waiting: list, bounds: Limits) -> None:
    soonest = min(item.chunk.due for item in waiting)
    assert batch_of(waiting, bounds)[0].chunk.due == soonest


@given(some, limits)
def test_a_batch_stays_within_its_limits(waiting: list, bounds: Limits) -> None:
    lengths = [item.chunk.seconds for item in batch_of(waiting, bounds)]
    assert len(lengths) <= bounds.max_batch
    # One chunk alone may be longer than a batch should be: it has to be spoken somehow.
    assert len(lengths) == 1 or sum(lengths) <= bounds.max_seconds + 1e-9


@given(some, limits)
def test_padding_costs_no_more_than_its_bound(waiting: list, bounds: Limits) -> None:
    lengths = [item.chunk.seconds for item in batch_of(waiting, bounds)]
    assert max(lengths) * len(lengths) <= PADDING_BOUND * sum(lengths) + 1e-9


@given(some, limits)
def test_nobody_who_fits_is_left_out_while_a_less_urgent_one_goes(
    waiting: list, bounds: Limits
) -> None:
    """Chunks of one length differ in nothing but urgency, so the batch is the urgent end."""
    same = [waiting_chunk(due=item.chunk.due, arrived=item.arrived) for item in waiting]
    batch = batch_of(same, bounds)
    left = without(same, batch)
    # With equal urgency between them, either may go.
    assert not left or max(item.order for item in batch) <= min(item.order for item in left)


@given(some, limits)
def test_the_order_of_the_list_does_not_matter(waiting: list, bounds: Limits) -> None:
    assume(len({item.order for item in waiting}) == len(waiting))
    assert batch_of(waiting, bounds) == batch_of(waiting[::-1], bounds)


@given(some, limits)
def test_waiting_ends_within_its_limit_after_the_last_arrival(
    waiting: list, bounds: Limits
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
def test_a_lone_chunk_waits_only_if_it_is_not_due(item: Waiting, bounds: Limits) -> None:
    assert take([item], max(NOW, item.chunk.due), bounds) == [item]
    latest = max(NOW, item.arrived + bounds.max_wait_s)
    assert take([item], latest, bounds) == [item]


@given(a_waiting, some, limits)
def test_one_chunk_that_is_due_never_waits_for_those_that_are_not(
    item: Waiting, others: list, bounds: Limits
) -> None:
    others = [other for other in others if other.chunk.due > NOW]
    assume(item.chunk.due <= NOW)
    assert take([*others, item], NOW, bounds)[0] is item


@given(some, limits)
def test_a_full_batch_never_waits(waiting: list, bounds: Limits) -> None:
    assume(len(waiting) >= bounds.max_batch)
    assert take(waiting, NOW, bounds)


@given(some, limits)
def test_whoever_is_due_is_not_held_up_by_what_is_wanted_later(
    waiting: list, bounds: Limits
) -> None:
    batch = take(waiting, NOW, bounds)
    assume(batch and batch[0].chunk.due <= NOW)
    assert max(item.chunk.due for item in batch) <= NOW + SOON_S


def test_nothing_comes_of_nothing() -> None:
    assert take([], NOW, AT_ONCE) == []


def test_two_chunks_wait_for_company_since_the_first_arrived() -> None:
    pair = [waiting_chunk("a", arrived=NOW - 0.004), waiting_chunk("b", arrived=NOW)]
    bounds = Limits(max_batch=8, max_seconds=100.0, max_wait_s=0.005)
    assert take(pair, NOW, bounds) == []
    assert take(pair, NOW + 0.002, bounds) == pair


def test_a_first_chunk_goes_before_one_that_came_earlier_and_is_due_later() -> None:
    later = waiting_chunk("early bird", index=5, due=NOW + 10, arrived=NOW - 1)
    first = waiting_chunk("late comer", index=0, due=NOW, arrived=NOW)
    alone = Limits(max_batch=1, max_seconds=100.0, max_wait_s=0.0)
    assert take([later, first], NOW, alone) == [first]


def test_a_long_job_has_its_turn_once_its_patience_is_over() -> None:
    """Listeners never stop coming, and yet the job moves."""
    patient = waiting_chunk("book", due=NOW + 30)
    alone = Limits(max_batch=1, max_seconds=100.0, max_wait_s=0.0)
    for second in range(29):
        now = NOW + second
        assert take([patient, waiting_chunk(due=now)], now, alone) != [patient]
    assert take([patient, waiting_chunk(due=NOW + 31)], NOW + 31, alone) == [patient]


def test_chunks_of_equal_urgency_go_in_order_of_arrival_and_index() -> None:
    first = waiting_chunk("a", index=3, arrived=NOW - 2)
    second = waiting_chunk("a", index=1, arrived=NOW - 1)
    third = waiting_chunk("a", index=2, arrived=NOW - 1)
    assert take([third, second, first], NOW, AT_ONCE) == [first, second, third]


def test_a_chunk_too_long_for_the_batch_lets_shorter_ones_pass() -> None:
    first, second = waiting_chunk("a", due=NOW - 2), waiting_chunk("c", due=NOW)
    long = waiting_chunk("b", due=NOW - 1, seconds=50.0)
    assert take([first, long, second], NOW, AT_ONCE) == [first, second]
