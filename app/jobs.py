"""From a checked request to a job: ``Speech.submit`` splits the text, stores the job and queues
its chunks. How its audio comes back is in ``app/follow.py``.
"""

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import redis

from app.bell import Bell
from app.errors import Problem, field_problem, no_worker
from app.schemas import LongBody, SpeechBody
from supertonic.errors import EmptyText
from supertonic.text import Break, estimate_seconds, split_text, unknown_characters
from tasks.celery import send_advance, send_chunks
from tasks.events import EventStore
from tasks.jobfiles import JobFiles
from tasks.messages import Job, Kind, Piece, SpeechRequest, State
from tasks.sending import make_chunks
from tasks.settings import Settings
from tasks.workers import WorkerRecord, WorkerRecords

logger = logging.getLogger(__name__)

# Silence between chunks, as a share of the request's pause: a full one after a sentence, half of
# it after a clause, and none where a sentence had to be cut between words.
PAUSE_SHARE = {
    Break.PARAGRAPH: 1.0,
    Break.SENTENCE: 1.0,
    Break.CLAUSE: 0.5,
    Break.WORD: 0.0,
    Break.END: 0.0,
}
# The model is made for at most 1,000 latent frames, 69.7 s; the slowest text takes 0.09 s per
# character, so at speed 1 a chunk may have 700 characters.
CHARS_AT_SPEED_1 = 700
# One request's chunks are queued all at once, so their number is bounded.
MAX_CHUNKS = 2000
# New work is refused when Redis is this full; what is under way needs the rest.
MEMORY_SHARE = 0.8


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
        self._workers: tuple[float, list[WorkerRecord]] = (0.0, [])
        self._workers_error: tuple[float, redis.RedisError | None] = (0.0, None)
        self._workers_lock = threading.Lock()
        self._memory = (0.0, 0.0)

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

    def _check_room(self) -> None:
        """Refuse new work before Redis is full: then it would refuse finished work as well."""
        seen_at, share = self._memory
        if time.monotonic() - seen_at > 1.0:
            share = self.store.memory_share()
            self._memory = (time.monotonic(), share)
        if share > MEMORY_SHARE:
            detail = "Redis is nearly full of audio on its way to listeners; try again soon."
            raise Problem(503, detail, retry_after_s=10)

    # -- submitting ------------------------------------------------------------------------

    def submit(self, body: SpeechBody, kind: Kind, owner: str = "") -> tuple[Job, list[Piece]]:
        """Accept a request: store its job and queue its chunks.

        Raises:
            Problem: 503 without a worker, 422 for text, voice or language it cannot speak.
        """
        workers = self.workers()
        if not workers:
            raise no_worker()
        self._check_room()
        self._check(body, workers)
        pieces = self._split(body)
        self._check_length(body, pieces)
        request = SpeechRequest(
            text=body.text,
            voice=body.voice,
            language=body.language,
            steps=body.steps,
            speed=body.speed,
            seed=secrets.randbits(32) if body.seed is None else body.seed,
            pause_s=body.pause_s,
        )
        job = Job(
            job_id=secrets.token_hex(12),
            kind=kind,
            state=State.QUEUED,
            request=request,
            count=len(pieces),
            done=0,
            samples=0,
            pause_samples=sum(round(p.pause_s * workers[0].sample_rate) for p in pieces),
            sample_rate=workers[0].sample_rate,
            created_at=time.time(),
            started_at=None,
            finished_at=None,
            error=None,
            warnings=_warnings(body.text),
            owner=owner,
        )
        self._start(job, pieces)
        return job, pieces

    def _check(self, body: SpeechBody, workers: list[WorkerRecord]) -> None:
        limit = self.settings.max_text_chars
        if len(body.text) > limit:
            detail = f"has {len(body.text)} characters; at most {limit} are allowed"
            raise field_problem("text", body.text, detail)
        if any("\ud800" <= char <= "\udfff" for char in body.text):
            raise field_problem("text", body.text, "holds half of a surrogate pair; send UTF-8")
        # Any worker may get any chunk, so only what all of them can do is offered.
        voices = sorted(set.intersection(*(set(worker.voices) for worker in workers)))
        if body.voice not in voices:
            raise field_problem("voice", body.voice, f"must be one of {', '.join(voices)}")
        languages = sorted(set.intersection(*(set(worker.languages) for worker in workers)))
        if body.language not in languages:
            raise field_problem("language", body.language, f"must be one of {', '.join(languages)}")

    def _split(self, body: SpeechBody) -> list[Piece]:
        longest = int(CHARS_AT_SPEED_1 * body.speed)
        try:
            if isinstance(body, LongBody):
                target = min(body.target_chunk_chars, longest)
                chunks = split_text(
                    body.text,
                    body.language,
                    first_chars=target,
                    target_chars=target,
                    max_chars=min(max(body.max_chunk_chars, target), longest),
                )
            else:
                first = self.settings.first_chunk_chars
                if body.language == "ko":
                    first = max(20, first * 2 // 5)
                chunks = split_text(body.text, body.language, first_chars=first)
        except EmptyText as error:
            raise field_problem("text", body.text, str(error)) from None
        return [
            Piece(chunk.text, round(PAUSE_SHARE[chunk.ends_at] * body.pause_s, 4))
            for chunk in chunks
        ]

    def _check_length(self, body: SpeechBody, pieces: list[Piece]) -> None:
        if len(pieces) > MAX_CHUNKS:
            detail = f"makes {len(pieces)} chunks; at most {MAX_CHUNKS} are allowed, so join lines"
            raise field_problem("text", body.text, detail)
        seconds = sum(
            estimate_seconds(piece.text, body.language, body.speed) + piece.pause_s
            for piece in pieces
        )
        limit = self.settings.max_audio_s
        if seconds > limit:
            detail = f"would take about {seconds:.0f} s to hear; at most {limit} s are allowed"
            raise field_problem("text", body.text, detail)

    def _start(self, job: Job, pieces: list[Piece]) -> None:
        try:
            if job.kind is Kind.LONG:
                # On disk first: once it is accepted, the job survives whatever happens.
                self.files.save(job, pieces)
                self.store.create(job, pieces, self.settings.job_ttl_s)
                send_advance(job.job_id)
            else:
                self.store.create(job, pieces, self.settings.stream_ttl_s)
                self.send(job, pieces, range(job.count))
        except Exception:
            # The client hears that it was refused, so it must not run behind its back.
            self.files.delete(job.job_id)
            with suppress(redis.RedisError):
                self.store.end(job.job_id, State.FAILED, "it could not be queued")
                self.store.forget_job(job.job_id)
            raise

    def send(self, job: Job, pieces: list[Piece], indexes: range | list[int]) -> None:
        """Queue these chunks of a job, for the first time or once more."""
        send_chunks(make_chunks(job, pieces, indexes), float(self.settings.stream_ttl_s))

    # -- looking up and cancelling ---------------------------------------------------------

    def find(self, job_id: str) -> tuple[Job, list[Piece]] | None:
        """A job and its pieces, from Redis or, for a long job, from disk."""
        job = self.store.job(job_id)
        if job is not None:
            return job, self.store.pieces(job_id)
        return self.files.load(job_id)

    def long_jobs(self) -> Iterator[Job]:
        """Long jobs, the newest first, read a few at a time: each carries its whole text."""
        job_ids = self.store.long_job_ids()
        for start in range(0, len(job_ids), 50):
            yield from filter(None, self.store.jobs(job_ids[start : start + 50]))

    def cancel(self, job: Job) -> None:
        """None of the job's chunks enters a batch from now on."""
        self.store.end(job.job_id, State.CANCELLED)
        if job.kind is Kind.LONG:
            send_advance(job.job_id)

    def delete(self, job: Job) -> None:
        """Remove an ended job and its sound."""
        self.store.drop_audio(job.job_id, range(job.count))
        self.files.delete(job.job_id)
        self.store.forget_job(job.job_id)


def _warnings(text: str) -> tuple[str, ...]:
    """What the speaker should know about a text that is accepted all the same."""
    unknown = unknown_characters(text)
    if not unknown:
        return ()
    # Invisible ones by their number: nobody could see which is meant, and headers refuse them.
    unknown = [char if char.isprintable() else f"U+{ord(char[0]):04X}" for char in unknown]
    shown = " ".join(unknown[:20]) + (" …" if len(unknown) > 20 else "")
    return (f"The model does not know these characters and cannot pronounce them: {shown}",)
