"""What is known and said about a job: its record, its event stream and its audio, all in Redis.

Keys of job J: ``supertonic:job:J`` (hash, the record), ``supertonic:events:J`` (stream, what
happened, in order) and ``supertonic:audio:J:k`` (16-bit samples of chunk k). Every change that
readers must see whole is one Lua script, so a chunk that is computed twice is published once and
a job ends exactly once. Each change rings the bell: a pub/sub message that carries the job's id
and nothing else, so a lost one costs a second, never a sample.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from tasks.envelopes import Envelope
from tasks.messages import (
    Job,
    Kind,
    Piece,
    SpeechRequest,
    State,
    pieces_from_json,
    pieces_to_json,
)

PREFIX = "supertonic:"
BELL = PREFIX + "bell"
JOBS = PREFIX + "jobs"
OPEN = PREFIX + "open"
TOTALS = PREFIX + "totals"

# Publish one chunk's audio, once. Returns 1, or 0 when the job has ended or the chunk is there.
# A paused job takes what was being spoken when it was paused.
_PUBLISH = """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' and state ~= 'paused' then return 0 end
local index, ttl, now = ARGV[1], tonumber(ARGV[5]), ARGV[6]
if redis.call('HSETNX', KEYS[1], 'chunk:' .. index, ARGV[2]) == 0 then return 0 end
redis.call('SET', KEYS[3], ARGV[4], 'EX', ttl)
redis.call('HINCRBY', KEYS[1], 'samples', ARGV[2])
local done = redis.call('HINCRBY', KEYS[1], 'done', 1)
redis.call('XADD', KEYS[2], '*', 'type', 'audio', 'index', index, 'n_samples', ARGV[2],
           'facts', ARGV[3], 'done', done)
redis.call('HSETNX', KEYS[1], 'started_at', now)
if state == 'queued' then redis.call('HSET', KEYS[1], 'state', 'running') end
if done == tonumber(redis.call('HGET', KEYS[1], 'count'))
   and redis.call('HGET', KEYS[1], 'kind') ~= 'long' then
  redis.call('HSET', KEYS[1], 'state', 'done', 'finished_at', now)
  redis.call('XADD', KEYS[2], '*', 'type', 'done')
  redis.call('HINCRBY', KEYS[4], 'jobs_done', 1)
end
redis.call('HINCRBY', KEYS[4], 'chunks', 1)
redis.call('HINCRBY', KEYS[4], 'samples', ARGV[2])
redis.call('EXPIRE', KEYS[1], ttl)
redis.call('EXPIRE', KEYS[2], ttl)
redis.call('PUBLISH', ARGV[7], ARGV[8])
return 1
"""

# Add a slice to a chunk that is still being made: its samples from ARGV[2] on. Made a second time,
# after a worker's death, they are the same samples, and what is there already is no news. Returns
# whether it was.
_SLICE = """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' then return 0 end
if redis.call('HEXISTS', KEYS[1], 'chunk:' .. ARGV[1]) == 1 then return 0 end
local before, start, ttl = redis.call('STRLEN', KEYS[3]), 2 * ARGV[2], tonumber(ARGV[4])
if before < start or before >= start + #ARGV[3] then return 0 end
local now_there = redis.call('SETRANGE', KEYS[3], start, ARGV[3])
redis.call('XADD', KEYS[2], '*', 'type', 'slice', 'index', ARGV[1], 'n_samples', now_there / 2)
if state == 'queued' then redis.call('HSET', KEYS[1], 'state', 'running', 'started_at', ARGV[5]) end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ttl) end
redis.call('PUBLISH', ARGV[6], ARGV[7])
return 1
"""

# End a job, once. Returns 1, or 0 when it has ended before or is unknown.
_END = """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' and state ~= 'paused' then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[1], 'error', ARGV[2], 'finished_at', ARGV[3])
redis.call('XADD', KEYS[2], '*', 'type', ARGV[1], 'error', ARGV[2])
local ttl = redis.call('TTL', KEYS[1])
if ttl > 0 then redis.call('EXPIRE', KEYS[2], ttl) end
redis.call('HINCRBY', KEYS[3], 'jobs_' .. ARGV[1], 1)
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 1
"""

# Store a new job, if there is none with this id, and queue its chunks. ARGV from 5 on: first as
# many fields and values of the record as ARGV[4] says, then queue, message, queue, message and so
# on. Returns 1, or 0 when the job is there already; then nothing is queued.
_CREATE = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
-- Whoever must not be let in is to be refused here: above it nothing has been written.
local last = 4 + ARGV[4]
redis.call('HSET', KEYS[1], unpack(ARGV, 5, last))
redis.call('EXPIRE', KEYS[1], ARGV[1])
if ARGV[2] ~= '' then
  redis.call('ZADD', KEYS[2], ARGV[2], ARGV[3])
  redis.call('ZADD', KEYS[4], ARGV[2], ARGV[3])
end
redis.call('HINCRBY', KEYS[3], 'jobs', 1)
for i = last + 1, #ARGV, 2 do redis.call('LPUSH', ARGV[i], ARGV[i + 1]) end
return 1
"""

