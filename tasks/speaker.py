"""From a batch of chunks to published audio: what the threads that own the device do.

Nothing here knows Celery. The engine is passed in, so the same code runs with the model, with
the benchmark's null engine, and with a test's engine that breaks on purpose.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol, TypeVar

import redis

from supertonic.audio import to_pcm16
from supertonic.text import estimate_seconds
from tasks import slicing
from tasks.batching import Waiting
from tasks.cache import content_key
from tasks.company import Company
from tasks.dead_letters import bury
from tasks.events import ChunkResult, EventStore
from tasks.logs import facts
from tasks.longjobs import LongJobs
from tasks.messages import Chunk, Kind, State
from tasks.pace import Pace, work
from tasks.settings import Settings
from tasks.slicing import SlicePublisher
from tasks.tally import Done, Tally
from tasks.throughput import Shares, Throughput

if TYPE_CHECKING:
    from supertonic.utterance import Audio, OnSlice, Utterance

logger = logging.getLogger(__name__)

# A chunk that was begun this often and never finished takes its worker down; give up on it. It was
# alone in all attempts but the first. Two would not do: where workers are killed every other second
# for a reason of their own, the same chunk is met twice.
MAX_ATTEMPTS = 4
# Redis may be away this long before a finished batch is given up and its chunks handed back.
REDIS_PATIENCE_S = 30.0

T = TypeVar("T")


class Synthesizer(Protocol):
    """What is needed of an engine."""

    sample_rate: int
    fingerprint: str

    batches_at_once: int  # how many threads may speak at the same time

    def synthesize(
        self,
        utterances: "Sequence[Utterance]",
        on_slice: "OnSlice | None" = None,
        cores: int | None = None,
    ) -> "list[Audio]": ...

    def idle(self) -> bool:
        """Use a moment in which nobody waits; False if there was nothing to do."""

    def slices_save_s(self, audio_s: float) -> float:
        """How much sooner somebody hears something when so much audio is made in slices."""

    def check(self) -> None:
        """Speak something harmless; raises if the engine cannot."""


class EngineBroken(Exception):
    """The engine cannot speak anything any more, as after an error of a CUDA context."""


class Outcome(Enum):
    SPOKEN = auto()
    SKIPPED = auto()  # the job is paused or unknown, or the chunk is published already
    CANCELLED = auto()  # the job is over, and nobody waits for the chunk
    FAILED = auto()  # the engine cannot speak it; its job has been told


class Speaker:
    """Speaks batches and publishes what comes out, in as many threads as the engine allows."""

    def __init__(self, engine: Synthesizer, store: EventStore, settings: Settings) -> None:
        self.engine = engine
        self.store = store
        self.settings = settings
        self._long_jobs = LongJobs(store)
        self.tally = Tally()
        self.pace = Pace()
        self.throughput = Throughput()
        self._in_hand, self._in_engine = Shares(), Shares()  # of batches: seconds
        self._noting = threading.Lock()  # of all five
        self._company = Company()
        self.is_stopping = False
        # The consumer knows whether chunks wait that are due, and how much work waits in all.
        self.is_crowded: Callable[[], bool] = lambda: False
        self.waiting_work_s: Callable[[], float] = lambda: 0.0

    def speak(self, batch: Sequence[Waiting], cores: int | None = None) -> list[Outcome]:
        """One outcome per chunk, in order. ``cores`` is how many of them the batch may use.

        Raises:
            redis.RedisError: Redis stayed away; nothing may be acknowledged.
            EngineBroken: nothing can be spoken here any more; neither.
        """
        taken_at, token = time.time(), uuid.uuid4().hex
        outcomes, work_s = [Outcome.SKIPPED] * len(batch), 0.0
        all_cores = self.engine.batches_at_once
        cores = min(cores or all_cores, all_cores)
        with self._noting:
            mark = self._in_hand.begin(time.perf_counter())
        try:
            with self._company.together():
                rows, suspects = self._begin(batch, list(range(len(batch))), outcomes, token)
                if rows:
                    work_s = self._speak_rows(batch, rows, outcomes, taken_at, cores)
            # What may have killed its worker runs by itself, after all others are published.
            for row in suspects:
                with self._company.alone():
                    if any(self._begin(batch, [row], outcomes, token, is_alone=True)):
                        work_s += self._speak_rows(batch, [row], outcomes, taken_at, all_cores)
        except redis.RedisError:
            # Above all a full one: they are handed back, and have taken no worker down.
            with suppress(redis.RedisError):
                self.store.unbegin([item.chunk for item in batch], token)
            raise
        finally:
            with self._noting:
                ended = time.perf_counter()
                share_s = self._in_hand.end(ended, mark)
                self.tally.end([item.chunk for item in batch])
        with self._noting:
            self.throughput.add(outcomes.count(Outcome.SPOKEN), work_s, share_s)
            self.throughput.note_pressure(work_s, self.waiting_work_s(), ended)
        return outcomes

    def _begin(
        self,
        batch: Sequence[Waiting],
        rows: list[int],
        outcomes: list[Outcome],
        token: str,
        is_alone: bool = False,
    ) -> tuple[list[int], list[int]]:
        """Rows somebody still waits for, asked at the last moment before the device is used:
        those never begun before, and the others.
        """
        chunks = [batch[row].chunk for row in rows]
        rate = self.engine.sample_rate
        answers = self._with_patience(lambda: self.store.begin(chunks, token, rate, is_alone))
        together, suspects = [], []
        contents: set[str] = set()
        for row, begun in zip(rows, answers, strict=True):
            state, chunk, attempt = begun.state, batch[row].chunk, begun.attempt
            if state is None or not state.is_spoken or begun.is_published:
                if state in (State.CANCELLED, State.FAILED):
                    outcomes[row] = Outcome.CANCELLED
                continue
            if begun.other_rate:
                outcomes[row] = self._leave(chunk, begun.other_rate)
                continue
            content = chunk.content
            if content and content in contents:
                # Two messages about the same sound: publishing the first one serves both.
                continue
            contents.add(content)
            if attempt > MAX_ATTEMPTS:
                reason = f"chunk {chunk.index} took {MAX_ATTEMPTS} workers down"
                bury(self.store.redis, chunk.urgency.value, reason, json.dumps(chunk.to_json()))
                self._fail(chunk, reason)
                outcomes[row] = Outcome.FAILED
            elif attempt > 1:
                suspects.append(row)
            else:
                together.append(row)
        return together, suspects

    def _leave(self, chunk: Chunk, rate: int) -> Outcome:
        """A job that was begun by a model of another rate. A listener is told, a long job waits: it
        is sent again, and that model's worker may come back.
        """
        own = self.engine.sample_rate
        reason = f"it was begun at {rate} samples per second, and the model here speaks at {own}"
        if chunk.kind is Kind.LONG:
            note = f"The job waits for a worker with its model: {reason}."
            self._with_patience(lambda: self._long_jobs.note(chunk.job_id, note))
            return Outcome.SKIPPED
        self._fail(chunk, reason)
        return Outcome.FAILED

    def _speak_rows(
        self,
        batch: Sequence[Waiting],
        rows: list[int],
        outcomes: list[Outcome],
        taken_at: float,
        cores: int,
    ) -> float:
        """Speak rows together and publish them; the work that it was, in seconds."""
        batch_id = uuid.uuid4().hex[:12]
        started = time.perf_counter()
        with self._noting:
            mark = self._in_engine.begin(started)
        try:
            spoken = self._try(batch, rows, outcomes, cores)
        finally:
            ended = time.perf_counter()
            with self._noting:
                share_s = self._in_engine.end(ended, mark)
        busy_s = ended - started
        if not spoken:
            return 0.0
        # Else it holds what halving the batch took, or is quicker than one core.
        if len(spoken) == len(rows) and cores == 1:
            with self._noting:
                self.pace.learn([batch[row].chunk for row in rows], busy_s)
        waits = [max(0.0, taken_at - batch[row].chunk.sent_at) for row, _ in spoken]
        results = [
            self._result(batch[row].chunk, audio, len(spoken), wait_s, busy_s)
            for (row, audio), wait_s in zip(spoken, waits, strict=True)
        ]
        cache_bytes = self.settings.cache_mb * 1_000_000
        self._with_patience(lambda: self.store.publish(results, cache_bytes))
        for row, _ in spoken:
            outcomes[row] = Outcome.SPOKEN
        rate = 2 * self.engine.sample_rate
        done = [
            Done(batch[row].chunk, len(result.pcm) / rate, wait_s)
            for (row, _), result, wait_s in zip(spoken, results, waits, strict=True)
        ]
        published_at = time.time()
        with self._noting:
            for one in done:
                self.pace.published(one.chunk, one.audio_s, published_at)
            self._learn_length(done[0])
            self.tally.add(batch_id, done, busy_s, share_s)
        return sum(work(one.chunk, one.audio_s) for one in done)

    def _learn_length(self, done: Done) -> None:
        # One of each batch is enough; to estimate costs as much as all else that is noted of it.
        chunk = done.chunk
        estimated_s = estimate_seconds(chunk.text, chunk.language, chunk.speed)
        self.pace.learn_length(estimated_s, done.audio_s)

    def _try(
        self, batch: Sequence[Waiting], rows: list[int], outcomes: list[Outcome], cores: int
    ) -> "list[tuple[int, Audio]]":
        """Speak rows together; if that raises, find the row that does it by halving."""
        try:
            audios = self._synthesize([batch[row].chunk for row in rows], cores)
            return list(zip(rows, audios, strict=True))
        except Exception as error:
            # The one broad catch of the worker: whatever a chunk does to the engine, its
            # neighbours are spoken and its own job is told why.
            if len(rows) == 1:
                self._check_engine()
                chunk = batch[rows[0]].chunk
                about = facts(job_id=chunk.job_id, chunk=chunk.index)
                logger.exception("chunk failed", extra=about)
                reason = f"chunk {chunk.index}: {type(error).__name__}: {error}"
                self._fail(chunk, reason)
                outcomes[rows[0]] = Outcome.FAILED
                return []
            logger.warning("batch of %d failed (%s), trying its halves", len(rows), error)
        middle = len(rows) // 2
        halves = rows[:middle], rows[middle:]
        return [one for half in halves for one in self._try(batch, half, outcomes, cores)]

    def _synthesize(self, chunks: Sequence[Chunk], cores: int) -> "list[Audio]":
        utterances = [_utterance(chunk) for chunk in chunks]
        if not slicing.pays(chunks, self.engine, time.time(), self.is_crowded()):
            return self.engine.synthesize(utterances, cores=cores)
        ttl_s = self.settings.stream_ttl_s
        publisher = SlicePublisher(
            self.store, chunks, ttl_s, self.tally.first_slice, self.is_crowded
        )
        return self.engine.synthesize(utterances, publisher, cores)

    def idle(self) -> None:
        """Nothing waits: let the engine prepare one thing for later."""
        try:
            self.engine.idle()
        except Exception:
            # A GPU short of memory, for one. What is prepared only saves time.
            logger.exception("the engine could not prepare for later batches")

    def _check_engine(self) -> None:
        """A chunk failed alone: is it the chunk, or would any chunk fail now?

        A worker whose device is lost fails fast, so it would draw and fail everybody's chunks.
        """
        try:
            self.engine.check()
        except Exception as error:
            raise EngineBroken(f"cannot speak anything: {error}") from error

    def _fail(self, chunk: Chunk, reason: str) -> None:
        self._with_patience(lambda: self.store.fail(chunk, reason))

    def _result(
        self, chunk: Chunk, audio: "Audio", batch_size: int, wait_s: float, busy_s: float
    ) -> ChunkResult:
        is_long = chunk.kind is Kind.LONG
        return ChunkResult(
            job_id=chunk.job_id,
            index=chunk.index,
            pcm=to_pcm16(audio.samples),
            facts={
                "batch_size": batch_size,
                "queue_time_ms": round(wait_s * 1000, 3),
                "inference_time_ms": round(busy_s * 1000, 3),
                "cached": False,
            },
            content=chunk.content,
            # The web named it after the model it knew of. Another model's worker serves those who
            # wait all the same, but what it says must not be kept under that name.
            may_be_kept=chunk.content == content_key(self.engine.fingerprint, chunk),
            ttl_s=self.settings.job_ttl_s if is_long else self.settings.stream_ttl_s,
        )

    def _with_patience(self, call: Callable[[], T]) -> T:
        """Call Redis; when it is away, wait for it a while rather than lose a computed batch."""
        give_up_at = time.monotonic() + REDIS_PATIENCE_S
        while True:
            try:
                return call()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                if self.is_stopping or time.monotonic() > give_up_at:
                    raise
                logger.warning("Redis is away (%s), trying again", error)
                time.sleep(0.2)


def _utterance(chunk: Chunk) -> "Utterance":
    # Imported here: the engine brings torch, and Flower loads this module without it.
    from supertonic.utterance import Utterance

    return Utterance(
        text=chunk.text,
        language=chunk.language,
        voice=chunk.voice,
        steps=chunk.steps,
        speed=chunk.speed,
        seed=chunk.seed,
        index=chunk.index,
    )
