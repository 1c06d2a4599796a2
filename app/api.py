"""The JSON routes: speech as a file, long jobs, voices, health, batch settings."""

import base64
import io
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, redirect, request, send_file
from werkzeug.wrappers import Response as AnyResponse

from app.access import check_admin, owner_of
from app.errors import Problem, field_problem, no_worker
from app.follow import Ended, Gap, Spoken, follow, let_go
from app.jobs import Speech
from app.metrics import json_metrics, prometheus_metrics
from app.schemas import (
    PAUSE_S,
    SPEED,
    STEPS,
    BatchBody,
    FileBody,
    LongBody,
    SpeechBody,
    StreamBody,
    read_json,
    validate,
)
from app.stream import failure, sse_response
from supertonic.audio import wav_bytes
from supertonic.text import LANGUAGES
from supertonic.voices import VOICES
from tasks.messages import Job, Kind, Piece, State
from tasks.settings import Settings
from tasks.workers import WorkerRecord

api = Blueprint("api", __name__)

LANGUAGE_NAMES = {
    "en": "English",
    "ko": "Korean",
    "es": "Spanish",
    "pt": "Portuguese",
    "fr": "French",
}


def speech() -> Speech:
    service: Speech = current_app.extensions["speech"]
    return service


def settings() -> Settings:
    return speech().settings


def service_version() -> str:
    try:
        return version("supertonic-server")
    except PackageNotFoundError:
        return "unknown"


# -- speech ----------------------------------------------------------------------------------


@api.post("/synthesize")
def synthesize() -> Response:
    body = validate(FileBody, read_json(request))
    job, pieces = speech().submit(body, Kind.FILE, owner_of(request))
    return _whole(job, pieces, body.output_format)


@api.post("/synthesize/stream")
def synthesize_stream() -> Response:
    body = validate(StreamBody, read_json(request))
    job, pieces = speech().submit(body, Kind.STREAM, owner_of(request))
    return sse_response(speech(), job, pieces, cancel_on_hangup=not body.resumable)


@api.post("/synthesize/long")
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
                _check_done(job, item)
    path = service.files.audio_path(job.job_id)
    if body.output_format == "wav":
        return send_file(path, mimetype="audio/wav")
    return jsonify(_result(job, path.read_bytes(), facts))


def _whole(job: Job, pieces: list[Piece], output_format: str) -> Response:
    """Wait for all chunks and answer with one file."""
    parts: list[bytes] = []
    facts: list[dict[str, float | int]] = []
    service = speech()
    peer = request.environ.get("gunicorn.socket")
    with current_app.extensions["hangup"].watch(peer, lambda: service.cancel(job)):
        for item in follow(service, job, pieces):
            match item:
                case Spoken(pcm=bytes(pcm)):
                    parts.append(pcm)
                    let_go(service, job, [item.index])
                    facts.append(item.facts)
                case Gap():
                    raise failure(job, f"the audio of chunk {item.index} was lost")
                case Ended():
                    _check_done(job, item)
    wav = wav_bytes(b"".join(parts), job.sample_rate)
    if output_format == "wav":
        response = Response(wav, content_type="audio/wav")
        response.headers["X-Warnings"] = "; ".join(job.warnings).encode("ascii", "replace").decode()
    else:
        response = jsonify(_result(job, wav, facts))
    response.headers["X-Job-Id"] = job.job_id
    response.headers["X-Seed"] = str(job.request.seed)
    response.headers["X-Sample-Rate"] = str(job.sample_rate)
    return response


def _check_done(job: Job, item: Ended) -> None:
    if item.state is State.CANCELLED:
        raise Problem(409, "The job was cancelled.", job_id=job.job_id)
    if item.state is State.FAILED:
        raise failure(job, item.error)


def _result(job: Job, wav: bytes, facts: list[dict[str, float | int]]) -> dict[str, Any]:
    """The answer of the original server, and what it lacked.

    ``inference_time_ms`` adds up what the engine spent on the batches of this request's chunks,
    ``queue_time_ms`` is how long the first chunk waited, ``batch_size`` the largest batch.
    """
    return {
        "audio_base64": base64.b64encode(wav).decode("ascii"),
        "duration_seconds": round((len(wav) - 44) / 2 / job.sample_rate, 4),
        "sample_rate": job.sample_rate,
        "inference_time_ms": round(sum(f.get("inference_time_ms", 0) for f in facts), 3),
        "batch_size": max((f.get("batch_size", 0) for f in facts), default=0),
        "queue_time_ms": facts[0].get("queue_time_ms", 0) if facts else 0,
        "seed": job.request.seed,
        "warnings": list(job.warnings),
        "job_id": job.job_id,
        "chunks": job.count,
    }


# -- jobs ------------------------------------------------------------------------------------


@api.get("/jobs")
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


@api.get("/jobs/<job_id>")
def get_job(job_id: str) -> Response:
    job, _ = _find(job_id)
    return jsonify(job_json(job))


@api.delete("/jobs/<job_id>")
def delete_job(job_id: str) -> Response:
    """Cancel a running job; remove one that has ended."""
    job, _ = _find(job_id)
    if job.state.is_final:
        speech().delete(job)
        return jsonify(job_json(job) | {"deleted": True})
    speech().cancel(job)
    return get_job(job_id)


@api.get("/jobs/<job_id>/audio")
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


@api.get("/jobs/<job_id>/events")
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


