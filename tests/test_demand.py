"""The account of waiting work and the decision about who may add to it, in a real Redis."""

import heapq
import random
from dataclasses import dataclass, field, replace

import pytest
import redis

from tasks.demand import AdmissionLimits
from tasks.events import ChunkResult, EventStore
from tasks.longjobs import LongJobs
from tasks.messages import Chunk, Job, Kind, State, Urgency
from tests.examples import a_chunk, a_job, some_pieces

OPEN = AdmissionLimits(rate=10.0)
# Of the streams that arrive in the simulation: one chunk of 2 s, and 0 to 5 of 3.5 s.
MEAN_S = 2 + 2.5 * 3.5


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(client: "redis.Redis", clock: Clock) -> EventStore:
    client.flushall()
    return EventStore(client, clock=clock)


def a_stream(job_id: str, seconds: list[float], kind: Kind = Kind.STREAM, owner: str = ""):
    """A job and its chunks, each due when the ones before it have been played."""
    job = replace(a_job(job_id, len(seconds), kind), owner=owner)
    chunks, due = [], 0.0
    for index, length in enumerate(seconds):
        urgency = Urgency.NORMAL if index else Urgency.HIGH
        chunks.append(
            a_chunk(
                job_id,
                index,
                count=len(seconds),
                steps=2,
                kind=kind,
                urgency=Urgency.LOW if kind is Kind.LONG else urgency,
                seconds=length,
                sent_at=0.0,
                due=due,
            )
        )
        due += length
    return job, chunks


def admit(store: EventStore, stream: tuple[Job, list[Chunk]], limits: AdmissionLimits = OPEN):
    job, chunks = stream
    return store.admit(job, some_pieces(job.count), 600, chunks, limits=limits)


def publish(store: EventStore, chunk: Chunk) -> None:
    pcm = b"\0\0" * 10
    store.publish([ChunkResult(chunk.job_id, chunk.index, pcm, {}, 600, chunk.content)])


def queued(store: EventStore) -> dict[str, int]:
    return {key.decode(): int(n) for key, n in store.redis.hgetall("supertonic:queued").items()}


def forget_settling(store: EventStore) -> None:
    store.redis.delete("supertonic:settled")


# -- the account ---------------------------------------------------------------------------


def test_the_account_follows_a_job_from_queue_to_end(store: EventStore) -> None:
    stream = a_stream("job", [2, 3, 4], owner="ann")
    admit(store, stream)
    assert queued(store) == {"first": 2000, "later": 7000, "listener:ann": 9000}
    publish(store, stream[1][0])
    assert queued(store) == {"later": 7000, "listener:ann": 7000}
    publish(store, stream[1][2])
    publish(store, stream[1][2])
    assert queued(store) == {"later": 3000, "listener:ann": 3000}, "once, however often published"
    publish(store, stream[1][1])
    assert_nothing_is_left(store)


def test_long_jobs_and_owners_have_their_own_sums(store: EventStore) -> None:
    admit(store, a_stream("book", [10] * 3, Kind.LONG, "ann"))
    admit(store, a_stream("talk", [1], owner="bob"))
    assert queued(store) == {
        "long": 30_000,
        "long:ann": 30_000,
        "first": 1000,
        "listener:bob": 1000,
    }
    store.mark_published("book", 1, 5)
    assert queued(store)["long"] == 20_000, "brought from disk, so it is not work any more"


def test_a_paused_jobs_work_is_its_owners_only_and_takes_nothing_from_the_other_sums(
    store: EventStore,
) -> None:
    long_jobs = LongJobs(store)
    held = a_stream("held", [10] * 3, Kind.LONG, "ann")
    admit(store, held)
    admit(store, a_stream("other", [4] * 2, Kind.LONG, "ann"))
    assert long_jobs.pause("held") and queued(store) == {"long": 8000, "long:ann": 38_000}
    publish(store, held[1][0])  # was being spoken
    left = {"long": 8000, "long:ann": 28_000}
    assert queued(store) == left
    forget_settling(store)
    admit(store, a_stream("third", [1], Kind.LONG, "ann"))
    store.end("third", State.CANCELLED)
    assert queued(store) == left, "also when the sums are made anew"
    assert long_jobs.resume("held") and queued(store) == {"long": 28_000, "long:ann": 28_000}
    assert long_jobs.pause("held") and store.end("held", State.CANCELLED)
    assert queued(store) == {"long": 8000, "long:ann": 8000}
    store.end("other", State.CANCELLED)
    assert_nothing_is_left(store)


def test_pausing_makes_no_room_for_more_within_a_keys_limit(store: EventStore) -> None:
    limits, long_jobs = replace(OPEN, owner_long_s=100.0), LongJobs(store)
    taken = []
    for name in "abcdef":
        admission = admit(store, a_stream(name, [45], Kind.LONG, "ann"), limits)
        long_jobs.pause(name)
        taken += [name] * (admission.reason == "")
    assert taken == ["a", "b"]
    assert admit(store, a_stream("g", [45], Kind.LONG, "bob"), limits).reason == ""


