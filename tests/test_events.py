"""What is said about a job, in a real Redis: once each, in order, and never for ever."""

import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest
import redis

from tasks.events import TOGETHER_BYTES, Begun, ChunkResult, EventStore, connect, is_full
from tasks.longjobs import LongJobs
from tasks.messages import Job, Kind, State
from tasks.records import news_from
from tests.examples import RATE, a_chunk, a_job, some_pieces
from tests.stack import Stack, full, wait_for

TTL_S = 600
# Facts about the whole service, not about one job.
LASTING = {b"supertonic:jobs", b"supertonic:open", b"supertonic:totals", b"supertonic:workers"}


def result(job_id: str = "job", index: int = 0, pcm: bytes = b"\1\0" * 10) -> ChunkResult:
    return ChunkResult(job_id, index, pcm, {"batch_size": 2}, TTL_S)


def create(store: EventStore, count: int = 1, kind: Kind = Kind.STREAM, job_id: str = "job"):
    store.create(a_job(job_id, count, kind), some_pieces(count), TTL_S)


def state(store: EventStore, job_id: str = "job") -> State:
    job = store.job(job_id)
    assert job is not None
    return job.state


def types(store: EventStore, job_id: str = "job") -> list[str]:
    return [event.type for event in store.events(job_id)]


def all_at_once(*calls) -> list:
    """Run calls in threads that start together; their answers in order."""
    answers: list = [None] * len(calls)
    gate = threading.Barrier(len(calls))

    def run(number: int) -> None:
        gate.wait(10)
        answers[number] = calls[number]()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return answers


def test_a_job_is_read_as_it_was_stored(store: EventStore) -> None:
    job = a_job(count=3)
    store.create(job, some_pieces(3), TTL_S)
    assert store.job("job") == job
    assert store.pieces("job") == some_pieces(3)
    assert store.job("another") is None and store.pieces("another") == []


def test_a_chunk_is_published_once(store: EventStore) -> None:
    create(store, count=2)
    assert store.publish([result(pcm=b"\1\0")]) == [True]
    assert store.publish([result(pcm=b"\2\0\2\0"), result(index=1)]) == [False, True]
    assert store.audio("job", 0) == b"\1\0", "the first sound is the one that stays"
    events = store.events("job")
    assert [(e.type, e.index, e.n_samples) for e in events[:2]] == [
        ("audio", 0, 1),
        ("audio", 1, 10),
    ]
    assert events[0].facts == {"batch_size": 2}


def test_of_many_publishers_at_once_one_wins(store: EventStore) -> None:
    """Two workers may speak the same chunk: one was thought to be dead."""
    count, publishers = 5, 8
    create(store, count)

    def publish_all() -> list[bool]:
        return store.publish([result(index=index) for index in range(count)])

    answers = all_at_once(*[publish_all] * publishers)
    assert [sum(column) for column in zip(*answers, strict=True)] == [1] * count
    assert types(store) == ["audio"] * count + ["done"]
    assert sorted(event.index for event in store.events("job")[:-1]) == list(range(count))
    job = store.job("job")
    assert job is not None and (job.done, job.samples) == (count, 10 * count)
    assert store.totals()["chunks"] == count


def test_a_job_is_running_from_its_first_chunk_and_done_with_its_last(store: EventStore) -> None:
    create(store, count=3)
    assert state(store) is State.QUEUED
    for index, expected in ((2, State.RUNNING), (0, State.RUNNING), (1, State.DONE)):
        store.publish([result(index=index)])
        assert state(store) is expected
    assert types(store) == ["audio", "audio", "audio", "done"]
    job = store.job("job")
    assert job is not None and job.started_at and job.finished_at
    assert job.created_at <= job.started_at <= job.finished_at


