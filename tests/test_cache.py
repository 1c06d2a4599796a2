"""Equal chunks are computed once: what is kept, who waits for whom, and every race between them."""

import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from tasks.cache import content_key
from tasks.demand import Admission
from tasks.events import KEPT_FACTS, Begun, ChunkResult, EventStore
from tasks.messages import Chunk, Job, Kind, State, Urgency
from tests.examples import RATE, a_chunk, a_job, some_pieces
from tests.stack import Stack, wait_for
from tests.test_access import IDLE
from tests.test_events import all_at_once

MB = 1_000_000
PCM = b"\1\0" * 1000
FACTS = {"batch_size": 2, "queue_time_ms": 50.0, "inference_time_ms": 5.0, "cached": False}


def wish(job_id: str, contents: Sequence[str], **fields: object) -> tuple[Job, list[Chunk]]:
    """A job whose chunks have these content keys, due one after the other."""
    kind = Kind.STREAM
    job = replace(a_job(job_id, len(contents), kind), fingerprint="model", owner=job_id)
    values = {"sent_at": 0.0, "seconds": 2.0, "steps": 2} | fields
    chunks = [
        a_chunk(
            job_id,
            index,
            count=len(contents),
            content=content,
            urgency=Urgency.NORMAL if index else Urgency.HIGH,
            **({"due": index * 2.0} | values),
        )
        for index, content in enumerate(contents)
    ]
    return job, chunks


def ask(store: EventStore, job_id: str, *contents: str, **fields: object) -> Admission:
    """Admit a job; its messages are (queue, "JOB:INDEX")."""
    job, chunks = wish(job_id, contents or ("A",), **fields)
    messages = [(chunk.urgency.value, f"{job_id}:{chunk.index}") for chunk in chunks]
    return store.admit(job, some_pieces(job.count), 600, chunks, messages)


def publish(
    store: EventStore, job_id: str, index: int = 0, content: str = "A", **fields: object
) -> None:
    values = {"pcm": PCM, "facts": FACTS, "ttl_s": 600, "may_be_kept": True} | fields
    store.publish([ChunkResult(job_id, index, content=content, **values)], MB)  # type: ignore[arg-type]


def begin(store: EventStore, job_id: str, content: str = "A", index: int = 0, token: str = ""):
    chunk = a_chunk(job_id, index, content=content)
    return store.begin([chunk], token or secrets.token_hex(8), RATE, is_alone=True)[0]


def messages(store: EventStore) -> list[str]:
    """What lies in the queues, the oldest first."""
    rows = [row for name in ("high", "normal") for row in store.redis.lrange(name, 0, -1)[::-1]]
    return [row.decode() for row in rows]


def heard(store: EventStore, job_id: str) -> list[tuple[str, int]]:
    return [(event.type, event.index) for event in store.events(job_id)]


def state(store: EventStore, job_id: str) -> State:
    job = store.job(job_id)
    assert job is not None
    return job.state


SPOKEN = [("audio", 0), ("done", -1)]


