"""Chunks and jobs for tests, with every field filled in; a test names only what it is about."""

import time
from typing import Any

from tasks.batching import Waiting
from tasks.messages import Chunk, Job, Kind, Piece, SpeechRequest, State, Urgency

RATE = 22_050
REQUEST = SpeechRequest("Hello there.", 12, "M1", "en", steps=1, speed=1.0, seed=0, pause_s=0.3)


def a_chunk(job_id: str = "job", index: int = 0, **fields: Any) -> Chunk:
    values: dict[str, Any] = {
        "count": 1,
        "text": "Hello there.",
        "voice": "M1",
        "language": "en",
        "steps": 1,
        "speed": 1.0,
        "seed": 0,
        "kind": Kind.STREAM,
        "urgency": Urgency.HIGH,
        "due": 0.0,
        "seconds": 1.0,
        "sent_at": time.time(),
        "slices": False,
        "content": "",
    }
    return Chunk(job_id=job_id, index=index, **(values | fields))


def waiting_chunk(job_id: str = "job", index: int = 0, **fields: Any) -> Waiting:
    arrived = fields.pop("arrived", 0.0)
    return Waiting(a_chunk(job_id, index, **fields), arrived)


def a_job(job_id: str = "job", count: int = 1, kind: Kind = Kind.STREAM) -> Job:
    return Job(
        job_id=job_id,
        kind=kind,
        state=State.QUEUED,
        request=REQUEST,
        count=count,
        done=0,
        samples=0,
        pause_samples=0,
        sample_rate=RATE,
        created_at=time.time(),
        started_at=None,
        finished_at=None,
        error=None,
        warnings=("a warning",),
        owner="",
    )


def some_pieces(count: int) -> list[Piece]:
    return [Piece(f"Piece number {index}.", 0.3) for index in range(count)]