@pytest.mark.parametrize("ending", [State.CANCELLED, State.FAILED])
def test_a_job_ends_though_redis_is_full(
    store: EventStore, client: "redis.Redis", ending: State
) -> None:
    """To cancel is what frees memory."""
    create(store, count=2)
    with full(client):
        with pytest.raises(redis.RedisError) as refusal:
            create(store, job_id="another")
        assert is_full(refusal.value)
        if ending is State.FAILED:
            store.fail(a_chunk("job"), "a reason")
        else:
            assert store.end("job", ending)
        assert state(store) is ending and types(store) == [ending.value]
        assert not store.end("job", State.DONE)
        store.forget_job("job")
    assert store.job("job") is None


def test_a_full_redis_is_told_from_other_answers(client: "redis.Redis") -> None:
    with full(client), pytest.raises(redis.RedisError) as plain:
        client.set("key", "value")
    with full(client), pytest.raises(redis.RedisError) as inside:
        client.eval("return redis.call('SET', 'key', 'value')", 0)
    with pytest.raises(redis.RedisError) as other:
        client.eval("return redis.call('SET', 'key')", 0)
    errors = (plain.value, inside.value, other.value, redis.ConnectionError("OOM"))
    assert [is_full(error) for error in errors] == [True, True, False, False]


def test_a_long_job_is_not_done_before_its_file_is(store: EventStore) -> None:
    create(store, count=2, kind=Kind.LONG)
    store.publish([result(index=0), result(index=1)])
    assert state(store) is State.RUNNING and "done" not in types(store)
    assert store.end("job", State.DONE)
    assert types(store) == ["audio", "audio", "done"]


def test_a_job_ends_exactly_once_however_many_end_it(store: EventStore) -> None:
    create(store, count=1)
    ends = [
        lambda: store.end("job", State.CANCELLED),
        lambda: store.end("job", State.FAILED, "reason"),
        lambda: store.publish([result()])[0],
    ]
    assert sum(all_at_once(*ends * 4)) == 1
    assert sum(kind in ("done", "failed", "cancelled") for kind in types(store)) == 1
    assert types(store)[-1] == state(store).value
    totals = store.totals()
    assert sum(totals.get(f"jobs_{name}", 0) for name in ("done", "failed", "cancelled")) == 1


@pytest.mark.parametrize("ending", [State.DONE, State.FAILED, State.CANCELLED])
def test_nothing_is_said_after_the_end(store: EventStore, ending: State) -> None:
    create(store, count=2)
    store.publish([result(index=0)])
    assert store.end("job", ending, "reason")
    assert store.publish([result(index=1)]) == [False]
    assert not store.end("job", State.FAILED, "later")
    assert types(store) == ["audio", ending.value]
    assert store.audio("job", 1) is None
    assert store.events("job")[-1].error == "reason"


def test_an_unknown_job_takes_nothing_and_leaves_no_trace(
    store: EventStore, client: "redis.Redis"
) -> None:
    """A job that has expired must not come back as a fragment that lives for ever."""
    assert store.publish([result()]) == [False]
    assert not store.end("job", State.DONE)
    assert store.begin([a_chunk("job", 0)], "a", RATE) == [Begun(None, False, 0)]
    store.mark_published("job", 0, 5)
    store.forget_chunk("job", 0)
    store.let_go("job", [0], 5)
    assert client.keys("*") == []


def test_a_deleted_long_job_does_not_come_back_as_a_fragment(
    store: EventStore, client: "redis.Redis"
) -> None:
    """The files worker may hold a job at the moment its owner deletes it."""
    create(store, kind=Kind.LONG)
    store.forget_job("job")
    LongJobs(store).measure_afresh("job")
    LongJobs(store).note("job", "a note")
    assert store.job("job") is None and not client.exists("supertonic:job:job")


def test_a_chunk_sent_again_for_a_job_without_an_account_leaves_nothing_for_ever(
    store: EventStore, client: "redis.Redis"
) -> None:
    create(store)
    assert store.begin([a_chunk("job", content="C")], "a", RATE) == [Begun(State.RUNNING, False, 1)]
    assert_all_expire(client)


