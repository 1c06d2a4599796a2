"""What a worker learns about itself, and tells the others."""

import pytest
import redis

from tasks.delays import exchange
from tasks.messages import Kind
from tasks.pace import MAX_DELAYS, Cost, Pace, work
from tasks.sending import make_chunks
from tasks.throughput import Throughput
from tests.examples import a_chunk, a_job, some_pieces

TRUE = Cost(fixed_s=0.02, s_per_row=0.005, s_per_work=0.008)


def batch(seconds: float, count: int, steps: int = 2) -> list:
    return [a_chunk(str(n), seconds=seconds, steps=steps) for n in range(count)]


def seconds(cost: Cost, chunks: list) -> float:
    return cost.of([work(chunk) for chunk in chunks])


def measured(truth: Cost) -> Cost:
    short, long = 2.0, 15.0
    timings = [truth.of([short]), truth.of([short] * 4), truth.of([long])]
    return Cost.measured(*timings, (short, long))


@pytest.mark.parametrize(
    "chunks", [batch(3.0, 1), batch(2.5, 5), batch(15.0, 3), batch(4.0, 4, steps=10)]
)
def test_three_timings_tell_what_other_batches_take(chunks: list) -> None:
    assert seconds(measured(TRUE), chunks) == pytest.approx(seconds(TRUE, chunks))


def test_timings_that_make_no_sense_give_no_negative_costs() -> None:
    cost = Cost.measured(0.3, 0.2, 0.1, (2.0, 15.0))
    assert cost == Cost(fixed_s=0.3)


def test_a_machine_that_became_slower_is_noticed_in_some_twenty_batches() -> None:
    pace = Pace(measured(TRUE))
    for chunks in [batch(2.0, 2), batch(20.0, 2)] * 12:
        pace.learn(chunks, 3 * seconds(TRUE, chunks))
    assert pace.scale == pytest.approx(3.0, rel=0.15)
    chunks = batch(6.0, 2)
    assert seconds(pace.cost, chunks) == pytest.approx(3 * seconds(TRUE, chunks), rel=0.15)


def test_one_batch_that_hung_is_not_taken_for_the_rule() -> None:
    pace = Pace(measured(TRUE))
    pace.learn(batch(2.0, 2), 60.0)
    assert pace.scale < 1.5


def test_an_engine_that_takes_no_time_costs_nothing() -> None:
    pace = Pace(Cost.measured(0.0, 0.0, 0.0, (2.0, 15.0)))
    pace.learn(batch(2.0, 1), 0.01)
    assert seconds(pace.cost, batch(2.0, 1)) == 0.0


def test_steps_weigh_as_much_as_they_take() -> None:
    two, five = work(a_chunk(seconds=10.0, steps=2)), work(a_chunk(seconds=10.0, steps=5))
    assert two == pytest.approx(10.0)
    # docs/engine.md: 362 ms at 2 steps, 570 at 5.
    assert five / two == pytest.approx(570 / 362, rel=0.1)


def test_delays_add_up_along_a_job() -> None:
    """As a listener lives it: he begins late, hears a long chunk, then waits for the next one."""
    pace = Pace()
    chunks = [
        a_chunk("job", index, count=4, due=due, seconds=2.0, sent_at=100.0)
        for index, due in enumerate((100.0, 102.3, 104.6, 106.9))
    ]
    pace.published(chunks[0], seconds=2.5, now=101.0)  # playing from 101, silent from 103.8
    assert pace.delay(chunks[1]) == pytest.approx(1.5)
    pace.published(chunks[1], seconds=2.0, now=103.0)  # in time
    assert pace.delay(chunks[2]) == pytest.approx(1.5)
    pace.published(chunks[2], seconds=1.0, now=107.1)  # due at 106.1, a second late and shorter
    assert pace.delay(chunks[3]) == pytest.approx(1.5)
    assert pace.delay(a_chunk("job", 3, sent_at=150.0)) == 0.0, "sent again, with new deadlines"


def test_nobody_waits_for_long_jobs_and_for_what_comes_after_the_last_chunk() -> None:
    pace = Pace()
    pace.published(a_chunk("book", 0, count=9, kind=Kind.LONG), seconds=2.0, now=1e9)
    pace.published(a_chunk("job", 2, count=3), seconds=2.0, now=1e9)
    assert not pace.delays and not pace.untold