@pytest.mark.parametrize("ending", ["cancelled", "failed", "forgotten", "chunk failed"])
def test_a_job_that_ends_early_leaves_nothing_on_the_account(
    store: EventStore, ending: str
) -> None:
    stream = a_stream("job", [2, 3, 4], owner="ann")
    admit(store, stream)
    publish(store, stream[1][1])
    match ending:
        case "cancelled":
            store.end("job", State.CANCELLED)
        case "failed":
            store.end("job", State.FAILED, "reason")
        case "forgotten":
            store.forget_job("job")
        case "chunk failed":
            store.fail(stream[1][0], "reason")
    assert_nothing_is_left(store)


def assert_nothing_is_left(store: EventStore) -> None:
    for name in ("queued", "demand", "demand:*", "charged", "work:*"):
        assert not store.redis.keys(f"supertonic:{name}"), name


def test_jobs_that_vanished_are_taken_off_the_account_by_whoever_asks_next(
    store: EventStore,
) -> None:
    for job_id in ("expired", "evicted", "stays"):
        admit(store, a_stream(job_id, [2, 3]))
    store.redis.delete("supertonic:job:expired", "supertonic:work:expired")
    store.redis.delete("supertonic:job:evicted")
    store.redis.hset("supertonic:queued", "later", 999_999)
    forget_settling(store)
    admit(store, a_stream("next", [1]))
    assert queued(store) == {"first": 3000, "later": 3000}
    assert store.redis.smembers("supertonic:charged") == {b"stays", b"next"}


def test_settling_happens_at_most_every_few_seconds(store: EventStore) -> None:
    admit(store, a_stream("job", [2]))
    store.redis.hset("supertonic:queued", "first", 5000)
    admit(store, a_stream("next", [1]))
    assert queued(store)["first"] == 6000
    assert 0 < store.redis.ttl("supertonic:settled") <= 10


# -- the decision --------------------------------------------------------------------------


def test_the_wait_is_the_work_ahead_and_its_own_first_chunk(store: EventStore) -> None:
    assert admit(store, a_stream("a", [4, 20])).wait_s == 0.4
    assert admit(store, a_stream("b", [6, 20])).wait_s == 1.0
    assert admit(store, a_stream("c", [2, 20])).wait_s == 1.2, "later chunks are not ahead of it"


def test_a_wait_beyond_the_limit_is_refused_with_the_time_to_come_back(store: EventStore) -> None:
    limits = replace(OPEN, wait_s=2.0)
    assert admit(store, a_stream("a", [19]), limits).reason == ""
    refused = admit(store, a_stream("b", [19]), limits)
    assert (refused.reason, refused.wait_s) == ("wait", 3.8)
    assert refused.retry_after_s == 2.0, "1.8 s of work must go, and it is told in whole seconds"
    assert store.job("b") is None and queued(store) == {"first": 19_000}


def test_an_idle_server_takes_whatever_comes(store: EventStore) -> None:
    """Waiting would make it no better."""
    slow = AdmissionLimits(rate=0.5, wait_s=1.0, long_wait_s=10.0, owner_s=5.0, owner_long_s=5.0)
    assert admit(store, a_stream("a", [60, 60], owner="ann"), slow).reason == ""
    store.end("a", State.CANCELLED)
    assert admit(store, a_stream("b", [600], Kind.LONG, "ann"), slow).reason == ""


def test_who_would_make_an_admitted_stream_run_dry_is_refused(store: EventStore) -> None:
    """All begin at once, so 4.2 s per second get two of them their second chunk in time."""
    limits = AdmissionLimits(rate=4.2, wait_s=10.0)
    lengths = [2.0] * 30
    assert [admit(store, a_stream(name, lengths), limits).reason for name in "abcd"] == [
        "",
        "",
        "dry",
        "dry",
    ]


def test_a_short_text_fits_where_a_long_one_does_not(store: EventStore) -> None:
    limits = AdmissionLimits(rate=4.2, wait_s=10.0)
    for name in "ab":
        admit(store, a_stream(name, [2.0] * 30), limits)
    assert admit(store, a_stream("long", [2.0] * 30), limits).reason == "dry"
    assert admit(store, a_stream("short", [1.5]), limits).reason == ""


def test_a_worker_slower_than_one_listener_refuses_for_the_wait_only(store: EventStore) -> None:
    limits = AdmissionLimits(rate=0.8, wait_s=30.0)
    assert admit(store, a_stream("a", [2.0] * 10), limits).reason == ""
    assert admit(store, a_stream("b", [2.0] * 10), limits).reason == ""