def test_every_key_of_a_job_has_an_end(store: EventStore, client: "redis.Redis") -> None:
    for kind, ending in ((Kind.STREAM, State.FAILED), (Kind.LONG, State.CANCELLED)):
        job_id = kind.value
        create(store, 4, kind, job_id)
        store.begin([a_chunk(job_id, 0)], "a", RATE)
        store.mark_sent(job_id, range(4))
        store.mark_published(job_id, 0, 5)
        assert_all_expire(client)
        store.publish([result(job_id, 1), result(job_id, 2)])
        store.forget_chunk(job_id, 1)
        assert_all_expire(client)
        store.end(job_id, ending, "reason")
        assert_all_expire(client)
    create(store, 2, job_id="spoken only")
    store.publish([result("spoken only")])
    create(store, 1, job_id="ended unheard")
    store.end("ended unheard", State.CANCELLED)
    assert_all_expire(client)


def assert_all_expire(client: "redis.Redis") -> None:
    endless = {key for key in client.keys("*") if client.ttl(key) == -1}
    assert endless <= LASTING


def test_beginning_counts_attempts_and_tells_what_is_known(store: EventStore) -> None:
    create(store, count=2)
    both = [a_chunk("job", 0), a_chunk("job", 1)]
    assert store.begin(both, "a", RATE) == [Begun(State.QUEUED, False, 1)] * 2
    assert store.begin(both, "a", RATE) == [Begun(State.QUEUED, False, 1)] * 2, "the same attempt"
    store.publish([result(index=0)])
    for token in ("b", "c"):
        assert store.begin([*both, a_chunk("gone", 0)], token, RATE) == [
            Begun(State.RUNNING, True, 2),
            Begun(State.RUNNING, False, 2),
            Begun(None, False, 0),
        ], "a second attempt counts only alone"
    for attempt in (2, 3):
        token = f"alone {attempt}"
        found = store.begin([a_chunk("job", 1)], token, RATE, is_alone=True)
        assert found == [Begun(State.RUNNING, False, attempt)]
    store.end("job", State.CANCELLED)
    assert store.begin([a_chunk("job", 1)], "e", RATE) == [Begun(State.CANCELLED, False, 0)], (
        "it is not spoken"
    )


def test_a_listener_who_died_with_his_process_is_missed_after_a_while(
    client: "redis.Redis",
) -> None:
    """Nobody is left who could cancel it. Who follows it again in time keeps it."""
    client.flushall()
    store, chunk = EventStore(client, "supertonic:bell:his"), a_chunk("his", 0)
    for job_id, resumable in (("his", False), ("kept", True)):
        store.create(replace(a_job(job_id), resumable=resumable), some_pieces(1), TTL_S)
    running = Begun(State.QUEUED, False, 1)

    def long_ago() -> None:
        assert client.hget("supertonic:job:his", "alone_since") is not None
        client.hset("supertonic:job:his", "alone_since", time.time() - 11)

    assert store.begin([chunk], "a", RATE) == [running], "it may be on its way back"
    long_ago()
    with client.pubsub() as bell:
        bell.subscribe("supertonic:bell:another's")
        wait_for(lambda: bell.get_message(timeout=1))
        EventStore(client, "supertonic:bell:another's").events("his")
        assert store.begin([chunk], "a", RATE) == [running], "he has come back elsewhere"
        assert client.hget("supertonic:job:his", "alone_since") is None
    wait_for(lambda: client.pubsub_numsub("supertonic:bell:another's")[0][1] == 0)
    assert store.begin([chunk], "a", RATE) == [running]
    long_ago()
    assert store.begin([chunk], "a", RATE) == [Begun(State.CANCELLED, False, 0)]
    job = store.job("his")
    assert job is not None and job.state is State.CANCELLED
    assert store.begin([a_chunk("kept", 0)], "a", RATE) == [running]
    assert client.hget("supertonic:job:kept", "alone_since") is None


def test_a_chunk_skipped_for_a_pause_is_no_attempt(store: EventStore) -> None:
    create(store, count=2, kind=Kind.LONG)
    long_jobs = LongJobs(store)
    for token in ("a", "b", "c", "d"):
        assert long_jobs.pause("job") and not long_jobs.pause("job")
        assert store.begin([a_chunk("job", 1)], token, RATE) == [Begun(State.PAUSED, False, 0)]
        assert long_jobs.resume("job") and not long_jobs.resume("job")
    assert store.begin([a_chunk("job", 1)], "e", RATE) == [Begun(State.QUEUED, False, 1)]