# Count an attempt at a chunk, once per token, so that repeating the call counts nothing; and
# without bringing a forgotten job back as a fragment. Returns which attempt it is. In company only
# a first attempt is counted: a later one is made alone, and counted then. What is not going to be
# spoken, because its job is paused or over, is no attempt.
_ATTEMPT = """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' then return 0 end
local count, by = 'attempt:' .. ARGV[1], 'attempt_by:' .. ARGV[1]
local before = tonumber(redis.call('HGET', KEYS[1], count) or 0)
if redis.call('HGET', KEYS[1], by) == ARGV[2] then return before end
if before == 0 or ARGV[3] == 'alone' then
  redis.call('HSET', KEYS[1], by, ARGV[2], count, before + 1)
end
return before + 1
"""

# Count a chunk whose audio is known from elsewhere. Not for a forgotten job: see above.
_MARK = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('HSETNX', KEYS[1], 'chunk:' .. ARGV[1], ARGV[2]) == 0 then return 0 end
local done = redis.call('HINCRBY', KEYS[1], 'done', 1)
redis.call('HINCRBY', KEYS[1], 'samples', ARGV[2])
redis.call('XADD', KEYS[2], '*', 'type', 'audio', 'index', ARGV[1], 'n_samples', ARGV[2],
           'facts', '{}', 'done', done)
local ttl = redis.call('TTL', KEYS[1])
if ttl > 0 then redis.call('EXPIRE', KEYS[2], ttl) end
return 1
"""

# Take a chunk back, once, however many notice at the same time that its audio is gone.
_FORGET = """
local n_samples = redis.call('HGET', KEYS[1], 'chunk:' .. ARGV[1])
if not n_samples then return 0 end
redis.call('HDEL', KEYS[1], 'chunk:' .. ARGV[1])
redis.call('HINCRBY', KEYS[1], 'done', -1)
redis.call('HINCRBY', KEYS[1], 'samples', -n_samples)
return 1
"""

_RECORD = (
    "kind",
    "state",
    "request",
    "count",
    "done",
    "samples",
    "pause_samples",
    "sample_rate",
    "created_at",
    "started_at",
    "finished_at",
    "error",
    "warnings",
    "owner",
)


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """One spoken chunk on its way to its listeners. ``facts`` are timings and batch size."""

    job_id: str
    index: int
    pcm: bytes  # s16le mono
    facts: dict[str, float | int]
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a job's stream: ``audio``, ``done``, ``failed`` or ``cancelled``; ``slice``, a
    chunk of which ``n_samples`` can be had already; and, of a long job, ``paused`` and ``resumed``.
    """

    entry_id: str
    type: str
    index: int = -1
    n_samples: int = 0
    facts: dict[str, float | int] | None = None
    error: str = ""


