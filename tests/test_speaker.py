"""What happens to each chunk of a batch, with a real Redis and the built-in voice.

The engine is the real one; a thin wrapper around it fails for chosen texts, as a chunk that a
device cannot take would.
"""

import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import redis
import torch

from supertonic.engine import Engine
from supertonic.loading import load_engine
from supertonic.utterance import Audio, Utterance
from tasks.batching import Waiting
from tasks.cache import content_key
from tasks.events import ChunkResult, EventStore, connect
from tasks.messages import Kind, State
from tasks.settings import Settings
from tasks.speaker import MAX_ATTEMPTS, EngineBroken, Outcome, Speaker
from tests.examples import RATE, a_chunk, a_job, some_pieces, waiting_chunk

SPOKEN, SKIPPED, FAILED = Outcome.SPOKEN, Outcome.SKIPPED, Outcome.FAILED
CANCELLED = Outcome.CANCELLED
SETTINGS = Settings(stream_ttl_s=100, job_ttl_s=5000)


class Breaking:
    """The engine, except that it raises whenever a text with "poison" is in the batch."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sample_rate = engine.sample_rate
        self.fingerprint = engine.fingerprint
        self.batches_at_once = engine.batches_at_once
        self.batches: list[list[str]] = []

    def synthesize(self, utterances: Sequence[Utterance], cores: int) -> list[Audio]:
        self.batches.append([utterance.text for utterance in utterances])
        if any("poison" in utterance.text for utterance in utterances):
            raise RuntimeError("the device choked")
        return self.engine.synthesize(list(utterances), cores=cores)

    def check(self) -> None:
        self.engine.check()


class Broken(Breaking):
    """The engine after its device was lost: nothing works any more."""

    def check(self) -> None:
        raise RuntimeError("the device is gone")


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return load_engine("tiny")


@pytest.fixture
def speaker(engine: Engine, client: "redis.Redis") -> Speaker:
    client.flushall()
    return Speaker(Breaking(engine), EventStore(client), SETTINGS)


def batch_of(speaker: Speaker, *texts: str, kind: Kind = Kind.STREAM) -> list[Waiting]:
    """One job per text, named ``0``, ``1``…, each with one chunk."""
    for number in range(len(texts)):
        speaker.store.create(a_job(str(number), 1, kind), some_pieces(1), 600)
    return [waiting_chunk(str(n), text=text, kind=kind) for n, text in enumerate(texts)]


def states(speaker: Speaker, count: int) -> list[State]:
    jobs = speaker.store.jobs([str(number) for number in range(count)])
    return [job.state for job in jobs if job is not None]


def batches(speaker: Speaker) -> list[list[str]]:
    assert isinstance(speaker.engine, Breaking)
    return speaker.engine.batches


def test_a_batch_is_spoken_in_one_go_and_published(speaker: Speaker) -> None:
    assert speaker.speak(batch_of(speaker, "One.", "Two.", "Three.")) == [SPOKEN] * 3
    assert batches(speaker) == [["One.", "Two.", "Three."]]
    assert states(speaker, 3) == [State.DONE] * 3
    event = speaker.store.events("1")[0]
    pcm = speaker.store.audio("1", 0)
    assert pcm is not None and len(pcm) == 2 * event.n_samples > 10_000
    assert event.facts is not None and event.facts["batch_size"] == 3
    assert event.facts["inference_time_ms"] > 0 and event.facts["queue_time_ms"] >= 0


@pytest.mark.parametrize("place", range(5))
def test_a_poisoned_chunk_fails_its_own_job_and_its_mates_are_spoken(
    speaker: Speaker, place: int
) -> None:
    texts = [f"Text number {n}." for n in range(5)]
    texts[place] = "poison"
    outcomes = speaker.speak(batch_of(speaker, *texts))
    assert outcomes == [FAILED if n == place else SPOKEN for n in range(5)]
    expected = [State.FAILED if n == place else State.DONE for n in range(5)]
    assert states(speaker, 5) == expected
    job = speaker.store.job(str(place))
    assert job is not None and job.error == "chunk 0: RuntimeError: the device choked"


def test_a_batch_of_poison_only_fails_every_job_and_publishes_nothing(speaker: Speaker) -> None:
    assert speaker.speak(batch_of(speaker, "poison a", "poison b")) == [FAILED] * 2
    assert states(speaker, 2) == [State.FAILED] * 2
    assert speaker.tally.chunks == 0


def test_what_the_engine_itself_refuses_fails_one_job_with_the_reason(speaker: Speaker) -> None:
    batch = batch_of(speaker, "Fine.", "Wrong voice.")
    batch[1] = waiting_chunk("1", text="Wrong voice.", voice="M9")
    assert speaker.speak(batch) == [SPOKEN, FAILED]
    job = speaker.store.job("1")
    assert job is not None and job.error is not None
    assert job.error.startswith("chunk 0: UnknownVoice: voice 'M9': must be one of ")


def test_nothing_is_spoken_into_a_sound_of_another_rate(speaker: Speaker) -> None:
    """Half of a book at the wrong speed: its worker was replaced by one with another model."""
    store, other = speaker.store, 2 * RATE
    for job_id, kind in (("stream", Kind.STREAM), ("book", Kind.LONG)):
        store.create(replace(a_job(job_id, kind=kind), sample_rate=other), some_pieces(1), 100)
    wrong = [waiting_chunk("stream"), waiting_chunk("book", kind=Kind.LONG)]
    batch = [*batch_of(speaker, "Fine."), *wrong]
    for _ in range(MAX_ATTEMPTS + 2):  # it is no attempt
        assert speaker.speak(batch)[2] is SKIPPED
    assert speaker.tally.chunks == 1 and states(speaker, 1) == [State.DONE]
    stream, book = store.job("stream"), store.job("book")
    assert stream is not None and book is not None
    assert (stream.state, book.state) == (State.FAILED, State.QUEUED)
    reason = "it was begun at 44100 samples per second, and the model here speaks at 22050"
    assert stream.error == reason
    assert book.error == f"The job waits for a worker with its model: {reason}."
    speaker.engine.sample_rate = other
    assert speaker.speak(wrong) == [CANCELLED, SPOKEN]


def test_the_sound_is_the_same_after_a_failure_in_the_batch(speaker: Speaker) -> None:
    """Halving changes who is in the batch, which must not change a sample's worth."""
    speaker.speak(batch_of(speaker, "A text to compare.", "poison", "Another text."))
    beside_poison = speaker.store.audio("0", 0)
    speaker.store.redis.flushall()
    speaker.speak(batch_of(speaker, "A text to compare."))
    assert speaker.store.audio("0", 0) == beside_poison


