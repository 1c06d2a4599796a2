"""Two rows of ``make bench-service`` that need no HTTP: what passes the queue per second, and how
long a first chunk waits behind a backlog.

The web's own code submits and follows, in threads of one process; the worker's engine is null.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask

from app import create_app
from app.errors import Problem
from app.follow import Ended, Spoken, follow
from app.jobs import Speech
from app.schemas import SpeechBody
from benchmarks.measure import percentile
from benchmarks.service import Service
from benchmarks.traffic import text_of
from tasks.messages import Job, Kind, Piece, State
from tasks.settings import Settings

# Nobody is refused: what is wanted here is the backlog.
UNLIMITED = ("max_wait_s", "max_long_wait_s", "key_queue_s", "key_long_queue_s")
READERS = 8
ROUNDS = 3
BACKLOG = 3000
BATCH_MS = 50


def measure(seconds: float, probes: int) -> dict[str, Any]:
    """``chunks_per_s`` of 300 KB, published to seen; ``high_wait_p50_ms`` and ``…p99_ms``."""
    with Service(**{f"SUPERTONIC_{name.upper()}": "0" for name in UNLIMITED}) as service:
        service.start("redis")
        service.wait_for_redis()
        web = create_app(Settings.from_env(service.env))
        speech: Speech = web.extensions["speech"]
        with _worker(service, speech, NULL_BYTES="300000"):
            windows = [throughput(web, seconds) for _ in range(ROUNDS + 1)]
        with _worker(service, speech, NULL_BYTES="3000", NULL_BATCH_MS=str(BATCH_MS)):
            waits = high_waits(web, probes)
    return {
        # The first round warms up: Redis gets the memory that it uses again later.
        "chunks_per_s": percentile([rate for rate, _ in windows[1:]], 50),
        "high_wait_p50_ms": percentile(waits, 50) * 1000,
        "high_wait_p99_ms": percentile(waits, 99) * 1000,
        "failed": sum(failed for _, failed in windows),
    }


@contextmanager
def _worker(service: Service, speech: Speech, **env: str) -> Iterator[None]:
    """A worker with a null engine."""
    command = "exec celery --quiet -A benchmarks.null_worker worker"
    command += " --without-gossip --without-mingle -n null@bench"
    service.start("worker", command, **env)
    service.wait_until(lambda: bool(speech.workers()))
    yield
    service.stop("worker")


def _body(characters: int) -> SpeechBody:
    return SpeechBody(text=text_of(characters), pause_s=0.0)


def _submit(web: Flask, body: SpeechBody) -> tuple[Job, list[Piece]]:
    with web.app_context():
        speech: Speech = web.extensions["speech"]
        return speech.submit(body, Kind.STREAM)


def _hear(web: Flask, body: SpeechBody) -> tuple[int, State]:
    """Submit and follow to the end: chunks seen, with their sound, and how it ended."""
    job, pieces = _submit(web, body)
    chunks, state = 0, State.FAILED
    for item in follow(web.extensions["speech"], job, pieces, may_return=False):
        if isinstance(item, Spoken):
            assert item.pcm
            chunks += 1
        elif isinstance(item, Ended):
            state = item.state
    return chunks, state


def throughput(web: Flask, seconds: float) -> tuple[float, int]:
    """Chunks per second that READERS threads see, and how many jobs failed."""
    body = _body(1800)  # some eight chunks
    seen, failed = [0] * READERS, [0] * READERS
    until = time.perf_counter() + 1.0 + seconds
    begin = until - seconds

    def read(number: int) -> None:
        while time.perf_counter() < until:
            try:
                chunks, state = _hear(web, body)
            except Problem:
                # Refused, above all because Redis is full; it counts, and is not tried at once.
                chunks, state = 0, State.FAILED
                time.sleep(0.1)
            if time.perf_counter() > begin:
                seen[number] += chunks
            failed[number] += state is not State.DONE

    threads = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(seen) / (time.perf_counter() - begin), sum(failed)


def high_waits(web: Flask, probes: int) -> list[float]:
    """Seconds from submitting one short chunk to seeing it, while BACKLOG chunks of others wait
    and every batch takes BATCH_MS. What is unavoidable is the rest of a batch, and one's own.
    """
    speech: Speech = web.extensions["speech"]
    long, short = _body(40_000), _body(20)
    jobs = []

    def fill() -> None:
        lengths = speech.store.queue_lengths()
        waiting = sum(lengths[name] for name in ("normal", "held"))
        while waiting < BACKLOG:
            job, pieces = _submit(web, long)
            jobs.append(job)
            waiting += len(pieces)

    waits: list[float] = []
    while len(waits) < probes:
        fill()
        # Not in step with the batches.
        time.sleep(0.03 + 0.04 * (len(waits) * 0.618 % 1))
        started = time.perf_counter()
        chunks, state = _hear(web, short)
        assert (chunks, state) == (1, State.DONE)
        waits.append(time.perf_counter() - started)
    for job in jobs:
        speech.cancel(job)
    return waits