# -- voices, health, settings ----------------------------------------------------------------


@api.get("/")
def index() -> AnyResponse:
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        return redirect("/ui")
    workers = speech().workers()
    return jsonify(
        status="ok" if workers else "no worker",
        service="supertonic-server",
        version=service_version(),
        model=_model(workers),
        voices=_voices(workers),
        languages=_languages(workers),
        device=workers[0].device if workers else None,
        workers=[_worker(worker) for worker in workers],
        batch=_batch(workers),
        links={"ui": "/ui", "voices": "/voices", "metrics": "/metrics", "jobs": "/jobs"},
    )


@api.get("/voices")
def voices() -> Response:
    workers = speech().workers()
    defaults = {
        name: SpeechBody.model_fields[name].default
        for name in ("voice", "language", "steps", "speed", "pause_s")
    }
    return jsonify(
        voices=[
            {"id": voice, "name": voice, "gender": "male" if voice[0] == "M" else "female"}
            for voice in _voices(workers)
        ],
        languages=[
            {"code": code, "name": LANGUAGE_NAMES.get(code, code)} for code in _languages(workers)
        ],
        defaults=defaults,
        limits={
            "steps": {"min": STEPS[0], "max": STEPS[1]},
            "speed": {"min": SPEED[0], "max": SPEED[1]},
            "pause_s": {"min": PAUSE_S[0], "max": PAUSE_S[1]},
            "text_chars": settings().max_text_chars,
        },
        model=_model(workers),
    )


@api.get("/livez")
def livez() -> Response:
    """This process answers."""
    return jsonify(status="ok")


@api.get("/readyz")
def readyz() -> Response:
    """Redis answers and a worker with a warm model lives; otherwise a 503 that says which."""
    speech().store.redis.ping()
    workers = speech().workers(max_age_s=0)
    if not workers:
        raise no_worker()
    return jsonify(status="ready", workers=len(workers), model=workers[0].model)


@api.get("/metrics")
def metrics() -> Response:
    wanted = request.accept_mimetypes
    is_scraper = "openmetrics" in str(wanted) or "text/plain" in str(wanted)
    if is_scraper or request.args.get("format") == "prometheus":
        return prometheus_metrics(speech())
    return jsonify(json_metrics(speech()))


@api.post("/config/batch")
def config_batch() -> Response:
    """Change the batch limits on every worker; answers with what is in force then."""
    check_admin()
    data = read_json(request) if request.get_data() else dict(request.args)
    if isinstance(data, dict):
        data.pop("api_key", None)
    body = validate(BatchBody, data)
    if body.max_batch_size is None and body.max_wait_time_ms is None:
        raise Problem(422, "Send max_batch_size, max_wait_time_ms or both.")
    speech().records.set_batch(body.max_batch_size, body.max_wait_time_ms)
    workers = _workers_following(body, time.monotonic() + 3)
    return jsonify(
        batch=_batch(workers),
        workers=[
            {"name": w.name, "max_batch_size": w.max_batch, "max_wait_time_ms": w.max_wait_ms}
            for w in workers
        ],
    )


def _workers_following(body: BatchBody, give_up_at: float) -> list[WorkerRecord]:
    """Workers look for new limits twice a second; wait until all have them."""
    while True:
        workers = speech().workers(max_age_s=0)
        late = [
            worker.name
            for worker in workers
            if body.max_batch_size not in (None, worker.max_batch)
            or body.max_wait_time_ms not in (None, worker.max_wait_ms)
        ]
        if not late:
            return workers
        if time.monotonic() > give_up_at:
            detail = f"Stored, but these workers do not follow yet: {', '.join(late)}."
            raise Problem(504, detail)
        time.sleep(0.05)


def _flag(name: str, default: bool = False) -> bool:
    text = request.args.get(name)
    if text is None:
        return default
    if text.lower() not in ("true", "false", "1", "0"):
        raise field_problem(name, text, "must be true or false")
    return text.lower() in ("true", "1")


def _voices(workers: list[WorkerRecord]) -> list[str]:
    served = {voice for worker in workers for voice in worker.voices}
    known = [voice for voice in VOICES if voice in served or not served]
    return known + sorted(served - set(VOICES))


def _languages(workers: list[WorkerRecord]) -> list[str]:
    served = {code for worker in workers for code in worker.languages}
    return [code for code in LANGUAGES if code in served or not served]


def _model(workers: list[WorkerRecord]) -> dict[str, Any] | None:
    if not workers:
        return None
    worker = workers[0]
    return {
        "name": worker.model,
        "is_builtin": worker.is_builtin,
        "description": worker.description,
        "sample_rate": worker.sample_rate,
        "fingerprint": worker.fingerprint,
        "precision": worker.precision,
    }


def _batch(workers: list[WorkerRecord]) -> dict[str, Any]:
    if workers:
        worker = workers[0]
        return {"max_batch_size": worker.max_batch, "max_wait_time_ms": worker.max_wait_ms}
    return {"max_batch_size": settings().max_batch, "max_wait_time_ms": settings().max_wait_ms}


def _worker(worker: WorkerRecord) -> dict[str, Any]:
    return {
        "name": worker.name,
        "device": worker.device,
        "precision": worker.precision,
        "model": worker.model,
        "waiting": worker.waiting,
        "chunks": worker.chunks,
        "audio_seconds_per_second": worker.rate,
        "started_at": worker.started_at,
    }
