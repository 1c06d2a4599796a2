"""The routes of long jobs: accepting, listing, watching, holding, fetching and ending them."""

import base64
import binascii
import math
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

from flask import Blueprint, Response, current_app, jsonify, request
from werkzeug.wrappers import Response as AnyResponse

from app.accepting import Accepting, idempotency_key
from app.access import owner_of
from app.captions import CAPTION_TYPES, as_srt, as_vtt, cues
from app.encoding import FILE_FORMATS
from app.errors import Problem, field_problem
from app.follow import Spoken
from app.job_sound import (
    collected,
    encoded,
    first_samples,
    json_with_sound,
    samples_in,
    tell_job,
    tell_warnings,
    whole_file,
)
from app.jobs import speech
from app.outcome import until_done
from app.schemas import EVENT_ID, LongBody, read_json, validate
from app.stream import sse_response
from supertonic.audio import silence
from tasks.celery import send_advance
from tasks.jobsound import Entry
from tasks.longjobs import LongJobs
from tasks.messages import Job, Kind, Piece, State
from tasks.webhooks import Delivery

job_routes = Blueprint("jobs", __name__)


def long_jobs() -> LongJobs:
    service: LongJobs = current_app.extensions["long_jobs"]
    return service


@job_routes.post("/synthesize/long")
def synthesize_long() -> AnyResponse:
    # Everything that may be refused first: what is refused makes no job and takes no key.
    body, must_wait = validate(LongBody, read_json(request)), _flag("wait")
    key = idempotency_key(request.headers.get("Idempotency-Key"))
    accepting: Accepting = current_app.extensions["accepting"]
    job, pieces, is_known = accepting.accept(body, owner_of(request), key)
    if must_wait:
        # Who gave a key comes back with it when the connection breaks, and wants the same job.
        response = _wait_for_long(job, pieces, body.output_format, may_return=key is not None)
    else:
        response = jsonify(job_json(job))
        response.status_code = 202
    response.headers["Location"] = f"/jobs/{job.job_id}"
    if is_known:
        response.headers["Idempotent-Replayed"] = "true"
    return response


def _wait_for_long(job: Job, pieces: list[Piece], output_format: str, may_return: bool) -> Response:
    """The original server's one-shot answer: the sound itself, as /synthesize gives it."""
    service = speech()
    facts = []
    peer = request.environ.get("gunicorn.socket")

    left = threading.Event()

    def gone() -> None:
        left.set()
        if not may_return:
            service.cancel(job)

    with current_app.extensions["hangup"].watch(peer, gone):
        for item in until_done(service, job, pieces, with_audio=False):
            if isinstance(item, Spoken):
                facts.append(item.facts)
            if left.is_set():
                # The job may go on, but nobody is here whom this thread could answer.
                raise Problem(409, "The client has left.", job_id=job.job_id)
    file, size = _stored(job)
    if output_format == "wav":
        response = whole_file(file, size, job.job_id)
        tell_warnings(response, job.warnings)
    else:
        response = json_with_sound(job, file, size, facts)
    return tell_job(response, job)


def _stored(job: Job) -> tuple[BinaryIO, int]:
    """The sound of a long job that is done, and its size in bytes."""
    found = speech().files.open_sound(job.job_id)
    if found is None:
        raise Problem(410, "The audio of this job is no longer kept.")
    return found


@job_routes.get("/jobs")
def list_jobs() -> Response:
    limit = request.args.get("limit", "50")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 5 and 1 <= int(limit) <= 1000):
        raise field_problem("limit", limit, "must be a whole number from 1 to 1000")
    wanted = request.args.get("state")
    if wanted is not None and wanted not in list(State):
        raise field_problem("state", wanted, f"must be one of {', '.join(State)}")
    state = State(wanted) if wanted else None
    jobs, following = long_jobs().page(owner_of(request), state, int(limit), _cursor())
    return jsonify(jobs=jobs_json(jobs), next_cursor=_cursor_text(following))


def _cursor() -> tuple[float, str] | None:
    """Where in the list to begin: behind this time and job."""
    text = request.args.get("cursor", "")
    if text == "":
        return None
    try:
        score, _, job_id = base64.urlsafe_b64decode(text).decode("ascii").partition(" ")
        if not math.isfinite(float(score)):
            raise ValueError(score)
        return float(score), job_id
    except (ValueError, binascii.Error):
        raise field_problem("cursor", text, "must be the next_cursor of an answer") from None


def _cursor_text(key: tuple[float, str] | None) -> str | None:
    if key is None:
        return None
    return base64.urlsafe_b64encode(f"{key[0]!r} {key[1]}".encode()).decode()


@job_routes.get("/jobs/<job_id>")
def get_job(job_id: str) -> Response:
    job, _ = find_job(job_id)
    return jsonify(job_json(job))


@job_routes.delete("/jobs/<job_id>")
def delete_job(job_id: str) -> Response:
    """Cancel a running job; remove one that has ended."""
    job, _ = find_job(job_id)
    if job.state.is_final:
        speech().delete(job)
        return jsonify(job_json(job) | {"deleted": True})
    speech().cancel(job)
    return get_job(job_id)


