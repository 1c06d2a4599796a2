"""Counters and histograms that several processes add up in Redis, and what a scrape shows."""

import threading
import time
from collections.abc import Generator

import pytest
import redis

from app.delivery import ListenerWatch, Playback
from app.follow import Ended, Item, Quiet, Spoken
from supertonic.cores import usable_cores
from tasks.events import connect
from tasks.measures import (
    ALL,
    BATCH_SIZE,
    HTTP,
    KEY,
    UNDERRUN,
    Meter,
    empty,
    read,
    readings,
    worker_key,
)
from tasks.messages import State
from tests.examples import a_job
from tests.exposition import read_metrics, value
from tests.stack import Stack, wait_for


@pytest.fixture
def client(stack: Stack) -> redis.Redis:
    stack.start_redis()
    return connect(stack.redis_url)


def test_what_several_processes_observe_is_added_up(client: redis.Redis) -> None:
    for sizes in ((1, 2), (2, 200)):
        meter = Meter()
        for size in sizes:
            meter.observe(BATCH_SIZE, size)
        meter.send(client)
    (stored,) = read(client)
    reading = readings(BATCH_SIZE, stored)[()]
    assert reading.total == 205
    assert dict(reading.buckets)["1.0"] == 1
    assert dict(reading.buckets)["2.0"] == 3  # a bound belongs to its bucket
    assert dict(reading.buckets)["128.0"] == 3
    assert reading.buckets[-1] == ("+Inf", 4)


def test_a_worker_has_its_own_share_which_does_not_stay_for_ever(client: redis.Redis) -> None:
    for name, size in (("one", 4), ("two", 8)):
        meter = Meter()
        meter.observe(BATCH_SIZE, size)
        meter.count(HTTP, "GET", "/x", "200")
        meter.send(client, name)
    whole, one, two = read(client, ["one", "two"])
    assert [readings(BATCH_SIZE, stored)[()].total for stored in (whole, one, two)] == [12, 4, 8]
    assert readings(HTTP, whole)["GET", "/x", "200"].total == 2
    assert not readings(HTTP, one), "only what is asked of single workers is kept for them"
    assert client.ttl(KEY) == -1
    assert 0 < client.ttl(worker_key("one")) <= 600


def test_a_delivery_whose_reply_is_lost_is_counted_once(client: redis.Redis) -> None:
    class ReplyLost:
        """Redis does what it is told, but the first answer does not arrive."""

        calls = 0

        def eval(self, *args: object) -> None:
            client.eval(*args)
            self.calls += 1
            if self.calls == 1:
                raise redis.ConnectionError("lost")

    meter, line = Meter(), ReplyLost()
    meter.observe(BATCH_SIZE, 3)
    with pytest.raises(redis.ConnectionError):
        meter.send(line)
    meter.observe(BATCH_SIZE, 5)
    meter.send(line)
    assert line.calls == 3
    assert readings(BATCH_SIZE, read(client)[0])[()].total == 8


def test_what_redis_did_not_take_is_kept(client: redis.Redis, stack: Stack) -> None:
    meter = Meter()
    meter.observe(BATCH_SIZE, 3)
    stack.stop("redis")
    with pytest.raises(redis.RedisError):
        meter.send(client)
    stack.start_redis()
    meter.send(client)
    assert readings(BATCH_SIZE, read(client)[0])[()].total == 3


