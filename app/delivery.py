"""What one listener got, as figures and as one log line: first sound, silence, how it ended."""

import logging
import time
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

from tasks.logs import facts
from tasks.measures import FIRST_AUDIO, UNDERRUN, Meter
from tasks.messages import Job, Kind

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Playback:
    """A listener who starts to play with the first chunk and plays without pause from then on."""

    def __init__(self) -> None:
        self.pieces = 0
        self.underrun_s = 0.0
        self._played_at = 0.0

    def add(self, now: float, seconds: float, waited_s: float) -> None:
        """A chunk or slice of ``seconds`` is there. The silence before it, if any, counts as far
        as we waited for it: a client that reads slowly makes its own silence.
        """
        if self.pieces and now > self._played_at:
            self.underrun_s = max(self.underrun_s, min(now - self._played_at, waited_s))
        self._played_at = max(self._played_at, now) + seconds
        self.pieces += 1


class ListenerWatch:
    """Watches the items of a following go to their listener."""

    def __init__(
        self, job: Job, meter: Meter, is_asker: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.job = job
        self.meter = meter
        self.clock = clock
        # A stream counts once: who listens too, or comes back, is not who asked for it.
        self.is_counted = is_asker and job.kind is Kind.STREAM
        self.playback = Playback()
        self.chunks = 0
        self.first_audio_s: float | None = None
        self.ending: str = "left"
        self._began = clock()

    def watch(self, items: Generator[T, None, None]) -> Iterator[T]:
        """The same items. When the caller asks for the next one, it has written the last."""
        waited_s = 0.0  # since the last sound: items without any come about once a second
        try:
            while True:
                asked = self.clock()
                item = next(items, None)
                if item is None:
                    return
                now = self.clock()
                waited_s += now - asked
                n_samples, state = getattr(item, "n_samples", None), getattr(item, "state", None)
                # Of what an encoder still keeps to itself nothing can be written yet.
                if n_samples:
                    self.playback.add(now, n_samples / self.job.sample_rate, waited_s)
                    waited_s = 0.0
                if n_samples is not None:
                    self.chunks += getattr(item, "is_last", True)
                if state is not None:
                    self.ending = state.value
                yield item
                if n_samples and self.first_audio_s is None:
                    self._first_written()
        finally:
            items.close()
            self._close()

    def _first_written(self) -> None:
        # Epoch seconds: the request may have been accepted by another process.
        self.first_audio_s = max(0.0, time.time() - self.job.created_at)
        if self.is_counted:
            self.meter.observe(FIRST_AUDIO, self.first_audio_s)

    def _close(self) -> None:
        if self.is_counted and self.playback.pieces > 1:
            self.meter.observe(UNDERRUN, self.playback.underrun_s)
        about: dict[str, object] = {}
        if self.is_counted and self.first_audio_s is not None:
            about["first_audio_s"] = self.first_audio_s
            about["underrun_s"] = self.playback.underrun_s
        logger.info(
            "delivered",
            extra=facts(
                job_id=self.job.job_id,
                ending=self.ending,
                chunks=self.chunks,
                of=self.job.count,
                seconds=self.clock() - self._began,
                **about,
            ),
        )
