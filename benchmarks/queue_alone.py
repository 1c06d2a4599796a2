"""The queue and the way back by themselves, without HTTP: what one web process would see."""

import random
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.bell import Bell
from tasks.celery import start_job
from tasks.events import EventStore, connect
from tasks.messages import Chunk, Job, Kind, Piece, SpeechRequest, State, Urgency
from tasks.sending import make_chunks

SENTENCE = "A null engine says nothing, and it says it at once."
THREADS = 8
BACKLOG = 3000


def make_job(count: int) -> tuple[Job, list[Piece]]:
    """A job of so many chunks that are all alike."""
    job = Job(
        job_id=secrets.token_hex(12),
        kind=Kind.STREAM,
        state=State.QUEUED,
        request=SpeechRequest(SENTENCE, "M1", "en", 2, 1.05, 0, 0.0),
        count=count,
        done=0,
        samples=0,
        pause_samples=0,
        sample_rate=44_100,
        created_at=time.time(),
        started_at=None,
        finished_at=None,
        error=None,
        warnings=(),
        owner="",
    )
    return job, [Piece(SENTENCE, 0.0)] * count


@dataclass
class Process:
    """What a web process has of this: one client, one bell, one store."""

    bell: Bell
    store: EventStore

    @classmethod
    def at(cls, redis_url: str) -> "Process":
        client = connect(redis_url)
        bell = Bell(client)
        return cls(bell, EventStore(client, bell.name))

    def speak(self, count: int) -> float:
        """Seconds from queueing a job to holding the sound of its last chunk."""
        job, pieces = make_job(count)
        with self.bell.listen(job.job_id) as line:
            started = time.perf_counter()
            start_job(self.store, job, pieces, 60, make_chunks(job, pieces, range(count)))
            seen = 0
            while seen < count:
                # Nothing: the bell has just found Redis.
                for event in line.wait(30.0) or ():
                    if event.type == "audio":
                        assert self.store.audio(job.job_id, event.index, 2)
                        seen += 1
            return time.perf_counter() - started

    def queue(self, chunks_of: Sequence[int], urgency: Urgency) -> None:
        """Queue jobs of so many chunks each, and follow none of them."""
        for count in chunks_of:
            job, pieces = make_job(count)
            chunks: list[Chunk] = [
                replace(chunk, urgency=urgency) for chunk in make_chunks(job, pieces, range(count))
            ]
            start_job(self.store, job, pieces, 60, chunks)


def chunks_per_s(redis_url: str, n_chunks: int, seconds: float) -> float:
    """As many jobs at a time as there are threads, each followed by the next."""
    process = Process.at(redis_url)
    end_at = time.perf_counter() + seconds
    seen = [0] * THREADS

    def run(number: int) -> None:
        while time.perf_counter() < end_at:
            process.speak(n_chunks)
            seen[number] += n_chunks

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(seen) / (time.perf_counter() - started)


def high_waits(redis_url: str, runs: int) -> list[float]:
    """Seconds until a first chunk is heard while thousands of others wait, one at a time."""
    process = Process.at(redis_url)
    process.queue([1000] * (BACKLOG // 1000), Urgency.NORMAL)
    waits = []
    for _ in range(runs):
        if process.store.redis.llen("normal") < BACKLOG // 3:
            process.queue([1000], Urgency.NORMAL)
        # Not in step with the batches, which the last answer came with.
        time.sleep(random.uniform(0, 0.05))
        waits.append(process.speak(1))
    return waits
