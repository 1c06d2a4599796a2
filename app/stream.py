"""Speech while it is made, as Server-Sent Events.

SSE ids count what a client has seen: 0 is ``accepted``, k + 1 is chunk k, and k+n the first n
samples of chunk k. All leave in order, so that one id is enough to resume anywhere, on any web
process.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson
from flask import Response
from pybase64 import b64encode

from app.follow import Ended, Gap, Item, Paused, Quiet, Resumed, Spoken, follow, let_go
from app.hangup import if_client_leaves
from app.jobs import Speech
from app.outcome import failure
from supertonic.audio import wav_bytes
from tasks.messages import Job, Piece, State

HEARTBEAT_FIRST_S = 1.0
HEARTBEAT_LATER_S = 15.0


def sse_response(
    speech: Speech,
    job: Job,
    pieces: list[Piece],
    after: int = -2,
    *,
    start: int = 0,
    with_audio: bool = True,
    slices: bool = False,
    may_return: bool = True,
    is_asker: bool = True,
) -> Response:
    """A job as Server-Sent Events after event id ``after + 1``; -2 means from the beginning. Of
    the first chunk then, what is behind its first ``start`` samples. Where the client may not
    return, the job is cancelled when it hangs up.
    """
    job = replace(job, slices=slices)
    items = follow(
        speech,
        job,
        pieces,
        max(after, -1),
        with_audio=with_audio,
        start=start,
        may_return=may_return,
        is_asker=is_asker,
    )
    events = _events(speech, job, items, after < -1, with_audio, may_return)
    if not may_return:
        events = cancelling(speech, job, events)
    response = Response(events, content_type="text/event-stream; charset=utf-8")
    response.headers["X-Job-Id"] = job.job_id
    return unbuffered(response)


def unbuffered(response: Response) -> Response:
    """The same, to be passed on as it comes by whatever is in between."""
    response.headers["Cache-Control"] = "no-cache, no-transform"
    # nginx would otherwise hold it back until a buffer is full.
    response.headers["X-Accel-Buffering"] = "no"
    return response


def _events(
    speech: Speech,
    job: Job,
    items: Iterator[Item],
    is_new: bool,
    with_audio: bool,
    may_return: bool,
) -> Iterator[bytes]:
    if is_new:
        yield _sse("accepted", accepted(job), 0)
    samples, beat_at, beat_s = 0, time.monotonic(), HEARTBEAT_FIRST_S
    for item in items:
        match item:
            case Spoken():
                samples += item.n_samples
                yield _chunk_event(job, item)
                if with_audio and may_return and item.is_last:
                    let_go(speech, job, [item.index])
                beat_at, beat_s = time.monotonic(), HEARTBEAT_LATER_S
            case Gap():
                detail = "The audio of this chunk is no longer kept."
                yield _sse("gap", {"index": item.index, "detail": detail}, item.index + 1)
            case Quiet() if time.monotonic() - beat_at >= beat_s:
                yield b": heartbeat\n\n"
                beat_at = time.monotonic()
            case Paused() | Resumed():
                # Without an id: these are not positions, and a client keeps its last one.
                name = "paused" if isinstance(item, Paused) else "resumed"
                yield f'event: {name}\ndata: {{"job_id": "{job.job_id}"}}\n\n'.encode()
            case Ended():
                yield _ending(job, item, samples if is_new else _samples_of(speech, job, samples))


def cancelling(speech: Speech, job: Job, events: Iterator[bytes]) -> Iterator[bytes]:
    """The events, and a cancelled job when the client goes before the end."""

    def gone() -> None:
        speech.cancel(job)

    watch = if_client_leaves(gone)

    def run() -> Iterator[bytes]:
        is_complete = False
        try:
            with watch:
                yield from events
            is_complete = True
        finally:
            if not is_complete:
                gone()

    return run()


def accepted(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "total": job.count,
        "sample_rate": job.sample_rate,
        "seed": job.request.seed,
        "warnings": list(job.warnings),
    }


def _chunk_event(job: Job, item: Spoken) -> bytes:
    seen = item.index + 1 if item.is_last else f"{item.index}+{item.start + item.n_samples}"
    head = _sse("chunk", chunk_head(job, item), seen)
    if item.pcm is None:
        return head
    # Base64 needs no escaping. Put in as bytes, 400 KB of it are not copied through the JSON
    # encoder, which took more of the web's time than everything else together.
    sound = b64encode(wav_bytes(item.pcm, job.sample_rate))
    return b"".join((head.removesuffix(b"}\n\n"), b', "audio_base64": "', sound, b'"}\n\n'))


def chunk_head(job: Job, item: Spoken) -> dict[str, Any]:
    part = {"start_sample": item.start, "is_last_slice": item.is_last} if job.slices else {}
    return {
        "index": item.index,
        "total": job.count,
        "duration_seconds": round(item.n_samples / job.sample_rate, 4),
        "n_samples": item.n_samples,
        "sample_rate": job.sample_rate,
        "text": item.text,
        **part,
        **item.facts,
    }


def _samples_of(speech: Speech, job: Job, heard: int) -> int:
    """Of the whole job, for one who came in the middle; what he has heard where the job is gone."""
    now = speech.store.job(job.job_id)
    return heard if now is None else now.samples + now.pause_samples


def _ending(job: Job, item: Ended, samples: int) -> bytes:
    if item.state is State.DONE:
        seconds = round(samples / job.sample_rate, 4)
        body = {"total_chunks": job.count, "duration_seconds": seconds, "job_id": job.job_id}
        return _sse("done", body, job.count + 1)
    if item.state is State.CANCELLED:
        return _sse("cancelled", {"job_id": job.job_id}, job.count + 1)
    return _sse("error", failure(job, item.error, item.status).body(), job.count + 1)


def _sse(event: str, body: dict[str, Any], event_id: int | str) -> bytes:
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (
        str(event_id).encode(),
        event.encode(),
        orjson.dumps(body),
    )
