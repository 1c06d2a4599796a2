"""Speech while it is made: Server-Sent Events and WebSocket frames.

SSE ids count what a client has seen: 0 is ``accepted``, k + 1 is chunk k, and k+n the first n
samples of chunk k. All leave in order, so that one id is enough to resume anywhere, on any web
process.
"""

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import redis
from flask import Response, current_app, request
from flask_sock import Sock
from kombu.exceptions import OperationalError
from pybase64 import b64encode
from simple_websocket import ConnectionClosed, Server

from app.access import Visitor
from app.errors import Problem, field_problem, redis_away
from app.follow import Ended, Gap, Paused, Quiet, Resumed, Spoken, follow, let_go
from app.jobs import Speech
from app.schemas import WishBody, parse_json, validate
from supertonic.audio import wav_bytes
from tasks.messages import Job, Kind, Piece, State

HEARTBEAT_FIRST_S = 1.0
HEARTBEAT_LATER_S = 15.0
# Texts one WebSocket may have waiting behind the one being spoken.
MAX_WISHES = 100

logger = logging.getLogger(__name__)

sock = Sock()


def sse_response(
    speech: Speech,
    job: Job,
    pieces: list[Piece],
    after: int = -2,
    *,
    start: int = 0,
    with_audio: bool = True,
    slices: bool = False,
    cancel_on_hangup: bool = False,
) -> Response:
    """A job as Server-Sent Events after event id ``after + 1``; -2 means from the beginning. Of
    the first chunk then, what is behind its first ``start`` samples.
    """
    job = replace(job, slices=slices)
    items = follow(
        speech,
        job,
        pieces,
        max(after, -1),
        with_audio=with_audio,
        start=start,
        once=cancel_on_hangup,
    )
    events = _events(speech, job, items, after < -1, with_audio, not cancel_on_hangup)
    if cancel_on_hangup:
        events = cancelling(speech, job, events)
    response = Response(events, content_type="text/event-stream; charset=utf-8")
    response.headers["Cache-Control"] = "no-cache, no-transform"
    # nginx would otherwise hold events back until a buffer is full.
    response.headers["X-Accel-Buffering"] = "no"
    response.headers["X-Job-Id"] = job.job_id
    return response