def connect(url: str) -> "redis.Redis":
    """A Redis client that fails fast: a caller with a listener cannot wait out ten retries."""
    return redis.Redis.from_url(
        url,
        retry=Retry(ExponentialBackoff(cap=0.1, base=0.02), 1),
        socket_connect_timeout=2,
        socket_timeout=5,
        # 300 KB per chunk: the default 32 KB reads cost nine times the CPU.
        socket_read_size=262_144,
        health_check_interval=15,
        max_connections=2000,
    )


class EventStore:
    """Reads and writes jobs, their events and their audio.

    Every method raises ``redis.RedisError`` when Redis cannot be reached.
    """

    def __init__(self, client: "redis.Redis") -> None:
        self.redis = client
        self._create = client.register_script(_CREATE)
        self._publish = client.register_script(_PUBLISH)
        self._slice = client.register_script(_SLICE)
        self._end = client.register_script(_END)
        self._attempt = client.register_script(_ATTEMPT)
        self._mark = client.register_script(_MARK)
        self._forget = client.register_script(_FORGET)

    # -- writing ---------------------------------------------------------------------------

    def create(
        self, job: Job, pieces: Sequence[Piece], ttl_s: int, messages: Sequence[Envelope] = ()
    ) -> bool:
        """Store a new job and queue its chunks' messages, all or nothing in one round trip.

        False when the job is there already. It says nothing yet: the record itself is the first
        event.
        """
        record = {
            "kind": job.kind.value,
            "state": job.state.value,
            "request": json.dumps(asdict(job.request), ensure_ascii=False),
            "count": job.count,
            "done": 0,
            "samples": 0,
            "pause_samples": job.pause_samples,
            "sample_rate": job.sample_rate,
            "created_at": repr(job.created_at),
            "warnings": json.dumps(job.warnings, ensure_ascii=False),
            "owner": job.owner,
            "pieces": pieces_to_json(list(pieces)),
        }
        listed_at = repr(job.created_at) if job.kind is Kind.LONG else ""
        fields = [value for pair in record.items() for value in pair]
        queued = [value for envelope in messages for value in envelope]
        keys = [job_key(job.job_id), JOBS, TOTALS, OPEN]
        args = [ttl_s, listed_at, job.job_id, len(fields), *fields, *queued]
        return bool(self._create(keys=keys, args=args))

    def push(self, messages: Iterable[Envelope]) -> None:
        """Queue chunks of a job that is stored already."""
        with self.redis.pipeline(transaction=False) as pipe:
            for queue, message in messages:
                pipe.lpush(queue, message)
            pipe.execute()

    def publish(self, results: Iterable[ChunkResult]) -> list[bool]:
        """Publish audio. False marks what was there already, or whose job has ended."""
        now = repr(time.time())
        with self.redis.pipeline(transaction=False) as pipe:
            for result in results:
                self._publish(
                    keys=[
                        job_key(result.job_id),
                        events_key(result.job_id),
                        _audio_key(result.job_id, result.index),
                        TOTALS,
                    ],
                    args=[
                        result.index,
                        len(result.pcm) // 2,
                        json.dumps(result.facts),
                        result.pcm,
                        result.ttl_s,
                        now,
                        BELL,
                        result.job_id,
                    ],
                    client=pipe,
                )
            return [bool(done) for done in pipe.execute()]

    def publish_slice(self, job_id: str, index: int, start: int, pcm: bytes, ttl_s: int) -> bool:
        """Publish what is made of a chunk so far: its samples from number ``start`` on.

        False for what was there already, or whose job has ended or chunk is published.
        """
        keys = [job_key(job_id), events_key(job_id), _audio_key(job_id, index)]
        args: list[Any] = [index, start, pcm, ttl_s, repr(time.time()), BELL, job_id]
        return bool(self._slice(keys=keys, args=args))

    def end(self, job_id: str, state: State, error: str = "") -> bool:
        """Bring a job to a final state. False when it has ended before, or is unknown."""
        keys = [job_key(job_id), events_key(job_id), TOTALS]
        args = [state.value, error, repr(time.time()), BELL, job_id]
        return bool(self._end(keys=keys, args=args))

    def let_go(self, job_id: str, indexes: Iterable[int], grace_s: int) -> None:
        """Keep delivered audio only ``grace_s`` longer, enough for a client to reconnect."""
        with self.redis.pipeline(transaction=False) as pipe:
            for index in indexes:
                pipe.expire(_audio_key(job_id, index), grace_s)
            pipe.execute()

    def renew(self, job_id: str, indexes: Iterable[int], ttl_s: int) -> None:
        """Somebody is still listening: keep the job and the audio not yet delivered."""
        with self.redis.pipeline(transaction=False) as pipe:
            for key in (job_key(job_id), events_key(job_id)):
                pipe.expire(key, ttl_s)
            for index in indexes:
                pipe.expire(_audio_key(job_id, index), ttl_s)
            pipe.execute()

    def forget_chunk(self, job_id: str, index: int) -> None:
        """Make a published chunk unpublished: its audio was lost before anyone had it."""
        self._forget(keys=[job_key(job_id)], args=[index])

    def mark_published(self, job_id: str, index: int, n_samples: int) -> None:
        """Count a chunk that is known from elsewhere (a long job's file) as published."""
        self._mark(keys=[job_key(job_id), events_key(job_id)], args=[index, n_samples])

    def mark_sent(self, job_id: str, indexes: Iterable[int]) -> None:
        """Remember when chunks of a long job were put into the queue."""
        now = time.time()
        self.redis.zadd(sent_key(job_id), {str(index): now for index in indexes})
        self.redis.expire(sent_key(job_id), 86400)

    def in_flight(self, job_id: str, stall_s: float) -> set[int]:
        """Chunks of a long job in the queue. When nothing was published for ``stall_s`` while
        they waited, the oldest of them count as lost and are not among the answers.
        """
        rows: Any = self.redis.zrange(sent_key(job_id), 0, -1, withscores=True)
        latest: Any = self.redis.xrevrange(events_key(job_id), count=1)
        heard_at = float(_text(latest[0][0]).split("-")[0]) / 1000 if latest else 0.0
        deadline = time.time() - stall_s
        return {int(index) for index, sent_at in rows if sent_at > deadline or heard_at > deadline}

    def drop_audio(self, job_id: str, indexes: Iterable[int]) -> None:
        keys = [_audio_key(job_id, index) for index in indexes]
        if keys:
            self.redis.unlink(*keys)

    def forget_job(self, job_id: str) -> None:
        self.redis.zrem(JOBS, job_id)
        self.redis.zrem(OPEN, job_id)
        self.redis.unlink(job_key(job_id), events_key(job_id), sent_key(job_id))

    # -- reading ---------------------------------------------------------------------------

    def job(self, job_id: str) -> Job | None:
        return self.jobs([job_id])[0]

    def jobs(self, job_ids: Sequence[str]) -> list[Job | None]:
        with self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(job_key(job_id), _RECORD)
            return [_job(job_id, row) for job_id, row in zip(job_ids, pipe.execute(), strict=True)]

    def pieces(self, job_id: str) -> list[Piece]:
        stored = self.redis.hget(job_key(job_id), "pieces")
        return pieces_from_json(_text(stored)) if stored else []

    def begin(
        self, chunks: Sequence[tuple[str, int]], token: str
    ) -> list[tuple[State | None, bool, int]]:
        """Ask for (job, index) pairs just before they are spoken, and count the attempt.

        ``token`` names the attempt: asking twice with the same counts once. For each chunk: the
        job's state (None if unknown), whether the chunk is published already, and which attempt
        this is. Among several chunks only first attempts are counted; a chunk begun before has
        to be asked for by itself, because it is to be spoken by itself.
        """
        company = "alone" if len(chunks) == 1 else "together"
        with self.redis.pipeline(transaction=False) as pipe:
            for job_id, index in chunks:
                pipe.hmget(job_key(job_id), "state", f"chunk:{index}")
                self._attempt(keys=[job_key(job_id)], args=[index, token, company], client=pipe)
            replies = pipe.execute()
        return [
            (State(_text(state)) if state else None, published is not None, int(attempts))
            for (state, published), attempts in zip(replies[::2], replies[1::2], strict=True)
        ]

    def published(self, job_id: str, indexes: Sequence[int]) -> list[int | None]:
        """Samples of each chunk that is published, None for the others."""
        if not indexes:
            return []
        row = self.redis.hmget(job_key(job_id), [f"chunk:{index}" for index in indexes])
        return [None if n_samples is None else int(n_samples) for n_samples in row]

    def events(self, job_id: str, after: str = "0") -> list[Event]:
        """Entries after an entry id, oldest first; does not wait."""
        reply: Any = self.redis.xrange(events_key(job_id), min=f"({after}" if after != "0" else "-")
        return [_event(_text(entry_id), entry) for entry_id, entry in reply]

    def queues_are_empty(self) -> bool:
        """Whether no chunk waits in a queue or in a worker."""
        lengths = self.queue_lengths()
        return not any(length for name, length in lengths.items() if name != "files")

    def queue_lengths(self) -> dict[str, int]:
        names = ("high", "normal", "low", "files")
        with self.redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.llen(name)
            pipe.hlen("unacked")
            *lengths, held = pipe.execute()
        return dict(zip(names, lengths, strict=True)) | {"held": held}

    def audio(self, job_id: str, index: int) -> bytes | None:
        """Samples of one chunk, None once they have left Redis."""
        return self.redis.get(_audio_key(job_id, index))  # type: ignore[return-value]

    def memory(self) -> tuple[int, int]:
        """Bytes that Redis uses, and that it may use; 0 where it has no limit."""
        memory: Any = self.redis.info("memory")
        return int(memory["used_memory"]), int(memory.get("maxmemory", 0))

    def audio_after(self, job_id: str, index: int, n_samples: int) -> bytes:
        """What there is of a chunk behind its first ``n_samples``, whole or still being made."""
        return self.redis.getrange(_audio_key(job_id, index), 2 * n_samples, -1)  # type: ignore

    def memory_share(self) -> float:
        """How full Redis is, from 0 to 1; 0 where it has no limit."""
        used, limit = self.memory()
        return used / limit if limit else 0.0

    def totals(self) -> dict[str, int]:
        reply: Any = self.redis.hgetall(TOTALS)
        return {_text(name): int(value) for name, value in reply.items()}