def test_a_long_job_is_held_against_all_that_waits(store: EventStore) -> None:
    limits = replace(OPEN, long_wait_s=60.0)
    admit(store, a_stream("a", [100, 100]))
    assert admit(store, a_stream("b", [400], Kind.LONG), limits).reason == ""
    refused = admit(store, a_stream("c", [50], Kind.LONG), limits)
    assert (refused.reason, refused.wait_s, refused.retry_after_s) == ("long", 65.0, 5.0)


def test_an_owner_may_have_so_much_waiting_and_no_more(store: EventStore) -> None:
    limits = replace(OPEN, owner_s=10.0, owner_long_s=100.0)
    assert admit(store, a_stream("a", [4, 4], owner="ann"), limits).reason == ""
    refused = admit(store, a_stream("b", [4], owner="ann"), limits)
    assert refused.reason == "owner"
    assert refused.retry_after_s == 0.7, "a chunk of 4 s, after what may just have been begun"
    assert admit(store, a_stream("c", [4], owner="bob"), limits).reason == ""
    assert admit(store, a_stream("d", [4]), limits).reason == "", "without keys there are no owners"
    assert admit(store, a_stream("e", [90], Kind.LONG, "ann"), limits).reason == ""
    assert admit(store, a_stream("f", [20], Kind.LONG, "ann"), limits).reason == "owner"


def test_a_key_waits_as_long_as_others_go_before_its_own(store: EventStore) -> None:
    limits = replace(OPEN, owner_s=50.0)
    admit(store, a_stream("bob", [2] + [10] * 300, owner="bob"))
    admit(store, a_stream("ann", [5] * 9, owner="ann"))

    def told(lengths: list[float]) -> float:
        refused = admit(store, a_stream("more", lengths, owner="ann"), limits)
        assert refused.reason == "owner"
        return refused.retry_after_s

    # 15 s of ann's must go: up to her third chunk, and two of bob's are due before that.
    assert told([5] * 4) == 3.0
    assert told([5] * 100) == 9.0, "more than the limit: when she has nothing waiting"
    forget_settling(store)
    assert told([5] * 4) == 3.0


def test_a_keys_long_jobs_have_their_turns_with_others(store: EventStore) -> None:
    limits = replace(OPEN, owner_long_s=100.0)
    admit(store, a_stream("ann", [10] * 10, Kind.LONG, "ann"), limits)

    def told() -> float:
        refused = admit(store, a_stream("more", [10] * 2, Kind.LONG, "ann"), limits)
        assert refused.reason == "owner"
        return refused.retry_after_s

    assert told() == 2.3, "alone: 20 s at 10 per second, and what a chunk may take longer"
    for number in range(3):
        admit(store, a_stream(f"bob{number}", [900], Kind.LONG, "bob"))
    assert told() == 8.3
    admit(store, a_stream("listener", [50]))
    assert told() == 13.3, "listeners go first"


def test_nobody_knows_when_a_key_resumes_what_it_paused(store: EventStore) -> None:
    limits = replace(OPEN, owner_long_s=100.0)
    admit(store, a_stream("held", [100], Kind.LONG, "ann"))
    LongJobs(store).pause("held")
    refused = admit(store, a_stream("more", [1], Kind.LONG, "ann"), limits)
    assert (refused.reason, refused.retry_after_s) == ("owner", 600.0)


# -- the promise, against a virtual clock ---------------------------------------------------


@dataclass
class Listener:
    """One admitted stream: when each of its chunks was published, and what that means."""

    chunks: list[Chunk]
    at: dict[int, float] = field(default_factory=dict)

    def silence_s(self) -> float:
        """The longest wait inside the stream, if it is played from its first chunk on."""
        silence = 0.0
        needed = self.at[0]
        for chunk in self.chunks:
            silence = max(silence, self.at[chunk.index] - needed)
            needed = max(needed, self.at[chunk.index]) + chunk.seconds
        return silence


@dataclass
class Overload:
    listeners: list[Listener] = field(default_factory=list)
    refused: int = 0
    retried_in: int = 0
    busy_s: float = 0.0


