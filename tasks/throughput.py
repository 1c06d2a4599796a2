"""How fast a worker is when it has plenty to do: seconds of work per second.

A single short chunk says little about that: on some devices thirty of them take hardly longer than
one. So batches are measured by their size, each by a mean that follows the last twenty or so, and
the pace is that of the best size. What is measured is the whole way from taking a batch to having
published it, because that is what those who wait have to wait for.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from supertonic.text import estimate_seconds

if TYPE_CHECKING:
    from supertonic.engine import Audio, Utterance

# A mean of fewer batches says nothing yet.
TRUSTED = 3
# Measuring before the first request may take about this long.
MEASURE_S = 0.5
MOST = 1e6
TEXT = "This sentence is spoken once before anybody asks, to find out how long that takes here."


class Throughput:
    """Means of work and time by size of batch: 1, 2 to 3, 4 to 7 and so on."""

    def __init__(self) -> None:
        self._sizes: dict[int, tuple[int, float, float]] = {}

    def add(self, n_rows: int, work_s: float, busy_s: float, weight: int = 1) -> None:
        """Note a batch; ``weight`` of them, when it stands for more than one."""
        if not n_rows:
            return
        size = n_rows.bit_length()
        n, mean_work_s, mean_busy_s = self._sizes.get(size, (0, 0.0, 0.0))
        n += weight
        share = max(0.05, weight / n)
        mean_work_s += (work_s - mean_work_s) * share
        mean_busy_s += (busy_s - mean_busy_s) * share
        self._sizes[size] = (n, mean_work_s, mean_busy_s)

    @property
    def value(self) -> float:
        """Seconds of work per second, 0 before anything was measured."""
        rates = [
            work_s / max(busy_s, work_s / MOST)
            for n, work_s, busy_s in self._sizes.values()
            if n >= TRUSTED
        ]
        return max(rates, default=0.0)


class _Speaks(Protocol):
    voices: Sequence[str]
    languages: Sequence[str]

    def synthesize(self, utterances: "list[Utterance]") -> "list[Audio]": ...


def measure(throughput: Throughput, engine: _Speaks) -> None:
    """Before the first request: batches of 1, 8 and 32, as far as time allows."""
    from supertonic.engine import Utterance

    language = engine.languages[0]
    row = Utterance(TEXT, language, engine.voices[0], steps=2, speed=1.0, seed=0, index=0)
    # At two steps a second of sound is a second of work.
    work_s = estimate_seconds(TEXT, language, 1.0)
    for n_rows in (1, 8, 32):
        started = time.perf_counter()
        engine.synthesize([row] * n_rows)
        busy_s = time.perf_counter() - started
        throughput.add(n_rows, n_rows * work_s, busy_s, weight=TRUSTED)
        if busy_s > MEASURE_S / 8:
            return
