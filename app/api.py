"""The routes that speak a text while the client waits: as one file, or as a stream."""

from collections.abc import Iterator

from flask import Blueprint, Response, request

from app.access import owner_of
from app.follow import Spoken
from app.hangup import if_client_leaves
from app.job_sound import (
    collected,
    first_samples,
    json_with_sound,
    samples_in,
    tell_job,
    tell_warnings,
)
from app.jobs import speech
from app.outcome import until_done
from app.reading import read_json, validate
from app.schemas import FileBody, StreamBody
from app.stream import sse_response
from tasks.messages import Job, Kind, Piece

api = Blueprint("api", __name__)


@api.post("/synthesize")
def synthesize() -> Response:
    body = validate(FileBody, read_json(request))
    job, pieces = speech().submit(body, Kind.FILE, owner_of(request))
    return _whole(job, pieces, body.output_format)


@api.post("/synthesize/stream")
def synthesize_stream() -> Response:
    body = validate(StreamBody, read_json(request))
    owner, resumable = owner_of(request), body.resumable
    job, pieces = speech().submit(body, Kind.STREAM, owner, body.slices, resumable=resumable)
    return sse_response(speech(), job, pieces, slices=body.slices, may_return=resumable)


def _whole(job: Job, pieces: list[Piece], output_format: str) -> Response:
    """Wait for all chunks and answer with one file."""
    facts: list[dict[str, float | int]] = []
    service = speech()

    def spoken() -> Iterator[bytes]:
        for item in until_done(service, job, pieces):
            if isinstance(item, Spoken) and item.pcm is not None:
                facts.append(item.facts)
                yield item.pcm

    with if_client_leaves(lambda: service.cancel(job)):
        file, size = collected(spoken(), job.sample_rate)
    if output_format == "wav":
        response = first_samples(file, samples_in(size), job.sample_rate)
        tell_warnings(response, job.warnings)
    else:
        response = json_with_sound(job, file, size, facts)
    return tell_job(response, job)