def test_what_is_skipped_for_a_pause_is_sent_again_and_the_rest_is_not(store: EventStore) -> None:
    create(store, count=3, kind=Kind.LONG)
    long_jobs = LongJobs(store)
    store.mark_sent("job", range(3))
    long_jobs.pause("job")
    store.begin([a_chunk("job", 1)], "a", RATE)
    long_jobs.resume("job")
    assert store.in_flight("job", 20) == {0, 2}


def test_a_paused_job_takes_what_was_being_spoken_and_can_end(store: EventStore) -> None:
    create(store, count=2, kind=Kind.LONG)
    long_jobs = LongJobs(store)
    long_jobs.pause("job")
    assert store.publish([result(index=0)]) == [True]
    assert state(store) is State.PAUSED
    assert long_jobs.resume("job") and state(store) is State.RUNNING
    long_jobs.pause("job")
    assert store.end("job", State.CANCELLED) and not long_jobs.resume("job")
    types = [event.type for event in store.events("job")]
    assert types == ["paused", "audio", "resumed", "paused", "cancelled"]


def test_a_lost_chunk_is_taken_back_once_and_can_be_published_again(store: EventStore) -> None:
    """Every listener of a job may notice the loss; each must not subtract the chunk again."""
    create(store, count=2)
    store.publish([result(index=0)])
    all_at_once(*[lambda: store.forget_chunk("job", 0)] * 6)
    job = store.job("job")
    assert job is not None and (job.done, job.samples) == (0, 0)
    assert store.publish([result(index=1), result(index=0)]) == [True, True]
    assert state(store) is State.DONE


def test_a_chunk_known_from_disk_counts_like_a_published_one(store: EventStore) -> None:
    create(store, count=2, kind=Kind.LONG)
    store.mark_published("job", 1, 7)
    store.mark_published("job", 1, 7)
    assert store.published("job", [0, 1]) == [None, 7]
    assert store.publish([result(index=1)]) == [False]
    assert [(event.type, event.index) for event in store.events("job")] == [("audio", 1)]


def test_delivered_audio_is_let_go_and_the_rest_stays(
    store: EventStore, client: "redis.Redis"
) -> None:
    create(store, count=3)
    store.publish([result(index=index) for index in range(3)])
    store.let_go("job", [0, 1], 5)
    lives = [client.ttl(f"supertonic:audio:job:{index}") for index in range(3)]
    assert lives[0] <= 5 and lives[1] <= 5 and lives[2] > 5
    store.drop_audio("job", [0, 1])
    store.drop_audio("job", [])
    assert [store.audio("job", index) for index in range(3)] == [None, None, result().pcm]


def test_events_can_be_read_on_from_any_of_them(store: EventStore) -> None:
    create(store, count=3)
    store.publish([result(index=index) for index in range(3)])
    events = store.events("job")
    for number, event in enumerate(events):
        assert store.events("job", event.entry_id) == events[number + 1 :]


def test_news_come_by_the_bells_of_those_who_follow_and_no_others(client: "redis.Redis") -> None:
    client.flushall()
    maker, other, stranger = (EventStore(client, f"bell:{name}") for name in ("a", "b", "c"))
    create(maker, count=3)
    with client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe("bell:a", "bell:b", "bell:c")
        assert [heard.get_message(timeout=5) for _ in range(3)] == [None] * 3, "confirmations"
        worker = EventStore(client)
        worker.publish([result(index=0)])
        other.events("job"), other.events("job")
        worker.publish([result(index=1), result(index=1)])
        worker.end("job", State.CANCELLED)
        rings = [heard.get_message(timeout=5) for _ in range(5)]
        assert heard.get_message(timeout=0.1) is None
    told = [(ring["channel"], news_from(ring["data"])["job"]) for ring in rings if ring]
    by_bell = [event for bell, news in told if bell == b"bell:a" for event in news]
    assert [news for bell, news in told if bell == b"bell:b"] == [by_bell[1:2], by_bell[2:]]
    assert len(told) == 5, "no bell rings for who does not follow"
    assert by_bell == stranger.events("job"), "the bell says what the stream says"
    assert [event.type for event in by_bell] == ["audio", "audio", "cancelled"]