def _events(
    speech: Speech,
    job: Job,
    items: Iterator[Spoken | Gap | Quiet | Paused | Resumed | Ended],
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

    peer = request.environ.get("gunicorn.socket")
    watch = current_app.extensions["hangup"].watch(peer, gone)

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
    head = _sse("chunk", _chunk_head(job, item), seen)
    if item.pcm is None:
        return head
    # Base64 needs no escaping. Put in as bytes, 400 KB of it are not copied through the JSON
    # encoder, which took more of the web's time than everything else together.
    sound = b64encode(wav_bytes(item.pcm, job.sample_rate))
    return b"".join((head.removesuffix(b"}\n\n"), b', "audio_base64": "', sound, b'"}\n\n'))


def _chunk_head(job: Job, item: Spoken) -> dict[str, Any]:
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
    return _sse("error", failure(job, item.error).body(), job.count + 1)


def failure(job: Job, error: str) -> Problem:
    """Why a job failed, for any kind of answer."""
    return Problem(500, error or "The job failed.", job_id=job.job_id)


def _sse(event: str, body: dict[str, Any], event_id: int | str) -> bytes:
    data = json.dumps(body, ensure_ascii=False)
    return f"id: {event_id}\nevent: {event}\ndata: {data}\n\n".encode()


# -- WebSocket -------------------------------------------------------------------------------


class _Conversation:
    """One WebSocket: texts in, binary audio frames out, one text at a time, in order.

    The socket's messages are read in a thread of their own, so that a cancel or a hang-up takes
    effect while chunks are being sent.
    """

    def __init__(self, ws: Server, speech: Speech, visitor: Visitor) -> None:
        self.ws = ws
        self.speech = speech
        self.visitor = visitor
        self.wishes: deque[dict[str, Any] | None] = deque()
        self.job: Job | None = None
        self.is_speaking = False
        self.is_cancelled = False
        self._state = threading.Condition()
        self._sending = threading.Lock()

    def run(self) -> None:
        threading.Thread(target=self._read, name="websocket", daemon=True).start()
        while (wish := self._next_wish()) is not None:
            try:
                self._speak(wish)
            except Problem as problem:
                self._send_problem(problem)
            except (redis.RedisError, OperationalError) as error:
                logger.warning("Redis is away: %s", error)
                self._send_problem(redis_away())
            finally:
                self._end_speaking()

    # -- reading, in a thread of its own -----------------------------------------------------

    def _read(self) -> None:
        try:
            while True:
                self._hear(self.ws.receive())
        except ConnectionClosed:
            pass
        finally:
            # Whatever ended the reading: nothing is spoken for nobody, and the sender stops.
            try:
                self._cancel()
            except (redis.RedisError, OperationalError) as error:
                logger.warning("could not cancel a job after its client left: %s", error)
            with self._state:
                self.wishes.append(None)
                self._state.notify()

    def _hear(self, message: str | bytes) -> None:
        try:
            data = parse_json(message)
            kind = data.pop("type", None) if isinstance(data, dict) else None
            if kind == "speak":
                self._wish(data)
            elif kind == "cancel":
                if not self._cancel():
                    self._send({"type": "cancelled", "samples_sent": 0})
            else:
                raise field_problem("type", kind, 'must be "speak" or "cancel"')
        except Problem as problem:
            self._send_problem(problem)
        except (redis.RedisError, OperationalError) as error:
            logger.warning("Redis is away: %s", error)
            self._send_problem(redis_away())

    def _wish(self, data: dict[str, Any]) -> None:
        self.visitor.check_text()
        with self._state:
            if len(self.wishes) >= MAX_WISHES:
                detail = f"{MAX_WISHES} texts are waiting already; send more when some are done"
                raise Problem(429, detail)
            self.wishes.append(data)
            self._state.notify()

    def _cancel(self) -> bool:
        """Drop what waits and stop what is spoken; False if nothing was being spoken."""
        with self._state:
            self.wishes.clear()
            self.is_cancelled = self.is_speaking
            job = self.job
        if job is not None:
            self.speech.cancel(job)
        return self.is_cancelled

    # -- speaking, in the request's thread ---------------------------------------------------

    def _next_wish(self) -> dict[str, Any] | None:
        with self._state:
            while not self.wishes:
                self._state.wait()
            wish = self.wishes.popleft()
            self.is_speaking, self.is_cancelled = wish is not None, False
            return wish

    def _end_speaking(self) -> bool:
        """From here on a cancel means what comes next. True if this one was cancelled."""
        with self._state:
            self.job, self.is_speaking = None, False
            return self.is_cancelled

    def _speak(self, wish: dict[str, Any]) -> None:
        body = validate(WishBody, wish)
        job, pieces = self.speech.submit(body, Kind.STREAM, self.visitor.owner, body.slices)
        with self._state:
            self.job = job
            is_too_late = self.is_cancelled
        if is_too_late:
            # The cancel came while the job was being made.
            self.speech.cancel(job)
        self._send({"type": "accepted"} | accepted(job))
        sent = 0
        for item in follow(self.speech, job, pieces, once=True):
            if not self.ws.connected:
                # The reading thread may have failed to cancel, for want of Redis.
                self.speech.cancel(job)
                return
            if isinstance(item, Gap):
                raise failure(job, f"the audio of chunk {item.index} is no longer kept")
            if isinstance(item, Spoken) and item.pcm is not None:
                self._send({"type": "chunk"} | _chunk_head(job, item), item.pcm)
                sent += item.n_samples
            elif isinstance(item, Ended):
                self._end(job, item, sent)

    def _end(self, job: Job, item: Ended, sent: int) -> None:
        is_cancelled = self._end_speaking()
        if item.state is State.FAILED:
            self._send_problem(failure(job, item.error))
            return
        # A cancel that came with the last chunk is answered as one: its sender waits for that.
        state = State.CANCELLED if is_cancelled else item.state
        facts = {"job_id": job.job_id, "total_chunks": job.count, "samples_sent": sent}
        self._send({"type": state.value} | facts)

    def _send_problem(self, problem: Problem) -> None:
        body = problem.body() | {"type": "error"}
        if problem.retry_after_s is not None:
            body["retry_after_seconds"] = problem.retry_after_s
        self._send(body)

    def _send(self, body: dict[str, Any], frame: bytes | None = None) -> None:
        try:
            with self._sending:
                self.ws.send(json.dumps(body, ensure_ascii=False))
                if frame is not None:
                    self.ws.send(frame)
        except (ConnectionClosed, OSError):
            # The reading thread notices too, cancels the job and ends the conversation.
            pass


@sock.route("/ws/synthesize")
def synthesize(ws: Server) -> None:
    """Text in, binary s16le frames out; see README for the messages."""
    _Conversation(ws, current_app.extensions["speech"], Visitor(request)).run()