def test_workers_tell_each_other_how_late_a_listener_is(client: "redis.Redis") -> None:
    one, other = Pace(), Pace()
    chunks = [a_chunk("job", i, count=4, due=100.0, seconds=2.0, sent_at=100.0) for i in range(4)]
    one.published(chunks[0], seconds=2.0, now=101.0)
    exchange(client, one, [])
    exchange(client, other, chunks[1:])
    assert other.delay(chunks[3]) == pytest.approx(1.0)
    other.published(chunks[1], seconds=4.0, now=101.0)
    exchange(client, other, chunks[2:])
    exchange(client, one, chunks[2:])
    assert one.delay(chunks[3]) == other.delay(chunks[3]) == pytest.approx(3.0)
    assert not one.untold and not other.untold
    key = next(client.scan_iter("supertonic:delay:*"))
    assert 0 < client.ttl(key) <= 120


def test_what_is_learned_from_others_is_bounded_too(client: "redis.Redis") -> None:
    pace, teller = Pace(), Pace()
    pace.delays |= {f"old:{n}": 1.0 for n in range(MAX_DELAYS)}
    chunks = [a_chunk(str(n), count=2, due=100.0) for n in range(100)]
    for chunk in chunks:
        teller.published(chunk, seconds=1.0, now=103.0)
    exchange(client, teller, [])
    exchange(client, pace, chunks)
    assert len(pace.delays) == MAX_DELAYS
    assert "old:99" not in pace.delays and "old:100" in pace.delays, "the oldest go first"
    assert all(pace.delay(chunk) == pytest.approx(3.0) for chunk in chunks)


def test_an_idle_worker_asks_redis_nothing(client: "redis.Redis") -> None:
    before = client.info("stats")["total_commands_processed"]
    exchange(client, Pace(), [a_chunk("book", kind=Kind.LONG)])
    assert client.info("stats")["total_commands_processed"] == before + 1


# -- how fast, and how long --------------------------------------------------------------------


def test_without_pressure_the_pace_is_that_of_the_best_size() -> None:
    throughput = Throughput()
    for _ in range(3):
        throughput.add(1, work_s=5.0, busy_s=0.5)
        throughput.add(8, work_s=40.0, busy_s=1.0)
        # One stream on a quick device: what waits is a moment's work.
        throughput.note_pressure(5.0, waiting_s=15.0, ended=0.0)
    assert throughput.value == pytest.approx(40.0)


def test_under_pressure_the_pace_is_what_comes_out_from_one_batch_to_the_next() -> None:
    throughput = Throughput()
    for _ in range(3):
        throughput.add(8, work_s=40.0, busy_s=1.0)
    ended = 0.0
    for _ in range(10):
        throughput.add(2, work_s=10.0, busy_s=0.3)
        throughput.note_pressure(10.0, waiting_s=100.0, ended=ended)
        ended += 0.4  # a quarter of the time goes elsewhere
    assert throughput.value == pytest.approx(25.0)
    throughput.note_pressure(10.0, waiting_s=0.0, ended=ended)
    throughput.note_pressure(10.0, waiting_s=0.0, ended=ended + 3600)
    assert throughput.value == pytest.approx(25.0), "an idle hour says nothing"


def test_how_long_a_voice_speaks_is_learned_and_the_past_fades() -> None:
    pace = Pace()
    assert pace.length_ratio == 1.0
    for _ in range(20):
        pace.learn_length(estimated_s=10.0, spoken_s=8.0)
    assert pace.length_ratio == pytest.approx(0.8)
    for _ in range(600):
        pace.learn_length(estimated_s=10.0, spoken_s=12.0)
    assert pace.length_ratio == pytest.approx(1.2, rel=0.01)
    pace.learn_length(estimated_s=1.0, spoken_s=1e6)
    assert pace.length_ratio == 2.0, "an engine that hums is no voice"


def test_deadlines_follow_the_length_of_the_voice() -> None:
    job, pieces = a_job(count=3), some_pieces(3)
    usual = make_chunks(job, pieces, range(3))
    quick = make_chunks(job, pieces, range(3), length_ratio=0.8)
    assert [chunk.seconds for chunk in quick] == [0.8 * chunk.seconds for chunk in usual]
    pauses = [piece.pause_s for piece in pieces]
    assert quick[2].due - quick[0].due == pytest.approx(
        quick[0].seconds + quick[1].seconds + pauses[0] + pauses[1]
    )
