"""From a checked request to a job, and from a job to its audio in order.

``Speech.submit`` splits the text, stores the job and queues its chunks. ``Speech.follow`` yields
the chunks in order as they appear, from any web process and from any starting point, because
everything it needs is in Redis (or, for long jobs, on disk).
"""

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import redis
from kombu.exceptions import OperationalError

from app.bell import Bell
from app.errors import Problem, field_problem, no_worker
from app.schemas import LongBody, SpeechBody
from supertonic.errors import EmptyText
from supertonic.text import Break, estimate_seconds, split_text, unknown_characters
from tasks.celery import send_advance, send_chunks
from tasks.events import Event, EventStore
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
# Delivered audio nobody can ask for again: at 300 chunks/s a minute of it would fill gigabytes.
DELIVERED_ONCE_S = 2
# Without news a stream looks by itself this often; the bell normally wakes it.
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Spoken:
    """Chunk ``index`` with its pause: ``pcm`` is s16le mono, None where it was not asked for."""

    index: int
    text: str
    pcm: bytes | None
    n_samples: int
    facts: dict[str, float | int]


@dataclass(frozen=True, slots=True)
class Gap:
    """Chunk ``index`` was spoken, but its audio is no longer kept."""

    index: int


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing happened for a moment."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The last item of every following: how the job ended."""

    state: State
    error: str = ""


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
                self._send(job, pieces, range(job.count))
        except Exception:
            # The client hears that it was refused, so it must not run behind its back.
            self.files.delete(job.job_id)
            with suppress(redis.RedisError):
                self.store.end(job.job_id, State.FAILED, "it could not be queued")
                self.store.forget_job(job.job_id)
            raise

    def _send(self, job: Job, pieces: list[Piece], indexes: range | list[int]) -> None:
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

    def let_go(self, job: Job, indexes: Iterable[int], may_return: bool = False) -> None:
        """Delivered audio is kept only where, and as long as, a client may come back for it."""
        if job.kind is Kind.LONG:
            return
        grace_s = self.settings.delivered_ttl_s if may_return else DELIVERED_ONCE_S
        try:
            self.store.let_go(job.job_id, indexes, grace_s)
        except redis.RedisError as error:
            # Nobody's loss: it has a time to live anyway.
            logger.warning("could not shorten the life of delivered audio: %s", error)

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

    # -- following -------------------------------------------------------------------------

    def follow(
        self, job: Job, pieces: list[Piece], after: int = -1, with_audio: bool = True
    ) -> Iterator[Spoken | Gap | Quiet | Ended]:
        """Chunks after index ``after``, in order, each once; then ``Ended``.

        ``Quiet`` is yielded about once a second while nothing happens, so that the caller can
        show a sign of life. Redis being away for a while is waited out.
        """
        ready: dict[int, Event] = {}
        ending: Event | None = None
        next_index, cursor = after + 1, "0"
        care = _Care(self, job, pieces)
        with self.bell.listen(job.job_id) as ring:
            while True:
                ring.clear()
                news: list[Event] = []
                try:
                    news = self.store.events(job.job_id, cursor)
                    for event in news:
                        cursor = event.entry_id
                        if event.type != "audio":
                            ending = event
                        elif event.index >= next_index:
                            ready[event.index] = event
                    while next_index in ready:
                        item = self._item(job, pieces, ready[next_index], with_audio)
                        if isinstance(item, Gap) and ending is None and job.kind is not Kind.LONG:
                            # Said, but lost before we had it: the same samples can be made again.
                            # The files worker does that for long jobs; what it has on disk and
                            # this process cannot see must not be taken for lost.
                            del ready[next_index]
                            self.store.forget_chunk(job.job_id, next_index)
                            self._send(job, pieces, [next_index])
                            break
                        yield item
                        del ready[next_index]
                        next_index += 1
                        care.renew(next_index)
                    if not news and care.look_after(next_index):
                        # A Redis that lost everything numbers its entries anew.
                        cursor = "0"
                    care.renew(next_index)
                except (redis.RedisError, OperationalError) as error:
                    care.redis_was_away(error)
                # A failed or cancelled job may have later chunks, but never the next one.
                if ending is not None and next_index not in ready:
                    yield Ended(State(ending.type), ending.error)
                    return
                if news:
                    care.heard()
                elif care.gave_up:
                    yield Ended(State.FAILED, care.gave_up)
                    return
                elif not ring.wait(LOOK_S):
                    yield Quiet()

    def _item(self, job: Job, pieces: list[Piece], event: Event, with_audio: bool) -> Spoken | Gap:
        piece = pieces[event.index]
        pause_samples = round(piece.pause_s * job.sample_rate)
        pcm = None
        if with_audio:
            speech = self.chunk_audio(job, pieces, event.index, event.n_samples)
            if speech is None:
                return Gap(event.index)
            pcm = speech + bytes(2 * pause_samples)
        facts = event.facts or {}
        return Spoken(event.index, piece.text, pcm, event.n_samples + pause_samples, facts)

    def chunk_audio(
        self, job: Job, pieces: list[Piece], index: int, n_samples: int
    ) -> bytes | None:
        """Samples of one chunk without its pause, wherever they are kept now."""
        pcm = self.store.audio(job.job_id, index)
        if pcm is not None or job.kind is not Kind.LONG:
            return pcm
        pcm = self.files.read_chunk(job.job_id, index)
        if pcm is not None:
            return pcm
        published = self.store.published(job.job_id, range(index))
        if any(count is None for count in published):
            return None
        pauses = sum(round(piece.pause_s * job.sample_rate) for piece in pieces[:index])
        start = sum(count or 0 for count in published) + pauses
        return self.files.read_samples(job.job_id, start, n_samples)