def test_the_bell_tells_of_the_last_chunk_and_the_end_together(client: "redis.Redis") -> None:
    client.flushall()
    store = EventStore(client, "bell:a")
    create(store)
    with client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe("bell:a")
        assert heard.get_message(timeout=5) is None, "the confirmation"
        store.publish([result()])
        ring = heard.get_message(timeout=5)
    assert ring and [event.type for event in news_from(ring["data"])["job"]] == ["audio", "done"]


def test_small_chunks_are_told_in_one_message_and_large_ones_by_themselves(
    client: "redis.Redis",
) -> None:
    client.flushall()
    store = EventStore(client, "bell:a")
    for job_id in ("one", "other"):
        create(store, count=3, job_id=job_id)
    large = b"\1\0" * TOGETHER_BYTES
    with client.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe("bell:a")
        assert heard.get_message(timeout=5) is None, "the confirmation"
        small = [result("one", 0), result("other", 0), result("one", 1)]
        assert store.publish([*small, result("other", 1, large), result("one", 2)]) == [True] * 5
        rings = [heard.get_message(timeout=5) for _ in range(3)]
        assert heard.get_message(timeout=0.1) is None
    told = [
        {
            job_id: [event.index for event in news]
            for job_id, news in news_from(ring["data"]).items()
        }
        for ring in rings
        if ring
    ]
    assert told == [{"one": [0, 1], "other": [0]}, {"other": [1]}, {"one": [2, -1]}]


def test_who_takes_audio_as_the_last_one_lets_it_go(
    store: EventStore, client: "redis.Redis"
) -> None:
    create(store)
    store.publish([result()])
    assert store.audio("job", 0) == b"\1\0" * 10
    assert client.ttl("supertonic:audio:job:0") > 500
    assert store.audios("job", [1, 0], 60) == [None, b"\1\0" * 10]
    assert 0 < client.ttl("supertonic:audio:job:0") <= 60


def test_chunks_in_the_queue_count_as_lost_after_a_silence(
    store: EventStore, client: "redis.Redis"
) -> None:
    create(store, count=4, kind=Kind.LONG)
    store.mark_sent("job", [0, 1])
    assert store.in_flight("job", 20) == {0, 1}
    long_ago = time.time() - 100
    client.zadd("supertonic:sent:job", {"0": long_ago})
    assert store.in_flight("job", 20) == {1}, "sent long ago, and nothing heard since"
    store.publish([result(index=3)])
    assert store.in_flight("job", 20) == {0, 1}, "the job is being spoken, so 0 has only to wait"
    assert store.in_flight("another", 20) == set()


def test_long_jobs_are_listed_the_newest_first_until_forgotten(store: EventStore) -> None:
    for job_id in ("first", "second", "third"):
        create(store, kind=Kind.LONG, job_id=job_id)
    create(store, kind=Kind.STREAM, job_id="stream")
    store.forget_job("second")
    long_jobs = LongJobs(store)
    listed, cursor = long_jobs.page("", None, 1, None)
    rest, end = long_jobs.page("", None, 10, cursor)
    assert [job.job_id for job in listed + rest] == ["third", "first"] and end is None
    assert long_jobs.page("another owner", None, 10, None) == ([], None)
    assert long_jobs.page("", State.DONE, 10, None) == ([], None)
    assert store.job("second") is None