@pytest.mark.parametrize("ending", [State.CANCELLED, State.FAILED])
def test_chunks_of_an_ended_job_never_reach_the_engine(speaker: Speaker, ending: State) -> None:
    batch = batch_of(speaker, "Ended.", "Still wanted.")
    speaker.store.end("0", ending)
    assert speaker.speak(batch) == [CANCELLED, SPOKEN]
    assert batches(speaker) == [["Still wanted."]]
    speaker.store.end("1", ending)
    assert speaker.speak(batch) == [CANCELLED, SKIPPED]
    assert len(batches(speaker)) == 1


def test_a_chunk_of_a_forgotten_job_is_skipped_and_leaves_nothing(speaker: Speaker) -> None:
    assert speaker.speak([waiting_chunk("unknown")]) == [SKIPPED]
    assert batches(speaker) == [] and speaker.store.redis.keys("*") == []


def test_a_chunk_that_is_published_already_is_skipped(speaker: Speaker) -> None:
    speaker.store.create(a_job("0", 2), some_pieces(2), 600)
    speaker.store.publish([ChunkResult("0", 0, b"\0\0", {}, 600)])
    batch = [waiting_chunk("0", 0, text="Again."), waiting_chunk("0", 1, text="New.")]
    assert speaker.speak(batch) == [SKIPPED, SPOKEN]
    assert batches(speaker) == [["New."]]
    assert states(speaker, 1) == [State.DONE]


