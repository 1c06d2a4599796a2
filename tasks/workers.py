"""Which speech workers live, what they can do, and the batch limits they all follow.

Each worker writes a record with a short time to live, so a dead one disappears by itself. The
web reads the records for readiness, for ``GET /`` and for what models and voices there are.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

import redis

from tasks.events import PREFIX

WORKERS = PREFIX + "workers"
BATCH = PREFIX + "batch"
RECORD_TTL_S = 5


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One living worker. Times are seconds, ``rate`` is audio seconds per second while busy,
    ``throughput`` seconds of work per second when there is plenty to do (tasks/throughput.py),
    ``length_ratio`` seconds of speech per second that was estimated for its text.
    """

    name: str
    device: str
    precision: str
    model: str
    is_builtin: bool
    description: str
    fingerprint: str
    sample_rate: int
    voices: tuple[str, ...]
    languages: tuple[str, ...]
    max_batch: int
    max_wait_ms: float
    started_at: float
    waiting: int
    batches: int
    chunks: int
    audio_s: float
    busy_s: float
    rate: float
    throughput: float
    length_ratio: float
    queue_wait_s: float
    batch_size: float
    device_memory_bytes: int


class WorkerRecords:
    """Reads and writes worker records and the batch limits. Raises ``redis.RedisError``."""

    def __init__(self, client: "redis.Redis") -> None:
        self.redis = client

    def announce(self, record: WorkerRecord) -> None:
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.set(_key(record.name), json.dumps(asdict(record)), ex=RECORD_TTL_S)
            pipe.sadd(WORKERS, record.name)
            pipe.execute()

    def leave(self, name: str) -> None:
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.delete(_key(name))
            pipe.srem(WORKERS, name)
            pipe.execute()

    def living(self) -> list[WorkerRecord]:
        """Records of living workers, by name."""
        names = sorted(name.decode() for name in self.redis.smembers(WORKERS))  # type: ignore[union-attr]
        if not names:
            return []
        rows: Any = self.redis.mget([_key(name) for name in names])
        dead = [name for name, row in zip(names, rows, strict=True) if row is None]
        if dead:
            self.redis.srem(WORKERS, *dead)
        return [_record(row) for row in rows if row is not None]

    def set_batch(self, max_batch: int | None, max_wait_ms: float | None) -> None:
        """Change the limits of every worker, now and for workers that start later."""
        wanted = {"max_batch": max_batch, "max_wait_ms": max_wait_ms}
        mapping = {name: repr(value) for name, value in wanted.items() if value is not None}
        if mapping:
            self.redis.hset(BATCH, mapping=mapping)  # type: ignore[arg-type]

    def batch(self) -> tuple[int | None, float | None]:
        """Limits set at run time as (max_batch, max_wait_ms); None where nothing was set."""
        rows: Any = self.redis.hmget(BATCH, "max_batch", "max_wait_ms")
        max_batch, max_wait_ms = rows
        return (
            None if max_batch is None else int(max_batch),
            None if max_wait_ms is None else float(max_wait_ms),
        )


def _key(name: str) -> str:
    return f"{PREFIX}worker:{name}"


def _record(row: bytes) -> WorkerRecord:
    values = json.loads(row)
    values["voices"] = tuple(values["voices"])
    values["languages"] = tuple(values["languages"])
    return WorkerRecord(**values)
