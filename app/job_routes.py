"""The routes of long jobs: accepting, listing, watching, fetching and ending them."""

import io
import time
from itertools import islice
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, request, send_file
from werkzeug.wrappers import Response as AnyResponse

from app.access import owner_of
from app.api import check_done, file_answer, speech
from app.errors import Problem, field_problem
from app.follow import Ended, Spoken, follow
from app.schemas import LongBody, read_json, validate
from app.stream import sse_response
from supertonic.audio import wav_bytes
from tasks.messages import Job, Kind, Piece, State

job_routes = Blueprint("jobs", __name__)


@job_routes.post("/synthesize/long")
def synthesize_long() -> AnyResponse:
    body = validate(LongBody, read_json(request))
    if _flag("wait"):
        return _wait_for_long(body)
    job, _ = speech().submit(body, Kind.LONG, owner_of(request))
    response = jsonify(job_json(job))
    response.status_code = 202
    response.headers["Location"] = f"/jobs/{job.job_id}"
    return response


def _wait_for_long(body: LongBody) -> AnyResponse:
    """The original server's one-shot answer: the sound itself, as /synthesize gives it."""
    service = speech()
    job, pieces = service.submit(body, Kind.LONG, owner_of(request))
    facts = []
    peer = request.environ.get("gunicorn.socket")
    with current_app.extensions["hangup"].watch(peer, lambda: service.cancel(job)):
        for item in follow(service, job, pieces, with_audio=False):
            if isinstance(item, Spoken):
                facts.append(item.facts)
            elif isinstance(item, Ended):
                check_done(job, item)
    path = service.files.audio_path(job.job_id)
    if body.output_format == "wav":
        return send_file(path, mimetype="audio/wav")
    return jsonify(file_answer(job, path.read_bytes(), facts))


@job_routes.get("/jobs")
def list_jobs() -> Response:
    limit = request.args.get("limit", "50")
    if not (limit.isdecimal() and len(limit) < 5 and 1 <= int(limit) <= 1000):
        raise field_problem("limit", limit, "must be a whole number from 1 to 1000")
    wanted = request.args.get("state")
    if wanted is not None and wanted not in list(State):
        raise field_problem("state", wanted, f"must be one of {', '.join(State)}")
    owner = owner_of(request)
    jobs = (
        job
        for job in speech().long_jobs()
        if job.owner == owner and (wanted is None or job.state == wanted)
    )
    return jsonify(jobs=[job_json(job) for job in islice(jobs, int(limit))])


@job_routes.get("/jobs/<job_id>")
def get_job(job_id: str) -> Response:
    job, _ = _find(job_id)
    return jsonify(job_json(job))


@job_routes.delete("/jobs/<job_id>")
def delete_job(job_id: str) -> Response:
    """Cancel a running job; remove one that has ended."""
    job, _ = _find(job_id)
    if job.state.is_final:
        speech().delete(job)
        return jsonify(job_json(job) | {"deleted": True})
    speech().cancel(job)
    return get_job(job_id)


@job_routes.get("/jobs/<job_id>/audio")
def job_audio(job_id: str) -> AnyResponse:
    job, pieces = _find(job_id)
    if job.state is not State.DONE:
        detail = f"The job is {job.state.value}; its audio exists once it is done."
        raise Problem(409, detail, state=job.state.value, progress=round(job.progress, 4))
    path = speech().files.audio_path(job_id)
    if path.exists():
        return send_file(path, mimetype="audio/wav", conditional=True)
    parts = []
    for index, piece in enumerate(pieces):
        pcm = speech().store.audio(job_id, index)
        if pcm is None:
            raise Problem(410, "The audio of this job is no longer kept.")
        parts += [pcm, bytes(2 * round(piece.pause_s * job.sample_rate))]
    wav = wav_bytes(b"".join(parts), job.sample_rate)
    return send_file(io.BytesIO(wav), mimetype="audio/wav", conditional=True, etag=job_id)


@job_routes.get("/jobs/<job_id>/events")
def job_events(job_id: str) -> Response:
    job, pieces = _find(job_id)
    if job.state.is_final and _last_event_id() > job.count:
        # It has seen the end; 204 tells an EventSource not to come back.
        return Response(status=204)
    return sse_response(
        speech(), job, pieces, _last_event_id() - 1, with_audio=_flag("audio", default=True)
    )


def _last_event_id() -> int:
    """The last event the client has seen, -1 for none."""
    text = request.headers.get("Last-Event-ID", request.args.get("last_event_id", ""))
    if text == "":
        return -1
    # Longer than any real one, and Python refuses to read thousands of digits.
    if not text.isdecimal() or len(text) > 12:
        raise field_problem("Last-Event-ID", text, "must be the id of an event, a number such as 3")
    return int(text)


def _find(job_id: str) -> tuple[Job, list[Piece]]:
    # An id is 24 hex digits; anything else cannot exist and must not become part of a path.
    is_id = len(job_id) == 24 and all(char in "0123456789abcdef" for char in job_id)
    found = speech().find(job_id) if is_id else None
    if found is None or found[0].owner != owner_of(request):
        raise Problem(404, "There is no job with this id; finished ones are kept for a while only.")
    return found


def job_json(job: Job) -> dict[str, Any]:
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
        "eta_seconds": _eta_s(job),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
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
        "links": {
            "self": f"/jobs/{job.job_id}",
            "events": f"/jobs/{job.job_id}/events",
            "audio": f"/jobs/{job.job_id}/audio",
        },
    }


def _audio_s(job: Job) -> float:
    """Seconds of sound so far, a share of the pauses included."""
    return (job.samples + job.pause_samples * job.done / job.count) / job.sample_rate


def _eta_s(job: Job) -> float | None:
    """Seconds until done at the pace so far, None where there is no pace yet."""
    if job.state.is_final:
        return 0.0
    if job.started_at is None or job.done == 0:
        return None
    pace_s = (time.time() - job.started_at) / job.done
    return round(pace_s * (job.count - job.done), 1)


def _flag(name: str, default: bool = False) -> bool:
    text = request.args.get(name)
    if text is None:
        return default
    if text.lower() not in ("true", "false", "1", "0"):
        raise field_problem(name, text, "must be true or false")
    return text.lower() in ("true", "1")