def test_counting_from_many_threads_loses_nothing(client: redis.Redis) -> None:
    meter = Meter()

    def work() -> None:
        for _ in range(1000):
            meter.observe(BATCH_SIZE, 1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        meter.send(client)
    meter.send(client)
    assert readings(BATCH_SIZE, read(client)[0])[()].total == 8000


def test_buckets_of_an_older_version_go_to_the_next_larger_one() -> None:
    stored = {"batch_chunks|3": 2.0, "batch_chunks|500": 1.0, "batch_chunks|sum": 506.0}
    reading = readings(BATCH_SIZE, stored)[()]
    assert dict(reading.buckets)["2.0"] == 0 and dict(reading.buckets)["4.0"] == 2
    assert reading.buckets[-1] == ("+Inf", 3)


def test_measures_are_well_formed() -> None:
    assert len({measure.name for measure in ALL}) == len(ALL)
    for measure in ALL:
        assert list(measure.bounds) == sorted(set(measure.bounds))
        assert empty(measure).total == 0
    assert UNDERRUN.bounds[:3] == (0, 0.05, 0.1), "gapless, C50 and C100 are read off its buckets"


# -- the listener's silence --------------------------------------------------------------------


def test_a_chunk_that_comes_after_the_sound_before_it_makes_a_gap() -> None:
    playback = Playback()
    playback.add(now=10.0, seconds=2.0, waited_s=1.0)
    playback.add(now=11.5, seconds=1.0, waited_s=1.5)  # plays from 12 to 13
    assert playback.underrun_s == 0
    playback.add(now=13.4, seconds=1.0, waited_s=1.9)  # plays from 13.4 to 14.4
    playback.add(now=14.5, seconds=1.0, waited_s=1.1)
    assert playback.underrun_s == pytest.approx(0.4)


def test_a_client_that_reads_slowly_makes_its_own_gaps() -> None:
    playback = Playback()
    playback.add(now=10.0, seconds=2.0, waited_s=1.0)
    # The chunk was there at once when we asked for it, but writing the one before took 9 s.
    playback.add(now=19.0, seconds=2.0, waited_s=0.001)
    assert playback.underrun_s == pytest.approx(0.001)


def test_a_long_silence_counts_whole_though_a_sign_of_life_comes_every_second() -> None:
    job, now = a_job(count=2), 10.0

    def items() -> Generator[Item, None, None]:
        nonlocal now
        half_a_second = job.sample_rate // 2
        yield Spoken(0, "one", b"", half_a_second, {})
        for _ in range(3):
            now += 1.0
            yield Quiet()
        now += 0.25
        yield Spoken(1, "two", b"", half_a_second, {})
        yield Ended(State.DONE)

    watch = ListenerWatch(job, Meter(), True, clock=lambda: now)
    for item in watch.watch(items()):
        if isinstance(item, Quiet):
            now += 0.5  # writing the sign of life: the client's silence, not ours
    assert watch.playback.underrun_s == pytest.approx(3.25)


# -- what a scrape shows -----------------------------------------------------------------------


def scrape(stack: Stack) -> dict:
    return read_metrics(stack.get("/metrics?format=prometheus").text)


MISTAKE = {"method": "POST", "route": "/synthesize", "status": "422"}
NOWHERE = {"route": "none", "status": "404"}
BATCHES = ("batch_chunks", "worker_batch_chunks")
ENGINE_S, BUSY = "supertonic_engine_seconds_sum", "supertonic_worker_busy_seconds_total"


def so_far(families: dict, series: str, **labels: str) -> float:
    """One sample, 0 while there is none."""
    samples = [sample for family in families.values() for sample in family.samples]
    return sum(s.value for s in samples if s.name == series and labels.items() <= s.labels.items())


def test_the_exposition_keeps_every_rule_and_counts_what_happened(stack: Stack) -> None:
    stack.start_all()
    fresh = scrape(stack)
    assert value(fresh, "supertonic_first_audio_seconds_count") == 0
    text = "One sentence that is short. " * 12
    with stack.stream({"text": text}) as response:
        assert b"event: done" in response.content
    assert stack.post("/synthesize", {"text": "Hello."}).status_code == 200
    assert stack.post("/synthesize", {"text": ""}).status_code == 422
    assert stack.get("/nothing/here").status_code == 404

    missing: list[str] = []

    def settled() -> dict | None:
        # Two web processes and a worker, each with its own clock for sending.
        families = scrape(stack)
        counts = [
            (2, "supertonic_first_published_seconds_count", {}),
            (1, "supertonic_stream_underrun_seconds_count", {}),
            (1, "supertonic_http_requests_total", MISTAKE),
            (1, "supertonic_http_requests_total", NOWHERE),
        ]
        chunks = value(families, "supertonic_chunks_total")
        counts += [(chunks, f"supertonic_{name}_sum", {}) for name in BATCHES]
        missing[:] = [
            series for n, series, which in counts if so_far(families, series, **which) < n
        ]
        if so_far(families, BUSY) < 0.9 * so_far(families, ENGINE_S) / usable_cores():
            missing.append(BUSY)
        return None if missing else families

    try:
        families = wait_for(settled, 20)
    except AssertionError:
        pytest.fail(f"did not arrive: {missing}")
    chunks = value(families, "supertonic_chunks_total")
    assert value(families, "supertonic_first_published_seconds_count") == 2
    assert value(families, "supertonic_stream_underrun_seconds_count") == 1
    assert value(families, "supertonic_first_audio_seconds_count") == 1
    assert 0 < value(families, "supertonic_first_audio_seconds_sum") < 20
    for name in BATCHES:
        assert value(families, f"supertonic_{name}_sum") == chunks
    # Of batches that were computed beside each other a core's time is counted once.
    assert 0 < value(families, BUSY) < 1.1 * value(families, ENGINE_S)
    waits = [value(families, "supertonic_queue_wait_seconds_count", queue="high")]
    waits.append(value(families, "supertonic_queue_wait_seconds_count", queue="normal"))
    assert waits == [2, chunks - 2]
    for which in (MISTAKE, NOWHERE):
        assert value(families, "supertonic_http_requests_total", **which) == 1
    assert value(families, "supertonic_worker_info", worker="worker@test", device="cpu") == 1
    assert value(families, "supertonic_redis_memory_bytes") > 0
    audio_s = value(families, "supertonic_audio_seconds_total")
    assert value(families, "supertonic_batch_audio_seconds_sum") == pytest.approx(
        audio_s, abs=0.001 * chunks
    )
    # Everything started anew goes on counting from there.
    for name in ("web", "worker"):
        stack.stop(name)
    stack.start_worker()
    stack.start_web()
    stack.wait_ready()
    again = scrape(stack)
    assert value(again, "supertonic_first_audio_seconds_count") == 1
    assert value(again, "supertonic_batch_chunks_sum") == chunks


def test_what_the_cache_answers_is_counted(server: Stack) -> None:
    def found(result: str) -> float:
        return value(scrape(server), "supertonic_cache_chunks_total", result=result)

    def published() -> float:
        return value(scrape(server), "supertonic_chunks_total")

    # Whatever tests before this one left behind.
    wait_for(lambda: not server.redis.exists("supertonic:queued"), 60, "nothing is being spoken")
    hits, misses, chunks = found("hit"), found("miss"), published()
    for _ in range(2):
        assert server.post("/synthesize", {"text": "Cached, I hope.", "seed": 77}).ok
    assert (found("hit"), found("miss")) == (hits + 1, misses + 1)
    assert published() == chunks + 1, "what the cache answers is not spoken"
    families = scrape(server)
    assert value(families, "supertonic_cache_bytes") > 10_000
    assert value(families, "supertonic_queued_seconds", kind="first") == 0


def test_observing_is_cheap(client: redis.Redis) -> None:
    """The cost of a chunk, and that of a tick: generous bounds, they only catch a round trip."""
    meter = Meter()
    started = time.thread_time()
    for _ in range(10_000):
        meter.observe(BATCH_SIZE, 7)
    assert (time.thread_time() - started) / 10_000 < 50e-6