class _Care:
    """What a follower does while it hears nothing: finds out why, and repairs it if it can."""

    def __init__(self, speech: Speech, job: Job, pieces: list[Piece]) -> None:
        self.speech = speech
        self.job = job
        self.pieces = pieces
        self.gave_up = ""
        self._heard_at = self._worker_at = time.monotonic()
        self._looked_at = self._renewed_at = self._heard_at
        self._away_since: float | None = None

    def heard(self) -> None:
        self._heard_at = self._worker_at = time.monotonic()

    def redis_was_away(self, error: Exception) -> None:
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._away_since > self.speech.settings.patience_s:
            self.gave_up = f"Redis could not be reached: {error}"

    def renew(self, next_index: int) -> None:
        """A slow listener, who plays while receiving, must not find the end expired."""
        now, ttl_s = time.monotonic(), self.speech.settings.stream_ttl_s
        if self.job.kind is not Kind.LONG and now - self._renewed_at > ttl_s / 4:
            self._renewed_at = now
            self.speech.store.renew(self.job.job_id, range(next_index, self.job.count), ttl_s)

    def look_after(self, next_index: int) -> bool:
        """Called when the stream holds nothing new. True if the job had to be made again."""
        self._away_since = None
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return False
        self._looked_at = now
        settings, store = self.speech.settings, self.speech.store
        if self.speech.workers():
            self._worker_at = now
        elif now - self._worker_at > settings.patience_s:
            self.gave_up = f"no speech worker was running for {settings.patience_s:g} s"
            store.end(self.job.job_id, State.FAILED, self.gave_up)
            return False
        is_gone = store.job(self.job.job_id) is None
        if self.job.kind is Kind.LONG:
            # The files worker looks after long jobs, as long as they are on disk.
            if is_gone and self.speech.files.load(self.job.job_id) is None:
                self.gave_up = "the job was deleted"
        elif is_gone:
            logger.warning("job %s was gone from Redis, sent again", self.job.job_id)
            if store.create(self.job, self.pieces, settings.stream_ttl_s):
                for index in range(next_index):
                    store.mark_published(self.job.job_id, index, 0)
                self._send_again(next_index)
            return True
        elif now - self._heard_at > settings.stall_s * (1 if store.queues_are_empty() else 10):
            self._send_again(next_index)
        return False

    def _send_again(self, next_index: int) -> None:
        indexes = list(range(next_index, self.job.count))
        published = self.speech.store.published(self.job.job_id, indexes)
        missing = [i for i, n in zip(indexes, published, strict=True) if n is None]
        if missing:
            logger.warning("job %s: chunks %s seem lost, sent again", self.job.job_id, missing)
            self.speech._send(self.job, self.pieces, missing)
        self._heard_at = time.monotonic()


def _warnings(text: str) -> tuple[str, ...]:
    """What the speaker should know about a text that is accepted all the same."""
    unknown = unknown_characters(text)
    if not unknown:
        return ()
    # Invisible ones by their number: nobody could see which is meant, and headers refuse them.
    unknown = [char if char.isprintable() else f"U+{ord(char[0]):04X}" for char in unknown]
    shown = " ".join(unknown[:20]) + (" …" if len(unknown) > 20 else "")
    return (f"The model does not know these characters and cannot pronounce them: {shown}",)
