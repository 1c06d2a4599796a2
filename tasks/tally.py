"""What a worker notes about each batch: means for its record, histograms, and a log line."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tasks.logs import facts
from tasks.measures import (
    BATCH_AUDIO,
    BATCH_SIZE,
    ENGINE,
    FIRST_PUBLISHED,
    LATE,
    PADDING,
    QUEUE_WAIT,
    Meter,
)
from tasks.messages import Chunk, Kind

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Done:
    """A chunk that was spoken and published: seconds of its speech and of its wait."""

    chunk: Chunk
    audio_s: float
    wait_s: float


@dataclass(slots=True)
class Tally:
    """What this worker has done since it started."""

    batches: int = 0
    chunks: int = 0
    audio_s: float = 0.0
    busy_s: float = 0.0
    queue_wait_s: float = 0.0
    batch_size: float = 0.0
    meter: Meter = field(default_factory=Meter)
    _sliced: set[str] = field(default_factory=set)  # jobs whose first slice is out already

    def first_slice(self, chunk: Chunk) -> None:
        """Note that the beginning of a first chunk has just been published, before the rest."""
        self._sliced.add(chunk.job_id)
        self.meter.observe(FIRST_PUBLISHED, max(0.0, time.time() - chunk.sent_at))

    @property
    def rate(self) -> float:
        """Audio seconds made per busy second, 0 while nothing was measured."""
        return self.audio_s / self.busy_s if self.busy_s else 0.0

    def end(self, batch: Sequence[Chunk]) -> None:
        """These chunks are over and done with."""
        self._sliced.difference_update(chunk.job_id for chunk in batch)

    def add(
        self, batch_id: str, done: Sequence[Done], busy_s: float, share_s: float | None = None
    ) -> None:
        """Note a batch that has just been published and took the engine ``busy_s``, of which
        ``share_s`` are its own, where others were computed beside it.
        """
        size, audio_s = len(done), sum(one.audio_s for one in done)
        queue_wait_s = sum(one.wait_s for one in done) / size
        # Moving means over about the last twenty batches, true means before that.
        weight = max(0.05, 1 / (self.batches + 1))
        self.queue_wait_s += (queue_wait_s - self.queue_wait_s) * weight
        self.batch_size += (size - self.batch_size) * weight
        self.batches += 1
        self.chunks += size
        self.audio_s += audio_s
        self.busy_s += busy_s if share_s is None else share_s
        self._measure(done, audio_s, busy_s)
        if logger.isEnabledFor(logging.INFO):
            _log(batch_id, done, audio_s, busy_s)

    def _measure(self, done: Sequence[Done], audio_s: float, busy_s: float) -> None:
        observe, now = self.meter.observe, time.time()
        observe(BATCH_SIZE, len(done))
        observe(BATCH_AUDIO, audio_s)
        observe(ENGINE, busy_s)
        # Rounded, so that rows of one length do not come out as a little padding.
        longest = max(one.audio_s for one in done)
        padding = 1 - audio_s / (longest * len(done)) if longest else 0.0
        observe(PADDING, round(padding, 6))
        for one in done:
            chunk = one.chunk
            observe(QUEUE_WAIT, one.wait_s, chunk.urgency.value)
            if chunk.kind is Kind.LONG:
                continue
            # Both by the clocks of two machines, where web and worker are on two.
            if chunk.index > 0:
                observe(LATE, max(0.0, now - chunk.due))
            elif chunk.job_id not in self._sliced:
                observe(FIRST_PUBLISHED, max(0.0, now - chunk.sent_at))


def _log(batch_id: str, done: Sequence[Done], audio_s: float, busy_s: float) -> None:
    about = facts(batch_id=batch_id, chunks=len(done), engine_s=busy_s, audio_s=audio_s)
    logger.info("batch", extra=about)
    for one in done:
        chunk = one.chunk
        about = facts(
            job_id=chunk.job_id,
            chunk=chunk.index,
            of=chunk.count,
            batch_id=batch_id,
            queue=chunk.urgency.value,
            wait_s=one.wait_s,
            audio_s=one.audio_s,
        )
        logger.info("chunk spoken", extra=about)
