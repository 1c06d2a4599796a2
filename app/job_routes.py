"""The routes of long jobs: accepting, listing, watching, holding, fetching and ending them."""

import threading
from collections.abc import Iterator
from typing import BinaryIO

from flask import Blueprint, Response, current_app, jsonify, request
from werkzeug.wrappers import Response as AnyResponse

from app.accepting import Accepting, idempotency_key
from app.access import owner_of
from app.captions import CAPTION_TYPES, as_srt, as_vtt, cues
from app.encoding import FILE_FORMATS
from app.errors import Problem, field_problem
from app.follow import Spoken
from app.hangup import if_client_leaves
from app.job_json import job_json, jobs_json, long_jobs
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
from app.query import choice, cursor, cursor_text, flag, last_event_id, number
from app.reading import validate
from app.schemas import LongBody
from app.stream import sse_response
from app.uploads import read_long
from supertonic.audio import silence
from tasks.celery import send_advance
from tasks.jobsound import Entry
from tasks.messages import Job, Kind, Piece, State

job_routes = Blueprint("jobs", __name__)


@job_routes.post("/synthesize/long")
def synthesize_long() -> AnyResponse:
    # Everything that may be refused first: what is refused makes no job and takes no key.
    body, must_wait = validate(LongBody, read_long(request)), flag("wait")
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
    left = threading.Event()

    def gone() -> None:
        left.set()
        if not may_return:
            service.cancel(job)

    with if_client_leaves(gone):
        for item in until_done(service, job, pieces, with_audio=False):
            if isinstance(item, Spoken):
                facts.append(item.facts)
            if left.is_set():
                # The job may go on, but nobody is here whom this thread could answer.
                raise Problem(409, "The client has left.", job_id=job.job_id)
    file, size = stored(job)
    if output_format == "wav":
        response = whole_file(file, size, job.job_id)
        tell_warnings(response, job.warnings)
    else:
        response = json_with_sound(job, file, size, facts)
    return tell_job(response, job)


def stored(job: Job) -> tuple[BinaryIO, int]:
    """The sound of a long job that is done, and its size in bytes. Problem: 410 without it."""
    found = speech().files.open_sound(job.job_id)
    if found is None:
        raise Problem(410, "The audio of this job is no longer kept.")
    return found


@job_routes.get("/jobs")
def list_jobs() -> Response:
    limit, wanted = number("limit", default=50, most=1000), choice("state", State)
    state = State(wanted) if wanted else None
    jobs, following = long_jobs().page(owner_of(request), state, limit, cursor())
    return jsonify(jobs=jobs_json(jobs), next_cursor=cursor_text(following))


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
    (job, pieces), is_partial = find_job(job_id), flag("partial")
    kind = choice("format", FILE_FORMATS, default="wav")
    if job.state is not State.DONE and is_partial and job.kind is Kind.LONG:
        return _sound_so_far(job, kind)
    if job.state is not State.DONE:
        sooner = "; partial=true gives what there is" if job.kind is Kind.LONG else ""
        raise not_yet(job, f"its audio exists once it is done{sooner}")
    file, size = stored(job) if job.kind is Kind.LONG else _kept(job, pieces)
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
    (job, pieces), is_partial = find_job(job_id), flag("partial")
    kind = choice("format", CAPTION_TYPES, default="vtt")
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
    (seen, start), with_audio = last_event_id(), flag("audio", default=True)
    if job.state.is_final and seen > job.count:
        # It has seen the end; 204 tells an EventSource not to come back.
        return Response(status=204)
    seen = min(seen, job.count)  # more there cannot be
    if start and seen < job.count:
        _check_start(job, pieces, seen, start)
    how = {"with_audio": with_audio, "is_asker": False}
    return sse_response(speech(), job, pieces, seen - 1, start=start, **how)


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
