"""What a follower does while it hears nothing of its job: find out why, repair it if it can."""

import logging
import time
from contextlib import suppress

import redis

from app.jobs import Speech
from tasks.logs import facts
from tasks.messages import Job, Kind, Piece, State
from tasks.sending import silence_s

logger = logging.getLogger(__name__)

# Without news a stream looks by itself this often; the bell normally wakes it.
LOOK_S = 1.0
STOPPED = "the server is being stopped"


class Care:
    """Looks after one job on behalf of one follower."""

    def __init__(self, speech: Speech, job: Job, pieces: list[Piece]) -> None:
        self.speech = speech
        self.job = job
        self.pieces = pieces
        self.gave_up, self.status = "", 503
        self._heard_at = self._worker_at = time.monotonic()
        self._looked_at = self._renewed_at = self._asked_at = self._heard_at
        self._away_since: float | None = None

    def heard(self) -> None:
        self._heard_at = self._worker_at = time.monotonic()

    def redis_was_away(self, error: Exception) -> None:
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._away_since > self.speech.settings.patience_s:
            self.gave_up = f"Redis could not be reached: {error}"

    def redis_answered(self) -> None:
        self._away_since = None

    def stop(self) -> None:
        """This process ends, and the job's listener with it."""
        self.gave_up = STOPPED
        with suppress(redis.RedisError):
            self.speech.store.end(self.job.job_id, State.FAILED, self.gave_up)

    def renew(self, next_index: int) -> None:
        """A slow listener, who plays while receiving, must not find the end expired."""
        now, ttl_s = time.monotonic(), self.speech.settings.stream_ttl_s
        if self.job.kind is not Kind.LONG and now - self._renewed_at > ttl_s / 4:
            self._renewed_at = now
            self.speech.store.renew(self.job.job_id, range(next_index, self.job.count), ttl_s)

    def look_after(self, next_index: int) -> bool:
        """Called when the stream holds nothing new. True if the job had to be made again."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return False
        self._looked_at = now
        settings, store = self.speech.settings, self.speech.store
        if self.job.kind is Kind.LONG or self.speech.workers():
            # A long job outlives a time without workers; whoever watches it waits with it.
            self._worker_at = now
        elif now - self._worker_at > settings.patience_s:
            self.gave_up = f"no speech worker was running for {settings.patience_s:g} s"
            store.end(self.job.job_id, State.FAILED, self.gave_up)
            return False
        is_gone = not store.exists(self.job.job_id)
        if self.job.kind is Kind.LONG:
            # The files worker looks after long jobs, as long as they are on disk.
            if is_gone and self.speech.files.load(self.job.job_id) is None:
                self.gave_up, self.status = "the job was deleted", 410
        elif is_gone:
            if store.create(self.job, self.pieces, settings.stream_ttl_s):
                logger.warning("job sent again, Redis lost it", extra=facts(job_id=self.job.job_id))
                for index in range(next_index):
                    store.mark_published(self.job.job_id, index, 0)
                self._send_again(next_index)
            elif not store.exists(self.job.job_id):
                # Nobody may make it again: it was not lost, but deleted.
                self.gave_up, self.status = "the job was deleted", 410
                return False
            return True
        elif self._is_lost(now):
            self._send_again(next_index)
        return False

    def _is_lost(self, now: float) -> bool:
        """Whether what was sent is not coming any more."""
        silent_s, settings = now - self._heard_at, self.speech.settings
        # Where all are silent, all ask: not sooner than it matters, and not all the time.
        if silent_s < settings.stall_s or now - self._asked_at < settings.stall_s / 4:
            return False
        self._asked_at = now
        return silent_s > silence_s(self.speech.store, settings, settings.stream_ttl_s)

    def _send_again(self, next_index: int) -> None:
        indexes = list(range(next_index, self.job.count))
        published = self.speech.store.published(self.job.job_id, indexes)
        missing = [i for i, n in zip(indexes, published, strict=True) if n is None]
        if missing:
            about = facts(job_id=self.job.job_id, chunks=missing)
            logger.warning("chunks sent again, they seem lost", extra=about)
            self.speech.send(self.job, self.pieces, missing)
        self._heard_at = time.monotonic()
