"""From a checked request to a job: ``Speech.submit`` stores the job and queues its chunks. How the
text becomes chunks is in ``app/submit.py``, how its audio comes back in ``app/follow.py``.
"""

import logging
import math
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import redis
from flask import current_app
from kombu.exceptions import OperationalError

from app.admission import keep_wait, limits, refusal
from app.bell import Bell
from app.errors import Problem, no_worker
from app.lexicons import Lexicons
from app.offer import sample_rate_of
from app.schemas import SpeechBody
from app.submit import check, check_length, check_voices, cut, warnings, without_ssml
from tasks.celery import send_advance, send_chunks, start_job
from tasks.demand import AdmissionLimits
from tasks.events import EventStore
from tasks.jobfiles import JobFiles
from tasks.logs import facts
from tasks.measures import Meter
from tasks.messages import Job, Kind, Piece, SpeechRequest, State, preview
from tasks.sending import make_chunks
from tasks.settings import Settings
from tasks.workers import WorkerRecord, WorkerRecords

logger = logging.getLogger(__name__)

# New work is refused when Redis is this full; what is under way needs the rest.
MEMORY_SHARE = 0.8


def new_job_id() -> str:
    return secrets.token_hex(12)


class Speech:
    """The web's view of the speech service. Methods raise ``redis.RedisError`` when it is away."""

    def __init__(
        self,
        settings: Settings,
        store: EventStore,
        records: WorkerRecords,
        bell: Bell,
        files: JobFiles,
    ) -> None:
        self.settings = settings
        self.store = store
        self.records = records
        self.bell = bell
        self.files = files
        self.lexicons = Lexicons(settings)
        self.meter = Meter()
        self._workers: tuple[float, list[WorkerRecord]] = (0.0, [])
        self._workers_error: tuple[float, redis.RedisError | None] = (0.0, None)
        self._workers_lock = threading.Lock()
        self._memory = (0.0, 0.0)
        # When this process has no time left for streams, by time.monotonic().
        self.stops_at = math.inf

    @classmethod
    def over(cls, client: "redis.Redis", settings: Settings) -> "Speech":
        """For this process, to be made once, since its bell is a thread."""
        bell = Bell(client)
        files = JobFiles(settings.data_dir, settings.jobs_url)
        return cls(settings, EventStore(client, bell.name), WorkerRecords(client), bell, files)

    # -- workers ---------------------------------------------------------------------------

    def workers(self, max_age_s: float = 0.5) -> list[WorkerRecord]:
        """Living workers, as of at most ``max_age_s`` ago."""
        wanted_at = time.monotonic()
        seen_at, workers = self._workers
        if wanted_at - seen_at <= max_age_s:
            return workers
        with self._workers_lock:
            seen_at, workers = self._workers
            if seen_at >= wanted_at:
                return workers
            failed_at, error = self._workers_error
            if failed_at >= wanted_at and error is not None:
                # A hung Redis: who waited for the lock meanwhile need not wait for it once more.
                raise error
            try:
                workers = self.records.living()
            except redis.RedisError as error:
                self._workers_error = (time.monotonic(), error)
                raise
            # Their absence is not remembered: a worker that has just come is used at once.
            self._workers = (time.monotonic() if workers else 0.0, workers)
        return workers

    def _length_ratio(self) -> float:
        """How the workers' voices compare with what is estimated for any voice."""
        ratios = [worker.length_ratio for worker in self._workers[1]]
        return sum(ratios) / len(ratios) if ratios else 1.0

    def _check_room(self) -> None:
        """Refuse new work before Redis is full: then it would refuse finished work as well."""
        seen_at, share = self._memory
        if time.monotonic() - seen_at > 1.0:
            share = self.store.memory_share()
            if share > MEMORY_SHARE and self.store.shrink_cache(0) == 0:
                # What was only kept for later goes before anybody is refused.
                share = self.store.memory_share()
            self._memory = (time.monotonic(), share)
        if share > MEMORY_SHARE:
            detail = "Redis is nearly full of audio on its way to listeners; try again soon."
            raise Problem(503, detail, retry_after_s=10)

    # -- submitting ------------------------------------------------------------------------

    def submit(
        self,
        body: SpeechBody,
        kind: Kind,
        owner: str = "",
        slices: bool = False,
        *,
        resumable: bool = False,
        job_id: str = "",
    ) -> tuple[Job, list[Piece]]:
        """Accept a request: store its job and queue its chunks.

        ``slices``: its listener takes the first chunk in slices, if that brings them sooner.
        ``resumable``: it goes on when its listener leaves, as long jobs do.
        ``job_id``: the id to give it, if one is known already.

        Raises:
            Problem: 503 without a worker, 422 for text, voice or language it cannot speak, 429 when
                it would have to wait too long or others would.
        """
        workers = self.workers()
        if not workers:
            raise no_worker()
        self._check_room()
        check(body, workers, self.settings)
        body, told = without_ssml(body)
        text, pieces = cut(body, self.lexicons.of(body), self.settings)
        check_voices(body, pieces, workers)
        check_length(body, pieces, self.settings)
        sample_rate = sample_rate_of(workers)
        request = SpeechRequest(
            preview=preview(body.text),
            characters=len(body.text),
            voice=body.voice,
            language=body.language,
            steps=body.steps,
            speed=body.speed,
            seed=secrets.randbits(32) if body.seed is None else body.seed,
            pause_s=body.pause_s,
        )
        job = Job(
            job_id=job_id or new_job_id(),
            kind=kind,
            state=State.QUEUED,
            request=request,
            count=len(pieces),
            done=0,
            samples=0,
            pause_samples=sum(round(p.pause_s * sample_rate) for p in pieces),
            sample_rate=sample_rate,
            created_at=time.time(),
            started_at=None,
            finished_at=None,
            error=None,
            warnings=(*told, *warnings(body, text)),
            owner=owner,
            slices=slices,
            resumable=kind is Kind.LONG or resumable,
            fingerprint=self._shared_fingerprint(body, kind, workers),
        )
        self._start(job, pieces, limits(self.settings, workers))
        about = facts(
            job_id=job.job_id, kind=kind.value, chunks=job.count, characters=len(body.text)
        )
        logger.info("accepted", extra=about)
        return job, pieces

    def _shared_fingerprint(
        self, body: SpeechBody, kind: Kind, workers: Sequence[WorkerRecord]
    ) -> str:
        """The model's, if this request's chunks may be shared with equal ones, else empty.

        Without a seed no two requests are equal; and while workers have different models nobody
        knows which of them will speak.
        """
        if self.settings.cache_mb == 0 or body.seed is None or kind is Kind.LONG:
            return ""
        fingerprints = {worker.fingerprint for worker in workers}
        return fingerprints.pop() if len(fingerprints) == 1 else ""

    def _start(self, job: Job, pieces: list[Piece], limits: AdmissionLimits) -> None:
        chunks = make_chunks(job, pieces, range(job.count), self._length_ratio())
        try:
            if job.kind is Kind.LONG:
                # On disk first: once it is accepted, the job survives whatever happens.
                self.files.save(job, pieces)
                ttl_s = self.settings.job_ttl_s
                admission = self.store.admit(job, pieces, ttl_s, chunks, limits=limits)
            else:
                ttl_s = self.settings.stream_ttl_s
                admission = start_job(self.store, job, pieces, ttl_s, chunks, limits)
            keep_wait(admission.wait_s)
            if admission.reason:
                raise refusal(admission, limits)
            if job.kind is Kind.LONG:
                send_advance(job.job_id)
        except Exception as error:
            # The client hears that it was refused, so it must not run behind its back.
            if job.kind is Kind.LONG:
                self.files.delete(job.job_id)
            if not isinstance(error, Problem):  # what was not let in is not stored
                with suppress(redis.RedisError):
                    self.store.end(job.job_id, State.FAILED, "it could not be queued")
                    self.store.forget_job(job.job_id)
            raise

    def send(self, job: Job, pieces: list[Piece], indexes: range | list[int]) -> None:
        """Queue these chunks of a job once more."""
        chunks = make_chunks(job, pieces, indexes, self._length_ratio())
        send_chunks(self.store, chunks, self.settings.stream_ttl_s)

    # -- looking up and cancelling ---------------------------------------------------------

    def find(self, job_id: str) -> tuple[Job, list[Piece]] | None:
        """A job and its pieces, from Redis or, for a long job, from disk."""
        job = self.store.job(job_id)
        if job is not None:
            return job, self.store.pieces(job_id)
        return self.files.load(job_id)

    def cancel(self, job: Job) -> None:
        """None of the job's chunks enters a batch from now on."""
        if job.kind is Kind.LONG:
            # The disk first, as for a pause: Redis may be lost.
            try:
                self.files.mark_cancelled(job.job_id)
            except OSError as error:
                logger.warning("a cancel is not on disk: %s", error, extra=facts(job_id=job.job_id))
        self.store.end(job.job_id, State.CANCELLED)
        if job.kind is Kind.LONG:
            # It is cancelled all the same; the files worker finds it when it looks at all jobs.
            with suppress(redis.RedisError, OperationalError):
                send_advance(job.job_id)

    def delete(self, job: Job) -> None:
        """Remove an ended job and its sound."""
        self.store.drop_audio(job.job_id, range(job.count))
        self.files.delete(job.job_id)
        self.store.forget_job(job.job_id)


def speech() -> Speech:
    """The one of the application that answers this request."""
    service: Speech = current_app.extensions["speech"]
    return service