def job_key(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def events_key(job_id: str) -> str:
    return f"{PREFIX}events:{job_id}"


def sent_key(job_id: str) -> str:
    return f"{PREFIX}sent:{job_id}"


def _audio_key(job_id: str, index: int) -> str:
    return f"{PREFIX}audio:{job_id}:{index}"


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _job(job_id: str, row: Sequence[Any]) -> Job | None:
    values = dict(zip(_RECORD, (None if v is None else _text(v) for v in row), strict=True))
    if values["state"] is None:
        return None
    return Job(
        job_id=job_id,
        kind=Kind(values["kind"] or ""),
        state=State(values["state"]),
        request=SpeechRequest(**json.loads(values["request"] or "{}")),
        count=int(values["count"] or 0),
        done=int(values["done"] or 0),
        samples=int(values["samples"] or 0),
        pause_samples=int(values["pause_samples"] or 0),
        sample_rate=int(values["sample_rate"] or 0),
        created_at=float(values["created_at"] or 0),
        started_at=float(values["started_at"]) if values["started_at"] else None,
        finished_at=float(values["finished_at"]) if values["finished_at"] else None,
        error=values["error"] or None,
        warnings=tuple(json.loads(values["warnings"] or "[]")),
        owner=values["owner"] or "",
    )


def _event(entry_id: str, entry: dict[bytes, bytes]) -> Event:
    values = {_text(name): _text(value) for name, value in entry.items()}
    return Event(
        entry_id=entry_id,
        type=values["type"],
        index=int(values.get("index", -1)),
        n_samples=int(values.get("n_samples", 0)),
        facts=json.loads(values.get("facts", "{}")),
        error=values.get("error", ""),
    )