def overload(
    store: EventStore, clock: Clock, rate: float, load: float, for_s: float, seed: int
) -> Overload:
    """Streams arrive at ``load`` times what one worker of this rate can speak; it speaks what is
    due first, as tasks/batching.py would. Every other one that is refused obeys and comes back.
    """
    rng = random.Random(seed)
    limits = AdmissionLimits(rate=rate, wait_s=5.0)
    result = Overload()
    arrivals: list[tuple[float, int, list[float]]] = []
    at = clock.now
    while at < 1_000_000.0 + for_s:
        lengths = [rng.uniform(1, 3)] + [rng.uniform(2, 5) for _ in range(rng.randrange(6))]
        heapq.heappush(arrivals, (at, 0, lengths))
        at += rng.expovariate(rate * load / MEAN_S)
    waiting: list[tuple[float, int, Chunk]] = []
    spoken: tuple[float, int, Chunk] | None = None
    while arrivals or waiting or spoken:
        if spoken is None and waiting:
            due, owner, chunk = heapq.heappop(waiting)
            spoken = (clock.now + chunk.seconds / rate, owner, chunk)
            result.busy_s += chunk.seconds / rate
        if spoken and (not arrivals or spoken[0] <= arrivals[0][0]):
            clock.now, owner, chunk = spoken
            publish(store, chunk)
            result.listeners[owner].at[chunk.index] = clock.now
            spoken = None
            continue
        clock.now, tries, lengths = heapq.heappop(arrivals)
        stream = a_stream(f"{len(result.listeners)}", lengths)
        admission = admit(store, stream, limits)
        if admission.reason:
            result.refused += 1
            if rng.random() < 0.5 and clock.now < 1_000_000.0 + for_s:
                back_at = clock.now + admission.retry_after_s
                heapq.heappush(arrivals, (back_at, tries + 1, lengths))
            continue
        result.retried_in += tries > 0
        for chunk in stream[1]:
            heapq.heappush(waiting, (clock.now + chunk.due, len(result.listeners), chunk))
        result.listeners.append(Listener(stream[1]))
    return result


@pytest.mark.parametrize(("rate", "load"), [(4.0, 2.0), (30.0, 2.0), (30.0, 5.0)])
def test_at_overload_what_was_admitted_is_gapless_and_the_workers_are_kept_busy(
    store: EventStore, clock: Clock, rate: float, load: float
) -> None:
    result = overload(store, clock, rate, load, for_s=60.0, seed=1)
    silences = [listener.silence_s() for listener in result.listeners]
    print(
        rate, load, len(silences), result.refused, result.retried_in, max(silences), result.busy_s
    )
    assert max(silences) == 0
    assert result.refused > 20
    assert result.busy_s > 0.7 * 60
    assert result.retried_in > 0
    assert_nothing_is_left(store)


class Speaker:
    """A worker at a pace, which speaks what has the lowest turn first."""

    def __init__(self, store: EventStore, clock: Clock, rate: float) -> None:
        self.store, self.clock, self.rate = store, clock, rate
        self.waiting: list[tuple[float, str, int, Chunk]] = []
        self.turn = 0.0
        self.speaking: tuple[float, Chunk] | None = None

    def add(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            # A listener's when it is due; long jobs take turns, from now on.
            is_long = chunk.kind is Kind.LONG
            turn = self.turn + chunk.index if is_long else self.clock.now + chunk.due
            heapq.heappush(self.waiting, (turn, chunk.job_id, chunk.index, chunk))

    def speak_until(self, until: float) -> None:
        while self.speaking or self.waiting:
            if self.speaking is None:
                self.turn, _, _, chunk = heapq.heappop(self.waiting)
                self.speaking = (self.clock.now + chunk.seconds / self.rate, chunk)
            ends_at, chunk = self.speaking
            if ends_at > until:
                break
            self.clock.now, self.speaking = ends_at, None
            publish(self.store, chunk)
        self.clock.now = until


@pytest.mark.parametrize("kind", [Kind.STREAM, Kind.LONG])
def test_whom_a_keys_limit_refused_is_let_in_when_he_comes_as_told(
    store: EventStore, clock: Clock, kind: Kind
) -> None:
    """Nobody else comes meanwhile."""
    limits = AdmissionLimits(rate=10.0, wait_s=5.0, owner_s=40.0, owner_long_s=40.0)
    speaker, rng = Speaker(store, clock, 10.0), random.Random(1)
    n_refused = n_again = n_in_half = 0
    for number in range(500):
        lengths = [rng.uniform(1, 5) for _ in range(rng.randrange(1, 13))]
        stream = a_stream(f"{number}", lengths, kind, rng.choice(["ann", "bob", "cid"]))
        admission = admit(store, stream, limits)
        if admission.reason == "owner":
            n_refused += 1
            half_s = admission.retry_after_s / 2
            speaker.speak_until(clock.now + half_s)
            admission = admit(store, stream, limits)
            if admission.reason:
                speaker.speak_until(clock.now + half_s)
                admission = admit(store, stream, limits)
                n_again += admission.reason != ""
            else:
                n_in_half += 1
        if admission.reason == "":
            speaker.add(stream[1])
        if kind is Kind.LONG:
            LongJobs(store).places()  # as whoever accepts a long job: those that ended are left out
        speaker.speak_until(clock.now + rng.expovariate(1.0))
    assert n_refused > 50
    assert n_again <= 0.03 * n_refused
    assert n_in_half < 0.5 * n_refused, "nor is anybody told to come much too late"
