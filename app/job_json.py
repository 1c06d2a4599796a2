"""What clients are told of a job."""

from dataclasses import asdict
from typing import Any

from flask import current_app

from app.jobs import speech
from tasks.longjobs import LongJobs
from tasks.messages import Job, Kind, State
from tasks.webhooks import Delivery


def long_jobs() -> LongJobs:
    service: LongJobs = current_app.extensions["long_jobs"]
    return service


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
        "text_preview": request_.preview,
        "characters": request_.characters,
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
