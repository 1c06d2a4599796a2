"""From a job to its chunk messages: urgency, deadline and estimated length of each."""

import time
from collections.abc import Iterable, Sequence

from supertonic.text import estimate_seconds
from tasks.batching import LOW_PATIENCE_S
from tasks.messages import Chunk, Job, Kind, Piece, Urgency


def make_chunks(job: Job, pieces: Sequence[Piece], indexes: Iterable[int]) -> list[Chunk]:
    """Messages for some of a job's pieces.

    A listener needs chunk k when the audio before it has been played, so it is due that much
    later than the first. Nobody waits for a long job's chunks, except that they must get done.
    """
    request, now = job.request, time.time()
    wanted = set(indexes)
    chunks = []
    due = now
    for index, piece in enumerate(pieces):
        seconds = estimate_seconds(piece.text, request.language, request.speed)
        if index in wanted:
            chunks.append(
                Chunk(
                    job_id=job.job_id,
                    index=index,
                    count=job.count,
                    text=piece.text,
                    voice=request.voice,
                    language=request.language,
                    steps=request.steps,
                    speed=request.speed,
                    seed=request.seed,
                    kind=job.kind,
                    urgency=_urgency(job.kind, index),
                    due=now + LOW_PATIENCE_S if job.kind is Kind.LONG else due,
                    seconds=seconds,
                    sent_at=now,
                    slices=job.slices and job.kind is Kind.STREAM and index == 0,
                )
            )
        due += seconds + piece.pause_s
    return chunks


def _urgency(kind: Kind, index: int) -> Urgency:
    if kind is Kind.LONG:
        return Urgency.LOW
    return Urgency.HIGH if index == 0 else Urgency.NORMAL