# -- the key -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"text": "Hello here."},
        {"voice": "M2"},
        {"language": "fr"},
        {"steps": 3},
        {"speed": 1.05},
        {"seed": 1},
        {"index": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_the_samples_depend_on_changes_the_key(change: dict) -> None:
    chunk = a_chunk()
    assert content_key("model", replace(chunk, **change)) != content_key("model", chunk)


def test_the_model_is_part_of_the_key() -> None:
    assert content_key("model in bfloat16", a_chunk()) != content_key("model", a_chunk())


def test_whose_chunk_it_is_and_when_it_is_due_do_not_matter() -> None:
    other = a_chunk("another", kind=Kind.FILE, urgency=Urgency.NORMAL, due=9.0, count=7, speed=1)
    assert content_key("model", other) == content_key("model", a_chunk())


# -- what is kept --------------------------------------------------------------------------


def test_what_was_spoken_once_is_heard_at_once_the_next_time(store: EventStore) -> None:
    ask(store, "first")
    publish(store, "first")
    assert ask(store, "second").to_send == ()
    assert messages(store) == ["first:0"]
    assert heard(store, "second") == SPOKEN
    assert store.audio("second", 0) == PCM
    assert store.events("second")[0].facts == KEPT_FACTS
    assert state(store, "second") is State.DONE
    totals = store.totals()
    assert (totals["cache_misses"], totals["cache_hits"], totals["chunks"]) == (1, 1, 1)


def test_a_request_that_is_partly_kept_asks_for_the_rest(store: EventStore) -> None:
    ask(store, "first", "A", "B", "C")
    publish(store, "first", 1, "B")
    store.redis.delete("high", "normal", "supertonic:flight:A", "supertonic:flight:C")
    assert ask(store, "second", "A", "B", "C").to_send == (0, 2)
    assert messages(store) == ["second:0", "second:2"]
    assert heard(store, "second") == [("audio", 1)]
    publish(store, "second", 2, "C")
    publish(store, "second", 0, "A")
    assert heard(store, "second") == [("audio", 1), ("audio", 2), ("audio", 0), ("done", -1)]


def test_requests_without_a_content_key_share_nothing(store: EventStore) -> None:
    for job_id in ("first", "second"):
        ask(store, job_id, "")
    assert messages(store) == ["first:0", "second:0"]
    publish(store, "first", content="", may_be_kept=False)
    assert heard(store, "second") == []
    assert not store.redis.keys("supertonic:cache:*") + store.redis.keys("supertonic:flight:*")


def test_another_models_sound_serves_who_waits_but_is_not_kept(store: EventStore) -> None:
    ask(store, "first")
    ask(store, "second")
    publish(store, "first", may_be_kept=False)
    assert heard(store, "first") == heard(store, "second") == SPOKEN
    assert ask(store, "third").to_send == (0,)


def test_a_deleted_job_does_not_take_the_cache_with_it(store: EventStore) -> None:
    ask(store, "first")
    publish(store, "first")
    store.drop_audio("first", [0])
    store.forget_job("first")
    ask(store, "second")
    assert store.audio("second", 0) == PCM


# -- the limit -----------------------------------------------------------------------------


def speak(store: EventStore, name: str, n_bytes: int, limit: int) -> None:
    """Fill the cache with one content, without leaving a job behind."""
    ask(store, name, name)
    pcm = bytes(n_bytes)
    store.publish([ChunkResult(name, 0, pcm, FACTS, 600, name, True)], limit)
    store.drop_audio(name, [0])
    store.forget_job(name)


def kept(store: EventStore) -> list[str]:
    """Contents in the cache, the least recently used first."""
    return [name.decode() for name in store.redis.zrange("supertonic:cache:used", 0, -1)]


def test_the_least_recently_used_goes_first(store: EventStore) -> None:
    limit = 3 * 116_000
    for name in "ABC":
        speak(store, name, 100_000, limit)
    ask(store, "listener", "A")
    speak(store, "D", 100_000, limit)
    assert kept(store) == ["C", "A", "D"]
    assert store.redis.exists("supertonic:cache:B") == 0


def test_bytes_stay_within_the_limit_whatever_comes(store: EventStore) -> None:
    """Measured by what Redis itself says, not by the sums of the cache."""
    limit, sizes = 4 * MB, [70_000, 300_001, 12_345, 655_000, 1]
    speak(store, "warm", 1000, limit)
    store.shrink_cache(0)
    before = memory_in_use(store)
    for number in range(120):
        speak(store, f"content {number}", sizes[number % len(sizes)] & ~1, limit)
        total = int(store.redis.hget("supertonic:cache:sizes", "total") or 0)
        assert total <= limit
    grown = memory_in_use(store) - before
    assert 0.6 * limit < grown < 1.05 * limit
    assert_sums_are_right(store)


def memory_in_use(store: EventStore) -> int:
    """Bytes of data, once Redis has freed in the background what was removed, and has looked at
    its connections, which it does once a second: what they have read counts as data until then.
    """
    wait_for(lambda: store.redis.info("memory")["lazyfree_pending_objects"] == 0)
    seen: list[int] = []

    def is_steady() -> bool:
        time.sleep(0.5)
        seen.append(int(store.redis.info("memory")["used_memory_dataset"]))
        return len(seen) > 3 and max(seen[-4:]) - min(seen[-4:]) < 10_000

    wait_for(is_steady)
    return seen[-1]


def assert_sums_are_right(store: EventStore) -> None:
    sizes = {k.decode(): int(n) for k, n in store.redis.hgetall("supertonic:cache:sizes").items()}
    assert sizes.pop("total") == sum(sizes.values())
    assert sorted(sizes) == sorted(kept(store))
    assert len(store.redis.keys("supertonic:cache:*")) == len(sizes) + 2


def test_what_is_larger_than_the_whole_cache_is_not_kept(store: EventStore) -> None:
    speak(store, "small", 1000, 50_000)
    speak(store, "large", 60_000, 50_000)
    assert kept(store) == ["small"]


def test_eviction_does_not_touch_audio_on_its_way_to_a_listener(store: EventStore) -> None:
    ask(store, "first")
    publish(store, "first")
    ask(store, "second")
    assert store.shrink_cache(0) == 0
    assert kept(store) == []
    assert store.audio("first", 0) == store.audio("second", 0) == PCM


def test_a_content_that_expired_is_asked_for_again_and_its_size_forgotten(
    store: EventStore,
) -> None:
    ask(store, "first")
    publish(store, "first")
    assert 86_000 < store.redis.ttl("supertonic:cache:A") <= 86_400
    store.redis.delete("supertonic:cache:A")
    store.redis.zadd("supertonic:cache:used", {"A": 1.0})
    assert ask(store, "second").to_send == (0,)
    publish(store, "second")
    speak(store, "B", 1000, MB)
    assert_sums_are_right(store)


def test_kept_and_published_over_again_counts_once(store: EventStore) -> None:
    ask(store, "first")
    publish(store, "first")
    publish(store, "first")
    assert store.totals()["chunks"] == 1
    assert_sums_are_right(store)


# -- in flight -----------------------------------------------------------------------------


def test_who_asks_for_the_same_waits_for_the_first_ones_computation(store: EventStore) -> None:
    ask(store, "first", "A", "B")
    assert ask(store, "second", "A", "B").to_send == ()
    assert messages(store) == ["first:0", "first:1"]
    publish(store, "first", 0, "A")
    publish(store, "first", 1, "B")
    for job_id in ("first", "second"):
        assert heard(store, job_id) == [("audio", 0), ("audio", 1), ("done", -1)]
        assert store.audio(job_id, 1) == PCM
    totals = store.totals()
    assert (totals["coalesced"], totals["chunks"], totals["jobs_done"]) == (2, 2, 2)
    assert store.events("second")[0].facts["queue_time_ms"] < 50, "it came later, so it waited less"
    assert not store.redis.keys("supertonic:flight:*")


def test_of_many_equal_requests_at_the_same_moment_one_is_queued(store: EventStore) -> None:
    calls = [lambda job_id=f"job{n}": ask(store, job_id, "A", "B", "C") for n in range(20)]
    sent = [admission.to_send for admission in all_at_once(*calls)]
    assert sorted(sent) == [()] * 19 + [(0, 1, 2)]
    assert len(messages(store)) == 3
    leader = f"job{sent.index((0, 1, 2))}"
    for index, content in enumerate("ABC"):
        publish(store, leader, index, content)
    assert all(state(store, f"job{n}") is State.DONE for n in range(20))
    assert store.totals()["chunks"] == 3


def test_only_the_first_ones_work_is_on_the_account(store: EventStore) -> None:
    ask(store, "first")
    ask(store, "second")
    assert account(store) == {"first": 2000, "listener:first": 2000}


def account(store: EventStore) -> dict[str, int]:
    return {key.decode(): int(n) for key, n in store.redis.hgetall("supertonic:queued").items()}


def test_when_the_first_is_cancelled_its_computation_goes_on_for_the_others(
    store: EventStore,
) -> None:
    ask(store, "first", "A", "B")
    ask(store, "second", "A")
    store.end("first", State.CANCELLED)
    assert account(store) == {"first": 2000, "listener:second": 2000}, "the work is an other's now"
    assert begin(store, "first", "A").state is State.RUNNING
    assert begin(store, "first", "B", 1).state is State.CANCELLED, "nobody else wants this one"
    publish(store, "first", 0, "A")
    assert heard(store, "second") == SPOKEN
    assert heard(store, "first") == [("cancelled", -1)]
    assert account(store) == {}


def test_when_the_first_is_forgotten_its_computation_goes_on_too(store: EventStore) -> None:
    ask(store, "first")
    ask(store, "second")
    store.end("first", State.CANCELLED)
    store.forget_job("first")
    assert begin(store, "first") == Begun(State.RUNNING, False, 1)
    publish(store, "first")
    assert heard(store, "second") == SPOKEN


def test_when_all_are_cancelled_the_message_is_skipped_and_the_next_asks_anew(
    store: EventStore,
) -> None:
    for job_id in ("first", "second"):
        ask(store, job_id)
    for job_id in ("first", "second"):
        store.end(job_id, State.CANCELLED)
    assert begin(store, "first").state is State.CANCELLED
    assert ask(store, "third").to_send == (0,)


def test_who_comes_between_the_cancel_and_the_batch_is_not_left_waiting(
    store: EventStore,
) -> None:
    """It asks anew; the old message, if it comes first, is spoken for it, and its own skipped."""
    ask(store, "first")
    store.end("first", State.CANCELLED)
    assert ask(store, "second").to_send == (0,)
    assert begin(store, "first").state is State.RUNNING
    publish(store, "first")
    assert heard(store, "second") == SPOKEN
    assert begin(store, "second") == Begun(State.DONE, True, 0)


def test_who_comes_while_it_is_being_spoken_is_served_by_it(store: EventStore) -> None:
    ask(store, "first")
    begin(store, "first")
    assert ask(store, "second").to_send == ()
    publish(store, "first")
    assert heard(store, "second") == SPOKEN


def test_joining_and_cancelling_at_the_same_moment_loses_nobody(store: EventStore) -> None:
    """Whichever comes first: who joins is served by the old message or by one of its own."""
    for turn in range(60):
        old, new, content = f"old{turn}", f"new{turn}", f"C{turn}"
        ask(store, old, content)
        store.redis.delete("high")
        _, asked, wanted = all_at_once(
            lambda old=old: store.end(old, State.CANCELLED),
            lambda new=new, content=content: ask(store, new, content),
            lambda old=old, content=content: begin(store, old, content),
        )
        if wanted.state is State.RUNNING:
            publish(store, old, 0, content)
        elif asked.to_send:
            publish(store, new, 0, content)
        assert heard(store, new) == SPOKEN, (turn, wanted, asked)


def test_a_chunk_that_cannot_be_spoken_fails_all_that_wait_for_it(store: EventStore) -> None:
    ask(store, "first", "A", "B")
    ask(store, "second", "A")
    ask(store, "third", "Z", "B")
    store.fail(a_chunk("first", content="A"), "chunk 0: poisoned")
    for job_id in ("first", "second"):
        job = store.job(job_id)
        assert job is not None and (job.state, job.error) == (State.FAILED, "chunk 0: poisoned")
        assert [event.error for event in store.events(job_id)] == ["chunk 0: poisoned"]
    assert state(store, "third") is State.QUEUED
    assert begin(store, "first", "B", 1).state is State.RUNNING, "the third waits for this one"
    assert ask(store, "fourth", "A").to_send == (0,), "a failure is not kept"


def test_a_workers_death_is_counted_for_all_and_its_message_serves_all(store: EventStore) -> None:
    ask(store, "first")
    ask(store, "second")
    assert begin(store, "first").attempt == 1
    store.end("first", State.CANCELLED)
    store.forget_job("first")
    assert [begin(store, "first").attempt for _ in range(3)] == [2, 3, 4], (
        "even without its own job"
    )
    publish(store, "first")
    assert heard(store, "second") == SPOKEN


def test_who_needs_it_earlier_asks_again_and_the_later_message_is_skipped(
    store: EventStore,
) -> None:
    ask(store, "patient", "Z", "A", due=1e7)
    assert ask(store, "urgent", "Y", "A", due=1.0).to_send == (0, 1)
    publish(store, "urgent", 1, "A")
    assert heard(store, "patient") == [("audio", 1)]
    assert begin(store, "patient", "A", 1) == Begun(State.RUNNING, True, 0)
    assert ("first" in account(store), account(store).get("later")) == (True, None)


def test_who_needs_it_later_does_not_ask_again(store: EventStore) -> None:
    ask(store, "urgent", "A", due=0.0)
    assert ask(store, "patient", "A", due=5.0).to_send == ()


def test_a_message_sent_again_serves_all_that_wait(store: EventStore) -> None:
    """A listener that heard nothing for long sends its chunk again, whoever asked for it first."""
    ask(store, "first")
    ask(store, "second")
    assert begin(store, "second") == Begun(State.RUNNING, False, 1)
    publish(store, "second")
    assert heard(store, "first") == heard(store, "second") == SPOKEN
    assert begin(store, "first") == Begun(State.DONE, True, 0)


def test_after_a_loss_of_the_flight_both_messages_find_each_other(store: EventStore) -> None:
    ask(store, "first")
    ask(store, "second")
    store.redis.delete("supertonic:flight:A")
    both = [a_chunk(job_id, content="A") for job_id in ("first", "second")]
    assert store.begin(both, "token", RATE) == [Begun(State.RUNNING, False, 1)] * 2
    publish(store, "first")
    assert heard(store, "first") == heard(store, "second") == SPOKEN


def test_a_flight_does_not_outlive_its_message(store: EventStore) -> None:
    ask(store, "first")
    assert 0 < store.redis.ttl("supertonic:flight:A") <= 600
    store.redis.expire("supertonic:flight:A", 50)
    ask(store, "second")
    assert store.redis.ttl("supertonic:flight:A") <= 50, "joining does not make the message live on"


def test_who_comes_after_a_message_was_skipped_for_an_expired_job_asks_anew(
    store: EventStore,
) -> None:
    ask(store, "first")
    store.redis.delete("supertonic:job:first", "supertonic:work:first")
    assert begin(store, "first") == Begun(None, False, 0)
    assert ask(store, "second").to_send == (0,)


def test_an_expired_job_is_nobody_who_waits(store: EventStore) -> None:
    ask(store, "first")
    ask(store, "second")
    store.redis.delete("supertonic:job:second")
    store.end("first", State.CANCELLED)
    assert begin(store, "first").state is State.CANCELLED
    assert not store.redis.exists("supertonic:flight:A")


# -- what the web lets be shared -----------------------------------------------------------


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Redis and a web; workers are records of them."""
    stack = Stack(tmp_path_factory.mktemp("web"), SUPERTONIC_WEB_PROCESSES="1")
    stack.start_redis()
    stack.start_web()
    wait_for(lambda: stack.get("/livez").status_code == 200)
    yield stack
    stack.stop_all()


def shared_chunks(
    web: Stack, path: str = "/synthesize/stream", models: Sequence[str] = ("A", "A"), **body: object
) -> int:
    """How many chunks of a request others may wait for, with one worker for each of the models."""
    web.redis.flushall()
    names = [f"{model}{number}@test" for number, model in enumerate(models)]
    for name, model in zip(names, models, strict=True):
        web.announce(replace(IDLE, name=name, fingerprint=model))

    def known() -> list[str]:
        return [worker["name"] for worker in web.get("/").json()["workers"]]

    wait_for(lambda: known() == names)
    with web.session.post(web.url + path, json={"text": "Hi."} | body, stream=True) as answer:
        assert answer.status_code in (200, 202)
        return len(web.redis.keys("supertonic:flight:*"))


def test_a_request_with_a_seed_shares_its_chunks(web: Stack) -> None:
    assert shared_chunks(web, seed=1) == 1
    assert shared_chunks(web) == 0, "without a seed no two requests are equal"


def test_workers_with_different_models_share_nothing(web: Stack) -> None:
    assert shared_chunks(web, seed=1, models=("A", "B")) == 0


def test_long_jobs_share_nothing(web: Stack) -> None:
    assert shared_chunks(web, "/synthesize/long", seed=1) == 0


def test_without_a_cache_nothing_is_shared(stack: Stack) -> None:
    stack.env |= {"SUPERTONIC_CACHE_MB": "0", "SUPERTONIC_WEB_PROCESSES": "1"}
    stack.start_redis()
    stack.start_web()
    assert shared_chunks(stack, seed=1) == 0
