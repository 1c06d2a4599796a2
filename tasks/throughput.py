"""How fast a worker is when it has plenty to do: seconds of work per second.

A single short chunk says little about that: on some devices thirty of them take hardly longer than
one. So batches are measured by their size, each by a mean that follows the last twenty or so, and
the pace is that of the best size. What is measured is the whole way from taking a batch to having
published it, because that is what those who wait have to wait for.

An engine that has several batches on several cores shares the machine out among them: of a second
in which two were computed, each has taken half.

That is how fast it could be. Under pressure it is slower: who needs sound now goes in small
batches, turns of long jobs lie between them, and receiving takes its share. So as soon as there was
pressure, the pace is not above what was seen then, from one batch to the next.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from supertonic.utterance import Audio, Utterance

# A mean of fewer batches says nothing yet.
TRUSTED = 3
# So many seconds of it waiting are pressure.
PRESSURE_S = 0.5
# Measuring before the first request may take about this long.
MEASURE_S = 0.5
MOST = 1e6
TEXT = "This sentence is spoken once before anybody asks, to find out how long that takes here."


class Shares:
    """Divides time among what runs at the same time."""

    def __init__(self) -> None:
        self._running = 0
        self._share_s = 0.0  # of one that had run since the beginning
        self._seen_at = 0.0

    def begin(self, now: float) -> float:
        """One begins; a mark to be handed to ``end``."""
        self._see(now)
        self._running += 1
        return self._share_s

    def end(self, now: float, mark: float) -> float:
        """It is over: its share of the seconds since then."""
        self._see(now)
        self._running -= 1
        return self._share_s - mark

    def _see(self, now: float) -> None:
        if self._running:
            self._share_s += (now - self._seen_at) / self._running
        self._seen_at = now


class Throughput:
    """Means of work and time by size of batch: 1, 2 to 3, 4 to 7 and so on."""

    def __init__(self) -> None:
        self._sizes: dict[int, Mean] = {}
        self._pressed = Mean()
        self._pressed_since: float | None = None  # the end of the last batch

    def add(self, n_rows: int, work_s: float, busy_s: float, weight: int = 1) -> None:
        """Note a batch; ``weight`` of them, when it stands for more than one."""
        if n_rows:
            self._sizes.setdefault(n_rows.bit_length(), Mean()).add(work_s, busy_s, weight)

    def note_pressure(self, work_s: float, waiting_s: float, ended: float) -> None:
        """A batch of so much work ended at this moment, and so much work was waiting then."""
        best, began = self._best, self._pressed_since
        if began is not None:
            self._pressed.add(work_s, ended - began)
        self._pressed_since = ended if waiting_s > PRESSURE_S * best > 0 else None

    @property
    def value(self) -> float:
        """Seconds of work per second, 0 before anything was measured."""
        return min(self._best, self._pressed.rate or self._best)

    @property
    def _best(self) -> float:
        return max((mean.rate for mean in self._sizes.values()), default=0.0)


@dataclass(slots=True)
class Mean:
    """Work and time of a batch, over the last twenty or so."""

    n: int = 0
    work_s: float = 0.0
    busy_s: float = 0.0

    def add(self, work_s: float, busy_s: float, weight: int = 1) -> None:
        self.n += weight
        share = max(0.05, weight / self.n)
        self.work_s += (work_s - self.work_s) * share
        self.busy_s += (busy_s - self.busy_s) * share

    @property
    def rate(self) -> float:
        """Seconds of work per second, 0 while it is not to be trusted."""
        return self.work_s / max(self.busy_s, self.work_s / MOST) if self.n >= TRUSTED else 0.0


class _Speaks(Protocol):
    voices: Sequence[str]
    languages: Sequence[str]

    def synthesize(self, utterances: "list[Utterance]") -> "list[Audio]": ...


def measure(throughput: Throughput, engine: _Speaks) -> None:
    """Before the first request: batches of 1, 8 and 32, as far as time allows."""
    from supertonic.utterance import Utterance

    language = engine.languages[0]
    row = Utterance(TEXT, language, engine.voices[0], steps=2, speed=1.0, seed=0, index=0)
    for n_rows in (1, 8, 32):
        started = time.perf_counter()
        audios = engine.synthesize([row] * n_rows)
        busy_s = time.perf_counter() - started
        # At two steps a second of sound is a second of work.
        work_s = sum(len(audio.samples) / audio.sample_rate for audio in audios)
        throughput.add(n_rows, work_s, busy_s, weight=TRUSTED)
        if busy_s > MEASURE_S / 8:
            return
