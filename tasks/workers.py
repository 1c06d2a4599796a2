"""Which speech workers live, what they can do, and the batch limits they all follow.

Each worker writes a record with a short time to live, so a dead one disappears by itself. The
web reads the records for readiness, for ``GET /`` and for what models and voices there are.
"""

import json
import logging
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

import redis

from tasks.names import PREFIX

logger = logging.getLogger(__name__)

WORKERS = PREFIX + "workers"
BATCH = PREFIX + "batch"
RECORD_TTL_S = 5


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One living worker. Times are seconds, ``rate`` is audio seconds per second while busy,
    ``throughput`` seconds of work per second when there is plenty to do (tasks/throughput.py),
    ``length_ratio`` seconds of speech per second that was estimated for its text. ``waiting`` and
    ``speaking`` are the chunks it holds, not begun and begun.
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
    waiting: int = 0
    speaking: int = 0
    batches: int = 0
    chunks: int = 0
    audio_s: float = 0.0
    busy_s: float = 0.0
    rate: float = 0.0
    throughput: float = 0.0
    length_ratio: float = 1.0
    queue_wait_s: float = 0.0
    batch_size: float = 0.0
    device_memory_bytes: int = 0


_FIELDS = {field.name for field in fields(WorkerRecord)}
_NEEDED = {field.name for field in fields(WorkerRecord) if field.default is MISSING}


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
        records = [_record(row) for row in rows if row is not None]
        return [record for record in records if record is not None]

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


def _record(row: bytes) -> WorkerRecord | None:
    """None where it does not say what the worker can do."""
    # Another version may have written it: what this one does not know is left out.
    values = {name: value for name, value in json.loads(row).items() if name in _FIELDS}
    if missing := _NEEDED - values.keys():
        logger.warning("a worker's record is without %s, not used", ", ".join(sorted(missing)))
        return None
    values["voices"] = tuple(values["voices"])
    values["languages"] = tuple(values["languages"])
    return WorkerRecord(**values)
