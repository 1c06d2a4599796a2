"""From a job to its chunk messages: urgency, deadline and estimated length of each."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from kombu.exceptions import OperationalError

from supertonic.text import estimate_seconds
from tasks.cache import content_key
from tasks.celery import queue_lengths
from tasks.events import EventStore
from tasks.messages import Chunk, Job, Kind, Piece, Urgency
from tasks.settings import Settings
from tasks.workers import WorkerRecords


def make_chunks(
    job: Job, pieces: Sequence[Piece], indexes: Iterable[int], length_ratio: float = 1.0
) -> list[Chunk]:
    """Messages for some of a job's pieces, ``length_ratio`` times as long as is usual for them.

    A listener needs the first of them now, and each later one when the audio before it has been
    played. Nobody waits for a long job's chunks: they have their share of a worker, and no
    deadline.
    """
    request, now = job.request, time.time()
    wanted = set(indexes)
    chunks: list[Chunk] = []
    due = now
    # Of a novel, a few are wanted at a time.
    for index in range(min(wanted, default=0), max(wanted, default=-1) + 1):
        piece = pieces[index]
        seconds = estimate_seconds(piece.spoken, request.language, request.speed) * length_ratio
        if index in wanted:
            chunk = Chunk(
                job_id=job.job_id,
                index=index,
                count=job.count,
                text=piece.spoken,
                voice=piece.voice or request.voice,
                language=request.language,
                steps=request.steps,
                speed=request.speed,
                seed=request.seed,
                kind=job.kind,
                urgency=_urgency(job.kind, index),
                due=now if job.kind is Kind.LONG else due,
                seconds=seconds,
                sent_at=now,
                slices=job.slices and job.kind is Kind.STREAM and index == 0,
                content="",
            )
            if job.fingerprint:
                chunk = replace(chunk, content=content_key(job.fingerprint, chunk))
            chunks.append(chunk)
        due += seconds + piece.pause_s
    return chunks


def _urgency(kind: Kind, index: int) -> Urgency:
    if kind is Kind.LONG:
        return Urgency.LOW
    return Urgency.HIGH if index == 0 else Urgency.NORMAL


def silence_s(store: EventStore, settings: Settings, kept_s: float) -> float:
    """How long nothing may be heard of a job before its chunks in the queue count as lost.

    ``kept_s`` is how long their messages live.
    """
    if _nothing_waits(store):
        return settings.stall_s
    # Others' chunks wait too, or cannot be seen from here: silence may well mean a long queue. The
    # claim channel loses nothing that waits; another transport may.
    return kept_s if settings.broker_url == "" else 10 * settings.stall_s


def _nothing_waits(store: EventStore) -> bool:
    """Whether no chunk is in a queue or in a worker. What the files worker holds cannot be told
    from chunks in Redis, so it counts as one while it is at work.
    """
    try:
        lengths = queue_lengths(store)
    except OperationalError:
        return False
    if any(length for name, length in lengths.items() if name != "files"):
        return False
    # RabbitMQ does not tell what workers hold; they do, twice a second.
    return "held" in lengths or not any(
        worker.waiting or worker.speaking for worker in WorkerRecords(store.redis).living()
    )