def test_the_same_chunk_twice_in_a_batch_is_published_once(speaker: Speaker) -> None:
    """It was sent again because it seemed lost, and both messages came."""
    (item,) = batch_of(speaker, "Twice.")
    assert SPOKEN in speaker.speak([item, item])
    assert [event.type for event in speaker.store.events("0")] == ["audio", "done"]


def test_a_chunk_begun_before_runs_alone_and_after_the_others(speaker: Speaker) -> None:
    """It may be what killed the worker that had it, so it endangers nobody else."""
    batch = batch_of(speaker, "Suspect.", "Innocent.", "Innocent too.")
    speaker.store.begin([a_chunk("0", 0)], uuid.uuid4().hex, RATE)
    assert speaker.speak(batch) == [SPOKEN] * 3
    assert batches(speaker) == [["Innocent.", "Innocent too."], ["Suspect."]]


def test_nothing_else_is_spoken_while_a_suspect_is(engine: Engine, client: "redis.Redis") -> None:
    """Or an innocent chunk would be begun and lost with it each time."""
    client.flushall()
    spans: dict[str, tuple[float, float]] = {}
    is_beside = threading.Event()

    class Slow(Breaking):
        def synthesize(self, utterances: Sequence[Utterance], cores: int) -> list[Audio]:
            started, (row,) = time.monotonic(), utterances
            if row.text == "Beside.":
                is_beside.set()
            elif row.text == "Before.":
                is_beside.wait(30)
            audios = super().synthesize(utterances, cores)
            time.sleep(0.2)
            spans[row.text] = (started, time.monotonic())
            return audios

    speaker = Speaker(Slow(engine), EventStore(client), SETTINGS)
    before, suspect, beside, behind = batch_of(speaker, "Before.", "Suspect.", "Beside.", "Behind.")
    speaker.store.begin([suspect.chunk], uuid.uuid4().hex, RATE)
    with ThreadPoolExecutor() as threads:
        for item in (before, beside):
            threads.submit(speaker.speak, [item], 1)
        assert is_beside.wait(20), "batches that can be together are"
        for item in (suspect, behind):
            threads.submit(speaker.speak, [item], 1)
            time.sleep(0.05)
    alone_from, alone_to = spans.pop("Suspect.")
    assert len(spans) == 3
    assert all(other[1] <= alone_from or other[0] >= alone_to for other in spans.values())


def test_a_chunk_that_took_four_workers_down_fails_its_job(speaker: Speaker) -> None:
    batch = batch_of(speaker, "Deadly.", "Harmless.")
    for _ in range(MAX_ATTEMPTS):
        speaker.store.begin([a_chunk("0", 0)], uuid.uuid4().hex, RATE, is_alone=True)
    assert speaker.speak(batch) == [FAILED, SPOKEN]
    assert batches(speaker) == [["Harmless."]]
    job = speaker.store.job("0")
    assert job is not None and job.state is State.FAILED
    assert job.error == "chunk 0 took 4 workers down"


def test_a_fourth_attempt_is_still_made(speaker: Speaker) -> None:
    batch = batch_of(speaker, "Unlucky.")
    for _ in range(MAX_ATTEMPTS - 1):
        speaker.store.begin([a_chunk("0", 0)], uuid.uuid4().hex, RATE, is_alone=True)
    assert speaker.speak(batch) == [SPOKEN]


def test_what_a_full_redis_refused_has_taken_no_worker_down(
    speaker: Speaker, engine: Engine, client: "redis.Redis"
) -> None:
    """Redis fills up while the batch is spoken; the worker lives and hands it back."""

    class Refused(Breaking):
        def synthesize(self, utterances: Sequence[Utterance], cores: int) -> list[Audio]:
            client.config_set("maxmemory", 1)
            return super().synthesize(utterances, cores)

    batch = batch_of(speaker, "One.", "Two.", "Suspect.", "Shared.")
    shared = waiting_chunk("3", text="Shared.", content="C")
    speaker.store.begin([batch[2].chunk], "of a worker that died", RATE)
    speaker.engine = Refused(engine)
    for refused in ([*batch[:3], shared], [batch[2]]) * (MAX_ATTEMPTS + 1):
        try:
            with pytest.raises(redis.RedisError):
                speaker.speak(refused)
        finally:
            client.config_set("maxmemory", 0)
    speaker.engine = Breaking(engine)
    assert speaker.speak([*batch[:3], shared]) == [SPOKEN] * 4
    assert batches(speaker) == [["One.", "Two.", "Shared."], ["Suspect."]], (
        "that death still counts"
    )
    assert states(speaker, 4) == [State.DONE] * 4


