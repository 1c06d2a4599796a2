"""What moves a long job forward, in the files worker: sending chunks, collecting sound, ending.

``JobAdvancer.advance`` may run at any time, twice, or not at all for a while: it looks at what is
there and does what is missing, so a lost message or a killed process costs a delay and nothing
else. A whole book is never sent at once: a cancelled job should leave little behind, and others
want their turn.
"""

import threading
import time
from dataclasses import replace

import redis
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from supertonic.text import estimate_seconds
from tasks.celery import send_advance, send_chunks, send_delivery
from tasks.events import EventStore
from tasks.idempotency import IdempotencyKeys
from tasks.jobfiles import JobFiles
from tasks.jobsound import Recorder
from tasks.logs import facts
from tasks.longjobs import LongJobs
from tasks.messages import Job, Piece, State
from tasks.places import PlaceAway
from tasks.sending import make_chunks, silence_s
from tasks.settings import Settings
from tasks.webhooks import Delivery, Turns, Webhooks, deliver

logger = get_logger(__name__)

# A job has at most this many full batches in the queue: one running, one waiting. Chunks may be a
# minute long, and what is spoken but not yet on disk lies in Redis.
WINDOW_BATCHES = 2
# A message of a long job that nobody took for this long is not coming any more.
CHUNK_EXPIRES_S = 3600.0

# Of the files worker's five threads; one at least moves jobs forward, whoever does not answer.
WEBHOOKS_AT_ONCE = 2
UPLOADS_AT_ONCE = 1


