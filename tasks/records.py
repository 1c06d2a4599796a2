"""How a job, and what is said about it, is written in Redis and read again.

A job is a hash, its record; what happens to it is appended to a stream, and the bells repeat it.
The events are written by scripts (tasks/scripts.py), so here they are only read.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from tasks.messages import Job, Kind, Piece, SpeechRequest, State, pieces_to_json

# What is read of a record to know the job, in the order in which ``job_from`` takes it. The rest
# is asked for by name: the pieces for example, which are the whole text.
JOB_FIELDS = (
    "kind",
    "state",
    "request",
    "count",
    "done",
    "samples",
    "pause_samples",
    "sample_rate",
    "created_at",
    "started_at",
    "finished_at",
    "error",
    "warnings",
    "owner",
    "fingerprint",
)


def record_of(job: Job, pieces: Sequence[Piece]) -> dict[str, Any]:
    """The record of a new job: nothing of it is spoken yet."""
    return {
        "kind": job.kind.value,
        "state": job.state.value,
        "request": orjson.dumps(asdict(job.request)),
        "count": job.count,
        "done": 0,
        "samples": 0,
        "pause_samples": job.pause_samples,
        "sample_rate": job.sample_rate,
        "created_at": repr(job.created_at),
        **({} if job.started_at is None else {"started_at": repr(job.started_at)}),
        "warnings": orjson.dumps(job.warnings),
        "owner": job.owner,
        "fingerprint": job.fingerprint,
        "resumable": int(job.resumable),
        "pieces": pieces_to_json(list(pieces)),
    }


def job_from(job_id: str, row: Sequence[Any]) -> Job | None:
    """From the values of ``JOB_FIELDS``, None for those that are not there; None without a job."""
    values = dict(zip(JOB_FIELDS, (None if v is None else as_text(v) for v in row), strict=True))
    if values["state"] is None:
        return None
    return Job(
        job_id=job_id,
        kind=Kind(values["kind"] or ""),
        state=State(values["state"]),
        request=SpeechRequest.from_json(orjson.loads(values["request"] or "{}")),
        count=int(values["count"] or 0),
        done=int(values["done"] or 0),
        samples=int(values["samples"] or 0),
        pause_samples=int(values["pause_samples"] or 0),
        sample_rate=int(values["sample_rate"] or 0),
        created_at=float(values["created_at"] or 0),
        started_at=float(values["started_at"]) if values["started_at"] else None,
        finished_at=float(values["finished_at"]) if values["finished_at"] else None,
        error=values["error"] or None,
        warnings=tuple(orjson.loads(values["warnings"] or "[]")),
        owner=values["owner"] or "",
        fingerprint=values["fingerprint"] or "",
    )


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a job's stream: ``audio``, ``done``, ``failed`` or ``cancelled``; ``slice``, a
    chunk of which ``n_samples`` can be had already; and, of a long job, ``paused`` and ``resumed``.
    """

    entry_id: str
    type: str
    index: int = -1
    n_samples: int = 0
    facts: dict[str, float | int] = field(default_factory=dict)
    error: str = ""

    @property
    def position(self) -> tuple[int, int]:
        """Its place in the stream, to compare."""
        return position(self.entry_id)


def position(entry_id: str) -> tuple[int, int]:
    """The place of this entry in its stream, to compare."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)


def event_from(entry_id: str, fields: Sequence[Any]) -> Event:
    """From the fields and values of an entry, in a row as Redis gives them."""
    names = iter(fields)
    values = {as_text(name): as_text(value) for name, value in zip(names, names, strict=True)}
    return Event(
        entry_id=entry_id,
        type=values["type"],
        index=int(values.get("index", -1)),
        n_samples=int(values.get("n_samples", 0)),
        facts=orjson.loads(values.get("facts", "{}")),
        error=values.get("error", ""),
    )


def news_from(message: bytes) -> dict[str, list[Event]]:
    """What a bell carries: by job what was said about it, in order."""
    told: dict[str, list[Event]] = {}
    for job_id, news in orjson.loads(message):
        events = [event_from(entry_id, fields) for entry_id, *fields in news]
        told.setdefault(job_id, []).extend(events)
    return told


def as_text(value: Any) -> str:
    """What Redis answered, bytes or a number, as text."""
    return value.decode() if isinstance(value, bytes) else str(value)