def test_a_page_of_many_owners_jobs_takes_few_round_trips(
    store: EventStore, client: "redis.Redis"
) -> None:
    for n in range(1000):
        owner = "mine" if n % 250 == 0 else "another"
        store.create(replace(a_job(f"{n:03}", 1, Kind.LONG), owner=owner), some_pieces(1), TTL_S)
    before = client.info("stats")["total_reads_processed"]
    jobs, cursor = LongJobs(store).page("mine", None, 3, None)
    assert client.info("stats")["total_reads_processed"] - before <= 40, "not one for each"
    assert [job.job_id for job in jobs] == ["750", "500", "250"] and cursor is not None
    rest, end = LongJobs(store).page("mine", State.QUEUED, 3, cursor)
    assert [job.job_id for job in rest] == ["000"] and end is None


def test_the_store_fails_fast_when_redis_is_away(store: EventStore) -> None:
    away, took_s = connect("redis://127.0.0.1:1/0"), []
    for _ in range(3):
        started = time.monotonic()
        with pytest.raises(redis.ConnectionError):
            EventStore(away).job("job")
        took_s.append(time.monotonic() - started)
    assert min(took_s) < 1
    away.close()


@pytest.mark.parametrize(
    ("ending", "says"), [(State.FAILED, "error"), (State.CANCELLED, "cancelled")]
)
def test_a_stream_ends_with_its_job_though_a_chunk_in_the_middle_never_came(
    server: Stack, ending: State, says: str
) -> None:
    """Chunk 1 was spoken before chunk 0, then the job ended: listeners once waited for ever."""
    job_id = secrets.token_hex(12)
    with connect(server.redis_url) as client:
        store = EventStore(client)
        create(store, count=3, job_id=job_id)
        store.publish([result(job_id, 1)])
        store.end(job_id, ending, "reason")
    give_up_at, text = time.monotonic() + 30, b""
    with server.get(f"/jobs/{job_id}/events", stream=True) as response:
        for data in response.iter_content(None):
            text += data
            assert time.monotonic() < give_up_at, text
    assert [line for line in text.decode().split("\n") if line.startswith("event")] == [
        "event: accepted",
        f"event: {says}",
    ]


def spoken_ago(client: "redis.Redis", seconds: Sequence[float], count: int) -> Job:
    """A running job of ``count`` chunks, of which one was spoken each of these times ago."""
    now = time.time()
    job = replace(a_job("job", count, Kind.LONG), state=State.RUNNING, done=len(seconds))
    for done, ago in enumerate(seconds, 1):
        entry = {"type": "audio", "index": done - 1, "n_samples": 1, "facts": "{}", "done": done}
        client.xadd("supertonic:events:job", entry, id=f"{int((now - ago) * 1000)}-0")
    return job


@pytest.mark.parametrize(
    ("seconds", "left", "expected", "why"),
    [
        ([300 - 3 * n for n in range(80)] + [60 - n for n in range(60)], 60, 60, "the last minute"),
        ([30 - n for n in range(21)], 10, 15, "a standstill since makes it longer"),
        ([250, 200, 150, 100, 50], 2, 125, "slow ones: the last five chunks"),
        ([2.0, 1.999, 1.998, 1.99], 2, None, "one batch is no pace"),
        ([900 - n for n in range(20)], 5, None, "nothing for a long time"),
        ([], 5, None, "nothing yet"),
    ],
)
def test_the_time_left_goes_by_the_pace_of_late(
    store: EventStore,
    client: "redis.Redis",
    seconds: list[float],
    left: int,
    expected: float | None,
    why: str,
) -> None:
    job = spoken_ago(client, seconds, len(seconds) + left)
    client.hset("supertonic:job:job", "state", "running")
    (eta_s,) = LongJobs(store).etas([job])
    assert eta_s == (None if expected is None else pytest.approx(expected, rel=0.15)), why
    LongJobs(store).measure_afresh("job")
    assert LongJobs(store).etas([job]) == [None], "what was before a pause does not count"


def test_a_forgotten_job_is_not_told_of_again(store: EventStore) -> None:
    """Whoever read it from disk a moment before it was deleted may want to restore it."""
    create(store, kind=Kind.LONG)
    store.forget_job("job")
    create(store, kind=Kind.LONG)
    assert store.job("job") is None and LongJobs(store).page("", None, 9, None) == ([], None)