def test_outcomes_come_in_the_order_of_the_batch(speaker: Speaker) -> None:
    batch = batch_of(speaker, "Cancelled.", "poison", "Suspect.", "Fine.", "poison too")
    speaker.store.end("0", State.CANCELLED)
    speaker.store.begin([a_chunk("2", 0)], uuid.uuid4().hex, RATE)
    assert speaker.speak(batch) == [CANCELLED, FAILED, SPOKEN, SPOKEN, FAILED]


def test_a_job_cancelled_while_it_is_spoken_gets_no_audio(speaker: Speaker) -> None:
    (item,) = batch_of(speaker, "Too late.")
    assert isinstance(speaker.engine, Breaking)
    engine, store = speaker.engine.engine, speaker.store

    class Cancelling(Breaking):
        def synthesize(self, utterances: Sequence[Utterance], cores: int) -> list[Audio]:
            store.end("0", State.CANCELLED)
            return super().synthesize(utterances, cores)

    speaker.engine = Cancelling(engine)
    speaker.speak([item])
    assert store.audio("0", 0) is None
    assert [event.type for event in store.events("0")] == ["cancelled"]


@pytest.mark.parametrize(
    ("model", "cache_mb", "kept"),
    [("", 64, 1), ("another model", 64, 0), ("", 0, 0)],
    ids=["ours", "another", "cache off"],
)
def test_only_what_the_named_model_said_is_kept(
    speaker: Speaker, model: str, cache_mb: int, kept: int
) -> None:
    speaker.settings = replace(SETTINGS, cache_mb=cache_mb)
    (item,) = batch_of(speaker, "Keep me.")
    content = content_key(model or speaker.engine.fingerprint, item.chunk)
    item = replace(item, chunk=replace(item.chunk, content=content))
    assert speaker.speak([item]) == [SPOKEN]
    assert speaker.store.redis.exists(f"supertonic:cache:{content}") == kept


@pytest.mark.parametrize(("kind", "ttl_s"), [(Kind.STREAM, 100), (Kind.LONG, 5000)])
def test_audio_lives_as_long_as_its_kind_of_job(speaker: Speaker, kind: Kind, ttl_s: int) -> None:
    speaker.speak(batch_of(speaker, "Keep me.", kind=kind))
    assert ttl_s - 10 < int(speaker.store.redis.ttl("supertonic:audio:0:0")) <= ttl_s


def test_a_worker_that_is_told_to_stop_does_not_wait_for_redis(engine: Engine) -> None:
    """Its chunks go back to the queue instead, by the exception."""
    away = connect("redis://127.0.0.1:1/0")
    speaker = Speaker(Breaking(engine), EventStore(away), SETTINGS)
    speaker.is_stopping = True
    with pytest.raises(redis.ConnectionError):
        speaker.speak([waiting_chunk()])
    assert batches(speaker) == []
    away.close()


def test_the_tally_counts_what_was_spoken(speaker: Speaker) -> None:
    batch = batch_of(speaker, "One.", "Two.", "poison", "Four.")
    speaker.speak(batch[:2])
    speaker.speak(batch[2:])
    assert (speaker.tally.batches, speaker.tally.chunks) == (2, 3)
    published_s = speaker.store.totals()["audio_ms"] / 1000
    assert speaker.tally.audio_s == pytest.approx(published_s, abs=0.002)
    assert speaker.tally.busy_s > 0 and speaker.tally.batch_size == 1.5


def test_a_broken_engine_blames_no_chunk(speaker: Speaker, engine: Engine) -> None:
    """A worker whose device is lost must not fail the jobs it draws; another can speak them."""
    speaker.engine = Broken(engine)
    with pytest.raises(EngineBroken):
        speaker.speak(batch_of(speaker, "poison for this engine", "Anything."))
    assert states(speaker, 2) == [State.QUEUED] * 2
