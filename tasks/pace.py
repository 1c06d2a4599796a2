"""What a worker knows of itself: how long a batch takes, whose turn it is, how far listeners are.

The speaker writes it after each batch, the schedule (``tasks/batching.py``) reads it. It has no
clock of its own, so the simulator drives the same code.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tasks.messages import Chunk, Kind

# Share of the computing of one second of audio that each step adds, and what does not depend on
# steps (text, vocoder); at 2 steps the whole is 1. Measured in docs/engine.md.
STEP_SHARE = 0.16
OTHER_SHARE = 1 - 2 * STEP_SHARE
# Long jobs get at least this share of a worker, however many listen; an idle one gives them all.
LOW_SHARE = 0.05
# How fast old batches are forgotten: what else the machine does changes within seconds.
LEARNING = 0.1
# One batch may be slow for reasons that say nothing about the next one.
MOST_CHANGE = 4.0
# Seconds of speech after which half of what is known of its length is forgotten.
LENGTHS_S = 600.0
# An estimate is never taken for more wrong than this: chunks of a benchmark's engine are.
MOST_WRONG = 2.0
# Jobs whose delay is remembered; the oldest go first, and count as undelayed then.
MAX_DELAYS = 20_000


def work(chunk: Chunk, seconds: float | None = None) -> float:
    """A chunk's share of computing, in seconds of audio at 2 steps: estimated ones, or those that
    it turned out to have.
    """
    seconds = chunk.seconds if seconds is None else seconds
    return seconds * (OTHER_SHARE + STEP_SHARE * chunk.steps)


@dataclass(frozen=True, slots=True)
class Cost:
    """How long a batch takes: something before its first row, and so much per row and work.

    On one core, if the engine has several, while the others have batches of their own.
    """

    fixed_s: float = 0.0
    s_per_row: float = 0.0
    s_per_work: float = 0.0

    def seconds(self, rows: int, total: float) -> float:
        """Predicted seconds for rows with so much work in all."""
        return self.fixed_s + self.s_per_row * rows + self.s_per_work * total

    def of(self, works: Sequence[float]) -> float:
        return self.seconds(len(works), sum(works))

    def scaled(self, scale: float) -> "Cost":
        return Cost(self.fixed_s * scale, self.s_per_row * scale, self.s_per_work * scale)

    @classmethod
    def measured(
        cls, short_s: float, four_s: float, long_s: float, works: tuple[float, float]
    ) -> "Cost":
        """From three timings, on each core at the same time: a short row, four of them, a long one.

        ``works`` are those of a short and of a long row.
        """
        short, long = works
        per_short = max(0.0, four_s - short_s) / 3
        per_work = max(0.0, long_s - short_s) / (long - short)
        per_row = max(0.0, per_short - per_work * short)
        fixed = max(0.0, short_s - per_row - per_work * short)
        return cls(fixed, per_row, per_work)


@dataclass(slots=True)
class Pace:
    """One worker's knowledge.

    ``measured`` is what batches cost when the worker started. What follows from their sizes stays
    as it was; by how much everything is slower now, because the machine does other things or
    because speech is longer than estimated, is learned from each batch.
    """

    measured: Cost = field(default_factory=Cost)
    batches_at_once: int = 1  # as the engine says: one per core, or one on a GPU
    scale: float = 1.0
    low_due: float = 0.0  # when long jobs have their next turn
    # Per job and sending: seconds by which its listener hears everything later than planned.
    delays: OrderedDict[str, float] = field(default_factory=OrderedDict)
    untold: deque[tuple[str, float]] = field(default_factory=deque)  # news for other workers
    _estimated_s: float = 0.0
    _spoken_s: float = 0.0

    @property
    def cost(self) -> Cost:
        """What batches cost now."""
        return self.measured.scaled(self.scale)

    def delay(self, chunk: Chunk) -> float:
        return self.delays.get(delay_key(chunk), 0.0)

    def learn(self, chunks: Iterable[Chunk], busy_s: float) -> None:
        """A batch of these took so long: predict better."""
        expected_s = self.measured.of([work(chunk) for chunk in chunks])
        if expected_s > 0:
            seen = min(max(busy_s / expected_s, self.scale / MOST_CHANGE), self.scale * MOST_CHANGE)
            self.scale += (seen - self.scale) * LEARNING

    @property
    def length_ratio(self) -> float:
        """Seconds of speech per estimated second. A voice that speaks fast uses up its sound sooner
        than its listeners' deadlines say, and everybody would be late.
        """
        ratio = self._spoken_s / self._estimated_s if self._estimated_s else 1.0
        return min(max(ratio, 1 / MOST_WRONG), MOST_WRONG)

    def learn_length(self, estimated_s: float, spoken_s: float) -> None:
        """A text whose length was estimated (``estimate_seconds``) is so long."""
        if self._estimated_s > LENGTHS_S:
            self._estimated_s, self._spoken_s = self._estimated_s / 2, self._spoken_s / 2
        self._estimated_s += estimated_s
        self._spoken_s += spoken_s

    def took(self, batch: Sequence[Chunk], now: float) -> None:
        """This batch is begun. A turn of long jobs postpones their next one."""
        low = [work(chunk) for chunk in batch if chunk.kind is Kind.LONG]
        if low:
            self.low_due = now + self.cost.of(low) / (LOW_SHARE * self.batches_at_once)

    def published(self, chunk: Chunk, seconds: float, now: float) -> None:
        """A chunk of so many real seconds can be heard from now on.

        If that is later than its listener needed it, he hears the rest later, too; and the rest
        begins when this one really ends.
        """
        if chunk.kind is Kind.LONG or chunk.index + 1 == chunk.count:
            return
        key = delay_key(chunk)
        before = self.delays.get(key, 0.0)
        change = max(0.0, now - chunk.due - before) + seconds - chunk.seconds
        self.learn_delay(key, before + change)
        self.untold.append((key, change))

    def learn_delay(self, key: str, seconds: float) -> None:
        self.delays[key] = seconds
        if len(self.delays) > MAX_DELAYS:
            # In one step: threads of the pool and of the hub come here.
            self.delays.popitem(last=False)


def delay_key(chunk: Chunk) -> str:
    """One sending of a job: chunks that are sent again have deadlines of their own."""
    return f"{chunk.job_id}:{round(chunk.sent_at * 1000)}"