@job_routes.post("/jobs/<job_id>/pause")
def pause_job(job_id: str) -> Response:
    """Nothing of the job enters a batch from now on; what is being spoken is still taken."""
    job = _find_long(job_id)
    # The disk first: a pause must outlast Redis.
    _mark(job_id, True)
    long_jobs().pause(job_id)
    return _held(job, State.PAUSED)


@job_routes.post("/jobs/<job_id>/resume")
def resume_job(job_id: str) -> Response:
    """Let a paused job go on where it stopped."""
    job = _find_long(job_id)
    _mark(job_id, False)
    long_jobs().resume(job_id)
    send_advance(job_id)
    return _held(job, State.RUNNING)


def _mark(job_id: str, is_paused: bool) -> None:
    try:
        speech().files.set_paused(job_id, is_paused)
    except FileNotFoundError:
        raise Problem(404, "The job has been deleted meanwhile.") from None


def _find_long(job_id: str) -> Job:
    job, _ = find_job(job_id)
    if job.kind is not Kind.LONG:
        raise Problem(409, "Only long jobs can be paused; this is a stream.", state=job.state.value)
    if job.state.is_final:
        raise Problem(409, f"The job is {job.state.value} already.", state=job.state.value)
    return job


def _held(job: Job, wanted: State) -> Response:
    now, _ = find_job(job.job_id)
    if now.state.is_final and wanted is State.PAUSED:
        raise Problem(409, f"The job is {now.state.value} already.", state=now.state.value)
    return jsonify(job_json(now))


@job_routes.get("/jobs/<job_id>/audio")
def job_audio(job_id: str) -> AnyResponse:
    (job, pieces), is_partial, kind = find_job(job_id), _flag("partial"), _format(*FILE_FORMATS)
    if job.state is not State.DONE and is_partial and job.kind is Kind.LONG:
        return _sound_so_far(job, kind)
    if job.state is not State.DONE:
        sooner = "; partial=true gives what there is" if job.kind is Kind.LONG else ""
        raise not_yet(job, f"its audio exists once it is done{sooner}")
    file, size = _stored(job) if job.kind is Kind.LONG else _kept(job, pieces)
    if kind == "wav":
        return whole_file(file, size, job_id)
    return encoded(file, samples_in(size), job.sample_rate, kind)


def _kept(job: Job, pieces: list[Piece]) -> tuple[BinaryIO, int]:
    """A stream that is done, as long as its chunks are in Redis: its WAV, and the size in bytes."""

    def parts() -> Iterator[bytes]:
        for index, piece in enumerate(pieces):
            pcm = speech().store.audio(job.job_id, index)
            if pcm is None:
                raise Problem(410, "The audio of this job is no longer kept.")
            yield pcm
            yield silence(piece.pause_s, job.sample_rate)

    return collected(parts(), job.sample_rate)


@job_routes.get("/jobs/<job_id>/captions")
def job_captions(job_id: str) -> Response:
    """What is heard when."""
    (job, pieces), is_partial, kind = find_job(job_id), _flag("partial"), _format(*CAPTION_TYPES)
    if job.state is not State.DONE and not is_partial:
        raise not_yet(job, "its captions exist once it is done")
    entries = entries_of(job, pieces)
    if not entries:
        raise not_yet(job, "nothing of its audio is kept")
    lines = cues(pieces, entries, job.sample_rate, job.request)
    text = "".join(as_vtt(lines) if kind == "vtt" else as_srt(lines))
    return Response(text, content_type=CAPTION_TYPES[kind], headers={"Cache-Control": "no-store"})


def entries_of(job: Job, pieces: list[Piece]) -> list[Entry]:
    """Where each chunk lies in the job's sound, up to the first that is missing."""
    if job.kind is Kind.LONG:
        return speech().files.entries(job.job_id)
    entries: list[Entry] = []
    lengths = speech().store.published(job.job_id, range(job.count))
    for piece, n_samples in zip(pieces, lengths, strict=True):
        if n_samples is None:
            break
        start = entries[-1].end if entries else 0
        entries.append(Entry(start, n_samples, round(piece.pause_s * job.sample_rate)))
    return entries


def _format(*allowed: str) -> str:
    """The wanted one of these; the first if none is given."""
    kind = request.args.get("format", allowed[0])
    if kind not in allowed:
        raise field_problem("format", kind, f"must be one of {', '.join(allowed)}")
    return kind


def not_yet(job: Job, why: str) -> Problem:
    detail = f"The job is {job.state.value}; {why}."
    return Problem(409, detail, state=job.state.value, progress=round(job.progress, 4))


def _sound_so_far(job: Job, kind: str) -> Response:
    n_samples = speech().files.spoken_samples(job.job_id)
    found = speech().files.open_sound(job.job_id) if n_samples else None
    if found is None:
        raise not_yet(job, "nothing of its audio is kept")
    sound = (found[0], n_samples, job.sample_rate)
    response = first_samples(*sound) if kind == "wav" else encoded(*sound, kind)
    # The same address gives more the next time.
    response.headers["Cache-Control"] = "no-store"
    return response


