"""Counters and histograms of all processes, added up in Redis.

A process counts in memory and sends what has come together once or twice a second, in one script,
so a chunk costs a few dictionary entries and no round trip. Redis adds, so figures are those of
the whole service, whatever process a scrape reaches, and they outlive every process; one that is
killed takes at most its last second with it. A worker's share is kept beside the whole for a
while, to see one worker that is unlike the others.

Buckets are stored one by one and added up only when they are shown, so a histogram's count is
always the sum of its buckets.
"""

import threading
import uuid
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from tasks.names import PREFIX

KEY = PREFIX + "measures"
# A worker's own figures are shown for this long after it was last heard of.
WORKER_TTL_S = 600
# Longer than any retry of the same delivery.
MARK_TTL_S = 600
INFINITY = "+Inf"
SUM = "sum"

_SHORT_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)
# Its first bound is 0 on purpose: what is in that bucket played without a gap.
_GAP_S = (0, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


@dataclass(frozen=True, slots=True)
class Measure:
    """A histogram, or a counter where there are no ``bounds``."""

    name: str
    help: str
    bounds: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    is_per_worker: bool = False


FIRST_AUDIO = Measure(
    "first_audio_seconds",
    "From accepting a stream's request to its first chunk written to the client.",
    _SHORT_S,
)
FIRST_PUBLISHED = Measure(
    "first_published_seconds",
    "From queuing a request's first chunk to its sound published by a worker.",
    _SHORT_S,
)
QUEUE_WAIT = Measure(
    "queue_wait_seconds",
    "Wait of a chunk from being queued to being taken into a batch.",
    _SHORT_S + (60, 300),
    ("queue",),
    is_per_worker=True,
)
BATCH_SIZE = Measure(
    "batch_chunks", "Chunks per batch.", (1, 2, 4, 8, 16, 32, 64, 128), is_per_worker=True
)
PADDING = Measure(
    "batch_padding_share",
    "Share of a batch that would be padding if all its rows were as long as the longest.",
    (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75),
    is_per_worker=True,
)
ENGINE = Measure(
    "engine_seconds",
    "Time of the engine per batch.",
    (0.001, 0.0025, *_SHORT_S),
    is_per_worker=True,
)
BATCH_AUDIO = Measure(
    "batch_audio_seconds",
    "Seconds of speech per batch.",
    (1, 2, 5, 10, 20, 40, 80, 160, 320),
    is_per_worker=True,
)
LATE = Measure(
    "chunk_late_seconds",
    "How long after its due time a listener's later chunk was published; 0 is in time.",
    _GAP_S,
)
UNDERRUN = Measure(
    "stream_underrun_seconds",
    "Longest silence that waiting for a chunk made in a stream of several chunks, played in time.",
    _GAP_S,
)
HTTP = Measure(
    "http_requests", "Requests answered, by route and status.", (), ("method", "route", "status")
)

ALL = (
    FIRST_AUDIO,
    FIRST_PUBLISHED,
    QUEUE_WAIT,
    BATCH_SIZE,
    PADDING,
    ENGINE,
    BATCH_AUDIO,
    LATE,
    UNDERRUN,
    HTTP,
)

# Add numbers to hash fields, once per delivery: a reply that was lost is not counted twice.
_ADD = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
for key = 2, #KEYS do
  local from = key == 2 and 5 or 5 + 2 * ARGV[4]
  local to = key == 2 and 4 + 2 * ARGV[4] or #ARGV
  for i = from, to, 2 do redis.call('HINCRBYFLOAT', KEYS[key], ARGV[i], ARGV[i + 1]) end
  if key > 2 then redis.call('EXPIRE', KEYS[key], ARGV[3]) end
end
return 1
"""

Field = tuple[Measure, tuple[str, ...], str]


class Meter:
    """Counts in this process; safe to use from several threads."""

    def __init__(self) -> None:
        self._counts: dict[Field, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._process = uuid.uuid4().hex
        self._undelivered: tuple[str, dict[Field, float]] | None = None

    def count(self, measure: Measure, *labels: str, by: float = 1) -> None:
        with self._lock:
            self._counts[measure, labels, SUM] += by

    def observe(self, measure: Measure, value: float, *labels: str) -> None:
        at = bisect_left(measure.bounds, value)
        bound = _text(measure.bounds[at]) if at < len(measure.bounds) else INFINITY
        with self._lock:
            self._counts[measure, labels, bound] += 1
            self._counts[measure, labels, SUM] += value

    def send(self, client: "redis.Redis", worker: str = "") -> None:
        """Deliver what has come together, as ``worker``'s share too if there is one.

        Raises:
            redis.RedisError: nothing is lost; the next call delivers it.
        """
        with self._sending:
            while self._collect():
                assert self._undelivered is not None
                token, counts = self._undelivered
                _deliver(client, f"{KEY}:sent:{self._process}", token, counts, worker)
                self._undelivered = None

    def _collect(self) -> bool:
        if self._undelivered is None:
            with self._lock:
                counts, self._counts = self._counts, defaultdict(float)
            if counts:
                self._undelivered = (uuid.uuid4().hex, counts)
        return self._undelivered is not None


def _deliver(
    client: "redis.Redis", mark: str, token: str, counts: Mapping[Field, float], worker: str
) -> None:
    whole = _arguments(counts)
    keys, share = [mark, KEY], []
    if worker:
        keys.append(worker_key(worker))
        share = _arguments({field: n for field, n in counts.items() if field[0].is_per_worker})
    head: list[Any] = [token, MARK_TTL_S, WORKER_TTL_S, len(whole) // 2]
    client.eval(_ADD, len(keys), *keys, *head, *whole, *share)


def _arguments(counts: Mapping[Field, float]) -> list[Any]:
    flat: list[Any] = []
    for (measure, labels, part), number in counts.items():
        flat += ["|".join((measure.name, *labels, part)), repr(number)]
    return flat


def worker_key(worker: str) -> str:
    return f"{KEY}:worker:{worker}"


def read(client: "redis.Redis", workers: Iterable[str] = ()) -> list[dict[str, float]]:
    """Stored numbers by field, of the whole service first and then of each worker."""
    with client.pipeline(transaction=False) as pipe:
        for key in (KEY, *map(worker_key, workers)):
            pipe.hgetall(key)
        return [
            {name.decode(): float(number) for name, number in reply.items()}
            for reply in pipe.execute()
        ]


@dataclass(slots=True)
class MeasureReading:
    """One measure for one set of labels: its sum and, of a histogram, its cumulative buckets."""

    total: float
    buckets: list[tuple[str, float]]


def readings(
    measure: Measure, stored: Mapping[str, float]
) -> dict[tuple[str, ...], MeasureReading]:
    """What ``read`` gave, put together. Counts under a bound that this version does not have,
    left by another, are in the next larger one.
    """
    parts: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for field, number in stored.items():
        name, *labels, part = field.split("|")
        if name == measure.name and len(labels) == len(measure.labels):
            parts[tuple(labels)][part] = number
    return {labels: _reading(measure, found) for labels, found in sorted(parts.items())}


def empty(measure: Measure) -> MeasureReading:
    """What nobody has observed yet."""
    return _reading(measure, {})


def _reading(measure: Measure, parts: dict[str, float]) -> MeasureReading:
    total = parts.pop(SUM, 0.0)
    bounds = [_text(bound) for bound in measure.bounds] + [INFINITY]
    counts = [0.0] * len(bounds)
    for bound, number in parts.items():
        at = len(bounds) - 1 if bound == INFINITY else bisect_left(measure.bounds, float(bound))
        counts[at] += number
    running, buckets = 0.0, []
    for bound, number in zip(bounds, counts, strict=True):
        running += number
        buckets.append((bound, running))
    return MeasureReading(total, buckets if measure.bounds else [])


def _text(bound: float) -> str:
    """As Prometheus writes it: 1.0 and not 1, which version 3 would rewrite."""
    return repr(float(bound))