class JobAdvancer:
    """Moves jobs forward, one process or thread per job at a time."""

    def __init__(self, client: "redis.Redis", files: JobFiles, settings: Settings) -> None:
        self.settings = settings
        self.store = EventStore(client)
        self.long_jobs = LongJobs(self.store)
        self.files = files
        self.keys = IdempotencyKeys(settings.data_dir)
        self.webhooks = Webhooks(settings)
        self._turns = Turns(WEBHOOKS_AT_ONCE)
        self._storing = threading.BoundedSemaphore(UPLOADS_AT_ONCE)
        self._over: dict[str, float] = {}

    def advance(self, job_id: str) -> None:
        """Do whatever job ``job_id`` needs now. Returns at once if another does it already."""
        # Whoever has the job looks for the note once more after giving it up, so a call that
        # comes in the middle of a step is never lost.
        note = self.files.folder(job_id) / "note"
        try:
            note.touch()
            while note.exists():
                with self.files.alone(job_id) as is_mine:
                    if not is_mine:
                        return
                    note.unlink(missing_ok=True)
                    self._step(job_id)
        except FileNotFoundError:
            if self.files.load(job_id) is not None:
                raise
            # Deleted or expired, before or meanwhile.
            self.store.forget_job(job_id)
        except OSError as error:
            # A full disk, above all. The sweep comes back to it.
            self.long_jobs.note(job_id, f"The job cannot be written: {error.strerror or error}")
            logger.error("a job cannot be written: %s", error, extra=facts(job_id=job_id))
        except PlaceAway as error:
            # The sweep comes back to it.
            logger.warning(
                "the sound of a job cannot be reached: %s", error, extra=facts(job_id=job_id)
            )

    def _step(self, job_id: str) -> None:
        saved = self.files.load(job_id)
        if saved is None:
            self.store.forget_job(job_id)
            return
        on_disk, pieces = saved
        job = self.store.job(job_id) or self._restore(on_disk, pieces)
        if job is None:
            # Deleted since it was read from disk.
            return
        if on_disk.state.is_final and not job.state.is_final:
            # A restore that was killed between telling of the job and of its end.
            self.store.end_again(on_disk)
            return
        if job.state.is_final:
            self._close(job, on_disk, pieces)
            return
        if on_disk.started_at is None and job.started_at is not None:
            # Redis may be lost, and what has begun must not seem to begin again. This file does not
            # say whether it is paused.
            begun = replace(on_disk, state=State.QUEUED, started_at=job.started_at)
            self.files.update(begun, pieces)
        job = self._hold(job)
        with self.files.record(job_id, pieces, job.sample_rate) as recorder:
            self._collect(job, recorder)
            if len(recorder.entries) == job.count:
                self._finish(job, pieces, recorder)
            elif job.state.is_spoken:
                self._refill(job, pieces, recorder.collected)

    def _restore(self, job: Job, pieces: list[Piece]) -> Job | None:
        """Tell Redis again about a job it has forgotten, with the chunks that are on disk."""
        logger.info("job restored from disk, Redis lost it", extra=facts(job_id=job.job_id))
        fresh = replace(job, state=State.QUEUED, error=None, finished_at=None)
        chunks = make_chunks(fresh, pieces, range(fresh.count))
        is_over = job.state.is_final  # then it is not counted as a new one
        self.store.admit(fresh, pieces, self.settings.job_ttl_s, chunks, is_known=is_over)
        for index, n_samples in self.files.chunk_lengths(job.job_id).items():
            self.store.mark_published(job.job_id, index, n_samples)
        self.long_jobs.measure_afresh(job.job_id)
        if is_over:
            self.store.end_again(job)
        return self.store.job(job.job_id)

    def _hold(self, job: Job) -> Job:
        """The disk knows whether a job is paused: it is told first, and Redis may be lost."""
        is_paused = self.files.is_paused(job.job_id)
        if is_paused and self.long_jobs.pause(job.job_id):
            return replace(job, state=State.PAUSED)
        if not is_paused and self.long_jobs.resume(job.job_id):
            return replace(job, state=State.RUNNING if job.done else State.QUEUED)
        return job

    def _collect(self, job: Job, recorder: Recorder) -> None:
        """Bring spoken chunks to disk and out of Redis."""
        missing = sorted(set(range(job.count)) - recorder.collected)
        published = self.store.published(job.job_id, missing)
        brought = []
        for index, n_samples in zip(missing, published, strict=True):
            if n_samples is None:
                continue
            pcm = self.store.audio(job.job_id, index)
            if pcm is None:
                # Published, but its audio left Redis before it was collected: speak it again.
                self.store.forget_chunk(job.job_id, index)
                continue
            recorder.add(index, pcm)
            brought.append(index)
        recorder.commit()
        self.store.drop_audio(job.job_id, brought)
        if brought and job.error:
            # What kept it does not any more.
            self.long_jobs.note(job.job_id, "")

    def _refill(self, job: Job, pieces: list[Piece], collected: set[int]) -> None:
        """Keep a window of chunks in the queue; send again what seems lost."""
        in_flight = (
            self.store.in_flight(job.job_id, silence_s(self.store, self.settings, CHUNK_EXPIRES_S))
            - collected
        )
        wanted = [i for i in range(job.count) if i not in collected and i not in in_flight]
        waiting_s = sum(_seconds(job, pieces[index]) for index in in_flight)
        room = WINDOW_BATCHES * self.settings.max_batch_seconds - waiting_s
        sent: list[int] = []
        for index in wanted[: max(0, self.settings.job_window - len(in_flight))]:
            # One goes always: it may be longer than the whole window.
            room -= _seconds(job, pieces[index])
            if room < 0 and (sent or in_flight):
                break
            sent.append(index)
        if sent:
            send_chunks(self.store, make_chunks(job, pieces, sent), CHUNK_EXPIRES_S)
            self.store.mark_sent(job.job_id, sent)
            about = facts(job_id=job.job_id, sent=len(sent), collected=len(collected))
            logger.info("job moved", extra=about)

    def _finish(self, job: Job, pieces: list[Piece], recorder: Recorder) -> None:
        n_samples = recorder.finish()
        about = facts(job_id=job.job_id, chunks=job.count, audio_s=n_samples / job.sample_rate)
        logger.info("job done", extra=about)
        if not self._store(job):
            return
        self.store.end(job.job_id, State.DONE)
        ended = self.store.job(job.job_id)
        if ended is not None:  # or deleted just now
            self._close(ended, job, pieces)

    def _store(self, job: Job) -> bool:
        """Bring finished sound to its place; False while others are being brought. The sweep comes
        back then: a store that does not answer must not hold up jobs that do not need it yet.
        """
        if self.files.place is None:
            return True
        if not self._storing.acquire(blocking=False):
            self.long_jobs.note(job.job_id, "The sound waits for others to be stored.")
            return False
        try:
            self.files.store(job.job_id)
        except PlaceAway as error:
            # Tried again at the next sweep. Meanwhile the job tells what keeps it.
            self.long_jobs.note(job.job_id, f"The sound cannot be stored yet: {error}")
            logger.warning("sound cannot be stored: %s", error, extra=facts(job_id=job.job_id))
            return False
        finally:
            self._storing.release()
        return True

    def _close(self, job: Job, on_disk: Job, pieces: list[Piece]) -> None:
        """Make a job's end durable and drop what it no longer needs."""
        # First what makes room: the disk may be full.
        self.files.drop_loose(job.job_id)
        if job.state is State.CANCELLED:
            self.files.drop_sound(job.job_id)
        if on_disk.state is not job.state or on_disk.finished_at is None:
            self.files.update(job, pieces)
        self.files.drop_copy(job.job_id)
        self.store.drop_audio(job.job_id, range(job.count))
        delivery = Delivery.load(self.files.folder(job.job_id))
        if delivery is not None and delivery.is_due(time.time()):
            # A task of its own: whoever is told may take seconds to answer.
            send_delivery(job.job_id)

    def deliver(self, job_id: str) -> None:
        """Tell a job's webhook that it has ended, if an attempt is due."""
        saved = self.files.load(job_id)
        if saved is None or not saved[0].state.is_final:
            return
        try:
            self._tell(job_id, saved[0])
        except FileNotFoundError:
            if self.files.load(job_id) is not None:
                raise
            # Deleted while its webhook was being told.

    def _tell(self, job_id: str, job: Job) -> None:
        folder = self.files.folder(job_id)
        delivery = Delivery.load(folder)
        if delivery is None:
            return
        # Who gets no turn is left to the sweep: receivers must not hold up the jobs.
        with (
            self._turns.turn(delivery.url) as is_turn,
            self.files.alone(job_id, "webhook.lock") as is_mine,
        ):
            if is_turn and is_mine:
                made = deliver(self.webhooks, folder, job, time.time())
                if made is not None:
                    about = facts(job_id=job_id, attempt=made.attempts, status=made.last_status)
                    logger.info("webhook %s", made.state, extra=about)

    def sweep(self) -> None:
        """Look after every job on disk: expired ones go, unfinished ones move."""
        job_ids = self.files.job_ids()
        self._over = {job_id: self._over[job_id] for job_id in job_ids if job_id in self._over}
        states = self.long_jobs.states(job_ids)
        for job_id, state in zip(job_ids, states, strict=True):
            try:
                self._look_after(job_id, state)
            except (redis.ConnectionError, redis.TimeoutError, OperationalError):
                raise
            except PlaceAway as error:
                about = facts(job_id=job_id)
                logger.warning(
                    "the sound of an expired job cannot be removed: %s", error, extra=about
                )
            except Exception:
                # A full disk, an unreadable record: one job's trouble is not the others'.
                logger.exception("job cannot be moved forward now", extra=facts(job_id=job_id))
        self.files.delete_orphans()
        self.keys.delete_old(self.settings.job_ttl_s)

    def _look_after(self, job_id: str, state: State | None) -> None:
        if job_id not in self._over:
            saved = self.files.load(job_id)
            if saved is None:
                return
            delivery = Delivery.load(self.files.folder(job_id))
            is_told = delivery is None or delivery.state != "waiting"
            if saved[0].state.is_final and is_told:
                # Nothing on disk will change any more, so it is not read every few seconds.
                self._over[job_id] = saved[0].created_at
                self.files.drop_copy(job_id)
            created_at = saved[0].created_at
        else:
            created_at = self._over[job_id]
        if created_at < time.time() - self.settings.job_ttl_s:
            self.files.delete(job_id)
            self.store.forget_job(job_id)
        elif state is None or not (state.is_final and job_id in self._over):
            if self.files.place is None:
                self.advance(job_id)
            else:
                # A task of its own, since it may have to wait for a store that does not answer.
                send_advance(job_id)


def _seconds(job: Job, piece: Piece) -> float:
    return estimate_seconds(piece.spoken, job.request.language, job.request.speed)
