"""The queue and the way back by themselves, without HTTP: what one web process would see."""

import secrets
import time
from dataclasses import dataclass

from app.bell import Bell
from tasks.celery import start_job
from tasks.events import EventStore, connect
from tasks.messages import Job, Kind, Piece, SpeechRequest, State
from tasks.sending import make_chunks

SENTENCE = "A null engine says nothing, and it says it at once."


def make_job(count: int) -> tuple[Job, list[Piece]]:
    """A job of so many chunks that are all alike."""
    job = Job(
        job_id=secrets.token_hex(12),
        kind=Kind.STREAM,
        state=State.QUEUED,
        request=SpeechRequest(SENTENCE, len(SENTENCE), "M1", "en", 2, 1.05, 0, 0.0),
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
                        assert self.store.audios(job.job_id, [event.index], 2)[0]
                        seen += 1
            return time.perf_counter() - started