@job_routes.get("/jobs/<job_id>/events")
def job_events(job_id: str) -> Response:
    job, pieces = find_job(job_id)
    (seen, start), with_audio = _last_event_id(), _flag("audio", default=True)
    if job.state.is_final and seen > job.count:
        # It has seen the end; 204 tells an EventSource not to come back.
        return Response(status=204)
    seen = min(seen, job.count)  # more there cannot be
    if start and seen < job.count:
        _check_start(job, pieces, seen, start)
    how = {"with_audio": with_audio, "is_asker": False}
    return sse_response(speech(), job, pieces, seen - 1, start=start, **how)


def _last_event_id() -> tuple[int, int]:
    """The last event the client has seen, -1 for none, and samples of the chunk after it. The
    header counts more than the query.
    """
    seen, start = "-1", "0"
    for name, values in (("last_event_id", request.args), ("Last-Event-ID", request.headers)):
        text = values.get(name)
        if text is None:
            continue
        # Longer than any real one, and Python refuses to read thousands of digits.
        if not re.fullmatch(EVENT_ID, text):
            raise field_problem(name, text, "must be the id of an event, such as 3 or 3+24576")
        seen, _, start = text.partition("+")
    return int(seen), int(start or 0)


def _check_start(job: Job, pieces: list[Piece], index: int, start: int) -> None:
    """Refuse a sample that chunk ``index`` does not have, as far as its length is known."""
    (n_samples,) = speech().store.published(job.job_id, [index])
    if not n_samples:
        return
    n_samples += round(pieces[index].pause_s * job.sample_rate)
    if start > n_samples:
        name = "Last-Event-ID" if "Last-Event-ID" in request.headers else "last_event_id"
        detail = f"chunk {index} has {n_samples} samples"
        raise field_problem(name, f"{index}+{start}", detail)


def find_job(job_id: str) -> tuple[Job, list[Piece]]:
    """The client's own job. Raises Problem: 404 where there is none."""
    # An id is 24 hex digits; anything else cannot exist and must not become part of a path.
    is_id = len(job_id) == 24 and all(char in "0123456789abcdef" for char in job_id)
    found = speech().find(job_id) if is_id else None
    if found is None or found[0].owner != owner_of(request):
        raise Problem(404, "There is no job with this id; finished ones are kept for a while only.")
    return found


def job_json(job: Job) -> dict[str, Any]:
    return jobs_json([job])[0]


def jobs_json(jobs: list[Job]) -> list[dict[str, Any]]:
    places = long_jobs().places() if any(job.state is State.QUEUED for job in jobs) else {}
    etas = long_jobs().etas(jobs)
    return [
        _job_json(job, eta_s, places.get(job.job_id)) for job, eta_s in zip(jobs, etas, strict=True)
    ]


def _job_json(job: Job, eta_s: float | None, place: int | None) -> dict[str, Any]:
    request_ = job.request
    preview = request_.text if len(request_.text) <= 120 else request_.text[:120] + "…"
    return {
        "job_id": job.job_id,
        "kind": job.kind.value,
        "state": job.state.value,
        "progress": round(job.progress, 4),
        "chunks_total": job.count,
        "chunks_done": job.done,
        "duration_seconds": round(_audio_s(job), 3),
        "eta_seconds": None if eta_s is None else round(eta_s, 1),
        "queue_position": place,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "expires_at": _expires_at(job),
        "error": job.error,
        "seed": request_.seed,
        "voice": request_.voice,
        "language": request_.language,
        "steps": request_.steps,
        "speed": request_.speed,
        "pause_s": request_.pause_s,
        "text_preview": preview,
        "characters": len(request_.text),
        "warnings": list(job.warnings),
        "webhook": _webhook(job),
        "links": {
            "self": f"/jobs/{job.job_id}",
            "events": f"/jobs/{job.job_id}/events",
            "audio": f"/jobs/{job.job_id}/audio",
            "captions": f"/jobs/{job.job_id}/captions",
            "chapters": f"/jobs/{job.job_id}/chapters",
            "book": f"/jobs/{job.job_id}/book",
        },
    }


def _webhook(job: Job) -> dict[str, Any] | None:
    folder = speech().files.folder(job.job_id)
    delivery = Delivery.load(folder) if job.kind is Kind.LONG else None
    return None if delivery is None else asdict(delivery)


def _expires_at(job: Job) -> float | None:
    """When a long job and its file are removed; streams go when nobody asks for them any more."""
    return job.created_at + speech().settings.job_ttl_s if job.kind is Kind.LONG else None


def _audio_s(job: Job) -> float:
    """Seconds of sound so far, a share of the pauses included."""
    return (job.samples + job.pause_samples * job.done / job.count) / job.sample_rate


def _flag(name: str, default: bool = False) -> bool:
    text = request.args.get(name)
    if text is None:
        return default
    if text.lower() not in ("true", "false", "1", "0"):
        raise field_problem(name, text, "must be true or false")
    return text.lower() in ("true", "1")
