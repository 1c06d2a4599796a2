"""The routes about the service itself: what it offers, how it is, its figures, its batch limits."""

import time
from typing import Any

from flask import Blueprint, Response, jsonify, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from app.access import check_admin
from app.errors import Problem, no_worker
from app.fields import PAUSE_S, SPEED, STEPS
from app.jobs import speech
from app.metrics import json_metrics, prometheus_metrics
from app.offer import LANGUAGE_NAMES, languages_of, voices_of
from app.query import choice, number
from app.reading import read_json, validate
from app.schemas import BatchBody, SpeechBody
from app.version import service_version
from tasks.celery import queue_lengths
from tasks.dead_letters import MAX_LETTERS, letters
from tasks.workers import WorkerRecord

service_routes = Blueprint("service", __name__)


@service_routes.get("/")
def index() -> AnyResponse:
    if request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html":
        return redirect("/ui")
    workers = speech().workers()
    return jsonify(
        status="ok" if workers else "no worker",
        service="supertonic-server",
        version=service_version(),
        model=_model(workers),
        voices=voices_of(workers),
        languages=languages_of(workers),
        device=workers[0].device if workers else None,
        workers=[_worker(worker) for worker in workers],
        batch=_batch(workers),
        links={"ui": "/ui", "voices": "/voices", "metrics": "/metrics", "jobs": "/jobs"},
    )


@service_routes.get("/voices")
def voices() -> Response:
    workers = speech().workers()
    defaults = {
        name: SpeechBody.model_fields[name].get_default(call_default_factory=True)
        for name in ("voice", "language", "steps", "speed", "pause_s")
    }
    return jsonify(
        voices=[
            {"id": voice, "name": voice, "gender": "male" if voice[0] == "M" else "female"}
            for voice in voices_of(workers)
        ],
        languages=[
            {"code": code, "name": LANGUAGE_NAMES.get(code, code)} for code in languages_of(workers)
        ],
        defaults=defaults,
        limits={
            "steps": {"min": STEPS[0], "max": STEPS[1]},
            "speed": {"min": SPEED[0], "max": SPEED[1]},
            "pause_s": {"min": PAUSE_S[0], "max": PAUSE_S[1]},
            "text_chars": speech().settings.max_text_chars,
            "file_bytes": speech().settings.max_upload_bytes,
        },
        model=_model(workers),
    )


@service_routes.get("/livez")
def livez() -> Response:
    """This process answers."""
    return jsonify(status="ok")


@service_routes.get("/readyz")
def readyz() -> Response:
    """Redis and the queue answer and a worker with a warm model lives; otherwise a 503 that says
    which is missing.
    """
    queue_lengths(speech().store)
    workers = speech().workers(max_age_s=0)
    if not workers:
        raise no_worker()
    return jsonify(status="ready", workers=len(workers), model=workers[0].model)


@service_routes.get("/metrics")
def metrics() -> Response:
    accepted = str(request.accept_mimetypes)
    is_scraper = "openmetrics" in accepted or "text/plain" in accepted
    usual = "prometheus" if is_scraper else "json"
    if choice("format", ("json", "prometheus"), default=usual) == "prometheus":
        return prometheus_metrics(speech())
    return jsonify(json_metrics(speech()))


@service_routes.get("/dead-letters")
def dead_letters() -> Response:
    """Queue messages that could not be used, the latest first."""
    check_admin()
    limit = number("limit", default=100, most=MAX_LETTERS)
    return jsonify(dead_letters=letters(speech().store.redis, limit))


@service_routes.post("/config/batch")
def config_batch() -> Response:
    """Change the batch limits on every worker; answers with what is in force then."""
    check_admin()
    asked: dict[str, Any] = {k: v for k, v in request.args.items() if k != "api_key"}
    data = read_json(request) if request.get_data() else {}
    # What the body says counts, and what the query says has to be right as well.
    asked = validate(BatchBody, asked).model_dump(exclude_none=True)
    body = validate(BatchBody, asked | data if isinstance(data, dict) else data)
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
    settings = speech().settings
    return {"max_batch_size": settings.max_batch, "max_wait_time_ms": settings.max_wait_ms}


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
