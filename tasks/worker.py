"""The speech worker: ``celery -A tasks worker`` imports this and gets the engine and the queue.

This is the one module that knows both the model and Celery. It loads the engine before the worker
consumes anything, hands it to the batching consumer, and keeps the worker's record alive.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
from celery import bootsteps, signals
from celery.utils.log import get_logger
from celery.worker.control import inspect_command
from kombu.exceptions import OperationalError

from supertonic.errors import SupertonicError
from supertonic.memory import reuse_large_buffers, spare_what_is_there
from supertonic.text import estimate_seconds
from tasks.batching import BatchLimits
from tasks.celery import SYNTHESIZE, app, send_advance
from tasks.consumer import BatchingConsumer
from tasks.delays import exchange
from tasks.events import EventStore, connect
from tasks.logs import facts, set_up
from tasks.pace import Cost, Pace
from tasks.settings import Settings
from tasks.speaker import Speaker
from tasks.throughput import measure
from tasks.workers import WorkerRecord, WorkerRecords

# Before torch comes in: its waiting threads must sleep, not spin. On a machine where something
# else runs too, spinning turned 0.3 s of speaking into 7 s.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Kernels are built per length of a row; the default cache holds some 60 lengths, and each new one
# costs 10 to 20 ms.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")

# What a worker times when it starts: a first chunk and a usual one.
SHORT = "Good evening, and welcome."
LONG = "This is a sentence of some length, and it says nothing at all. " * 3
TIMING_ROUNDS = 3
TIMING_LIMIT_S = 0.5  # no further round after that

logger = get_logger(__name__)
settings = Settings.from_env()


def load_engine() -> Any:
    """The engine this worker speaks with. Raises SupertonicError when it cannot be loaded."""
    # Imported here: Flower imports this module to know the task, but has no torch.
    from supertonic import loading

    loaded = loading.load_engine(
        model=settings.model,
        model_dir=settings.model_dir,
        device=settings.device,
        precision=settings.precision,
    )
    loaded.warm_up()
    return loaded


# Benchmarks and tests put their own engine here before the worker starts.
engine_factory: Callable[[], Any] = load_engine


@app.task(name=SYNTHESIZE, Strategy="tasks.consumer:strategy")
def synthesize_chunk(chunk: dict[str, Any]) -> None:
    """A chunk's message. Its Strategy batches it; Celery never calls this body."""
    raise RuntimeError("chunks are spoken in batches; is this worker running another Strategy?")


class LoadEngine(bootsteps.Step):
    """Worker bootstep: no consuming before the model stands, and a clear end if it does not."""

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        # Pool threads run the model; without this they would keep the hub from the
        # interpreter for 5 ms at a time, and chunks would trickle in.
        sys.setswitchinterval(0.0005)
        started = time.perf_counter()
        try:
            engine = engine_factory()
        except SupertonicError as error:
            raise SystemExit(f"The worker cannot start: {error}") from None
        about = facts(
            seconds=time.perf_counter() - started, model=engine.name, device=engine.device
        )
        logger.info("engine ready", extra=about)
        reuse_large_buffers()
        client = connect(settings.redis_url)
        speaker = Speaker(engine, EventStore(client), settings)
        speaker.pace.batches_at_once = engine.batches_at_once
        # The pool's own step may be made before this one or after it, and copies the first of these
        # to the second. Only when all steps are made the pool is.
        worker.concurrency = worker.min_concurrency = engine.batches_at_once
        speaker.pace.measured = _time_batches(engine, speaker.pace)
        measure(speaker.throughput, engine)
        BatchingConsumer.speaker = speaker
        BatchingConsumer.limits = _limits(speaker.pace, None, None)
        BatchingConsumer.batch_limit_s = settings.batch_limit_s
        BatchingConsumer.on_tick = staticmethod(_Announcer(engine, WorkerRecords(client)))
        BatchingConsumer.on_long_jobs = staticmethod(_advance_jobs)


@inspect_command()
def active_queues(state: Any) -> list[dict[str, Any]]:
    """Celery's own knows one consumer; Flower shows the lengths of what is answered here."""
    lanes = state.consumer.batching.lanes
    return [queue.as_dict(recurse=True) for one in lanes.consumers for queue in one.queues]


@signals.worker_ready.connect
def _spare_what_is_there(**about: Any) -> None:
    """Model and queues stand; only what chunks make is new from now on."""
    spare_what_is_there()


app.steps["worker"].add(LoadEngine)
app.steps["consumer"].add(BatchingConsumer)


def _time_batches(engine: Any, pace: Pace) -> Cost:
    """Speak a little, so that the first listener's batch is not formed by guesswork."""
    # Imported here, as above.
    from supertonic.utterance import Utterance

    # On all cores at the same time, so that they are in each other's way as they will be.
    cores, language = engine.batches_at_once, engine.languages[0]
    shapes = ((SHORT, cores), (SHORT, 4 * cores), (LONG, cores))
    seconds = [math.inf] * len(shapes)
    # In the first round memory and kernels are set up; of the others the quickest is nearest to
    # what the engine needs when nothing else runs.
    give_up_at = time.perf_counter() + TIMING_LIMIT_S
    for _ in range(TIMING_ROUNDS):
        if time.perf_counter() > give_up_at:
            break
        for number, (text, rows) in enumerate(shapes):
            voice = engine.voices[0]
            batch = [Utterance(text, language, voice, 2, 1.0, 0, row) for row in range(rows)]
            started = time.perf_counter()
            audio = engine.synthesize(batch)[0]
            seconds[number] = min(seconds[number], time.perf_counter() - started)
            estimated_s = estimate_seconds(text, language, 1.0)
            pace.learn_length(estimated_s, len(audio.samples) / audio.sample_rate)
    works = (estimate_seconds(SHORT, language, 1.0), estimate_seconds(LONG, language, 1.0))
    return Cost.measured(seconds[0], seconds[1], seconds[2], works)


def _limits(pace: Pace, max_batch: int | None, max_wait_ms: float | None) -> BatchLimits:
    wanted = settings.max_batch if max_batch is None else max_batch
    wait_ms = settings.max_wait_ms if max_wait_ms is None else max_wait_ms
    return BatchLimits(wanted, settings.max_batch_seconds, wait_ms / 1000, pace)


class _Announcer:
    """Twice a second: follow the batch limits set at run time, renew this worker's record."""

    def __init__(self, engine: Any, records: WorkerRecords) -> None:
        self.engine = engine
        self.records = records
        self.started_at = time.time()

    def __call__(self, batching: BatchingConsumer, name: str) -> None:
        try:
            limits = self.records.batch()
            batching.waiting.limits = _limits(batching.speaker.pace, *limits)
            self.records.announce(self._record(batching, name, *limits))
            batching.speaker.tally.meter.send(self.records.redis, name)
            exchange(self.records.redis, batching.speaker.pace, batching.waiting.chunks())
        except redis.RedisError as error:
            logger.warning("could not renew the worker record: %s", error)

    def _record(
        self, batching: BatchingConsumer, name: str, max_batch: int | None, wait_ms: float | None
    ) -> WorkerRecord:
        engine, tally, waiting = self.engine, batching.speaker.tally, batching.waiting
        return WorkerRecord(
            name=name,
            device=engine.device,
            precision=engine.precision,
            model=engine.name,
            is_builtin=engine.is_builtin,
            description=engine.description,
            fingerprint=engine.fingerprint,
            sample_rate=engine.sample_rate,
            voices=tuple(engine.voices),
            languages=tuple(engine.languages),
            max_batch=settings.max_batch if max_batch is None else max_batch,
            max_wait_ms=settings.max_wait_ms if wait_ms is None else wait_ms,
            started_at=self.started_at,
            waiting=len(waiting.chunks()),
            speaking=sum(len(chunks) for chunks in list(waiting.speaking.values())),
            batches=tally.batches,
            chunks=tally.chunks,
            audio_s=round(tally.audio_s, 3),
            busy_s=round(tally.busy_s, 3),
            rate=round(tally.rate, 2),
            throughput=round(batching.speaker.throughput.value, 2),
            length_ratio=round(batching.speaker.pace.length_ratio, 3),
            queue_wait_s=round(tally.queue_wait_s, 4),
            batch_size=round(tally.batch_size, 2),
            device_memory_bytes=engine.device_memory_bytes(),
        )


def _advance_jobs(job_ids: Sequence[str]) -> None:
    for job_id in job_ids:
        try:
            send_advance(job_id)
        except OperationalError as error:
            # The files worker looks after every job now and then by itself.
            logger.warning("could not announce progress of job %s: %s", job_id, error)


@signals.worker_shutting_down.connect
def _leave(sender: str, **kwargs: Any) -> None:
    """Tell the web at once that this worker takes nothing more."""
    try:
        WorkerRecords(connect(settings.redis_url)).leave(sender)
    except redis.RedisError as error:
        logger.warning("could not remove the worker record: %s", error)


@signals.worker_shutdown.connect
def _send_last_figures(sender: Any, **kwargs: Any) -> None:
    """What was measured since the last tick."""
    try:
        client = connect(settings.redis_url)
        BatchingConsumer.speaker.tally.meter.send(client, sender.hostname)
    except redis.RedisError as error:
        logger.warning("the last figures are lost: %s", error)


@signals.setup_logging.connect
def _set_up_logging(**kwargs: Any) -> None:
    set_up(settings, "worker")
