"""What is known and said about a job: its record, its event stream and its audio, all in Redis.

Keys of job J: ``supertonic:job:J`` (hash, the record), ``supertonic:events:J`` (stream, what
happened, in order) and ``supertonic:audio:J:k`` (16-bit samples of chunk k). Every change that
readers must see whole is one Lua script, so a chunk that is computed twice is published once and
a job ends exactly once. Each change rings the bells of the processes that follow the job: a pub/sub
message that repeats what the stream says, so a lost one costs a second, never a sample.
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
# Heard by all web processes: look at the job of this id.
BELL = PREFIX + "bell"
# Heard by all workers: the job of this id is over.
OVER = PREFIX + "over"
JOBS = PREFIX + "jobs"
OPEN = PREFIX + "open"
TOTALS = PREFIX + "totals"

# What the scripts below begin with. `say` appends to the job's events, `ring` tells the processes
# in which somebody follows the job what was said, so that they need not ask. Whoever says something
# rings too, or followers would take the next thing they hear for the next that was said.
_SAYING = """
local news = {}
local function say(...)
  news[#news + 1] = {redis.call('XADD', KEYS[2], '*', ...), ...}
end
local function ring(bells, job)
  for bell in string.gmatch(bells or '', '%S+') do
    redis.call('PUBLISH', bell, cjson.encode({job, news}))
  end
end
"""

# Publish one chunk's audio, once. Returns 1, or 0 when the job has ended or the chunk is there.
# A paused job takes what was being spoken when it was paused.
_PUBLISH = (
    _SAYING
    + """
local index, n_samples, ttl, now = ARGV[1], ARGV[2], ARGV[5], ARGV[6]
local job = redis.call('HMGET', KEYS[1], 'state', 'chunk:' .. index, 'done', 'samples', 'count',
                       'kind', 'started_at', 'bells')
local state = job[1]
if state ~= 'queued' and state ~= 'running' and state ~= 'paused' or job[2] then return 0 end
redis.call('SET', KEYS[3], ARGV[4], 'EX', ttl)
local done = job[3] + 1
say('type', 'audio', 'index', index, 'n_samples', n_samples, 'facts', ARGV[3], 'done', done)
local is_last = done == tonumber(job[5]) and job[6] ~= 'long'
if is_last then
  say('type', 'done')
  redis.call('HINCRBY', KEYS[4], 'jobs_done', 1)
end
redis.call('HSET', KEYS[1], 'chunk:' .. index, n_samples, 'done', done,
           'samples', job[4] + n_samples, 'started_at', job[7] or now,
           'state', is_last and 'done' or state == 'queued' and 'running' or state)
if is_last then redis.call('HSET', KEYS[1], 'finished_at', now) end
redis.call('HINCRBY', KEYS[4], 'chunks', 1)
redis.call('HINCRBY', KEYS[4], 'samples', n_samples)
redis.call('EXPIRE', KEYS[1], ttl)
redis.call('EXPIRE', KEYS[2], ttl)
ring(job[8], ARGV[7])
return 1
"""
)

# Add a slice to a chunk that is still being made: its samples from ARGV[2] on. Made a second time,
# after a worker's death, they are the same samples, and what is there already is no news. Returns
# whether it was.
_SLICE = (
    _SAYING
    + """
local job = redis.call('HMGET', KEYS[1], 'state', 'chunk:' .. ARGV[1], 'bells')
local state = job[1]
if state ~= 'queued' and state ~= 'running' or job[2] then return 0 end
local before, start, ttl = redis.call('STRLEN', KEYS[3]), 2 * ARGV[2], tonumber(ARGV[4])
if before < start or before >= start + #ARGV[3] then return 0 end
local now_there = redis.call('SETRANGE', KEYS[3], start, ARGV[3])
say('type', 'slice', 'index', ARGV[1], 'n_samples', now_there / 2)
if state == 'queued' then redis.call('HSET', KEYS[1], 'state', 'running', 'started_at', ARGV[5]) end
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ttl) end
ring(job[3], ARGV[6])
return 1
"""
)

# End a job, once. Returns 1, or 0 when it has ended before or is unknown.
_END = (
    _SAYING
    + """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' and state ~= 'paused' then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[1], 'error', ARGV[2], 'finished_at', ARGV[3])
say('type', ARGV[1], 'error', ARGV[2])
local ttl = redis.call('TTL', KEYS[1])
if ttl > 0 then redis.call('EXPIRE', KEYS[2], ttl) end
redis.call('HINCRBY', KEYS[3], 'jobs_' .. ARGV[1], 1)
ring(redis.call('HGET', KEYS[1], 'bells'), ARGV[4])
-- Chunks still waiting in workers are dropped there (tasks/consumer.py).
redis.call('PUBLISH', ARGV[5], ARGV[4])
return 1
"""
)

# The events from ARGV[1] on; from now on the bell ARGV[2], if any, rings for this job too. A full
# Redis refuses a script that begins by adding something, so it begins by removing nothing.
_LOOK = """
if ARGV[2] ~= '' then
  local job = redis.call('HMGET', KEYS[1], 'state', 'bells')
  if job[1] and not string.find(job[2] or '', ARGV[2], 1, true) then
    redis.call('HDEL', KEYS[1], '')
    redis.call('HSET', KEYS[1], 'bells', (job[2] or '') .. ' ' .. ARGV[2])
  end
end
return redis.call('XRANGE', KEYS[2], ARGV[1], '+')
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

# Ask for chunks just before they are spoken: KEYS are their jobs, ARGV from 3 on their indexes.
# Returns for each the job's state, whether it is published, and which attempt this is. Counts the
# attempt, once per token ARGV[1], so that repeating the call counts nothing; and without bringing a
# forgotten job back as a fragment. In company (ARGV[2]) only a first attempt is counted: a later
# one is made alone, and counted then. What is not going to be spoken, because its job is paused or
# over, is no attempt.
_BEGIN = """
local found, time = {}, redis.call('TIME')
local now = string.format('%d.%06d', time[1], time[2])
for i, job in ipairs(KEYS) do
  local index = ARGV[i + 2]
  local count, by = 'attempt:' .. index, 'attempt_by:' .. index
  local known = redis.call('HMGET', job, 'state', 'chunk:' .. index, count, by)
  local state, attempt = known[1], 0
  if state == 'queued' or state == 'running' then
    local before = tonumber(known[3] or 0)
    attempt = known[4] == ARGV[1] and before or before + 1
    if attempt > before and (before == 0 or ARGV[2] == 'alone') then
      redis.call('HSET', job, by, ARGV[1], count, attempt, 'begun:' .. index, now)
    end
  end
  found[i] = {state, known[2] and 1 or 0, attempt}
end
return found
"""

# Count a chunk whose audio is known from elsewhere. Not for a forgotten job: see above.
_MARK = (
    _SAYING
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('HSETNX', KEYS[1], 'chunk:' .. ARGV[1], ARGV[2]) == 0 then return 0 end
local done = redis.call('HINCRBY', KEYS[1], 'done', 1)
redis.call('HINCRBY', KEYS[1], 'samples', ARGV[2])
say('type', 'audio', 'index', ARGV[1], 'n_samples', ARGV[2], 'facts', '{}', 'done', done)
local ttl = redis.call('TTL', KEYS[1])
if ttl > 0 then redis.call('EXPIRE', KEYS[2], ttl) end
ring(redis.call('HGET', KEYS[1], 'bells'), ARGV[3])
return 1
"""
)

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

    @property
    def position(self) -> tuple[int, int]:
        """Its place in the stream, to compare."""
        return position(self.entry_id)


def position(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds), int(number or 0)


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

    def __init__(self, client: "redis.Redis", bell: str = "") -> None:
        """``bell`` is the channel on which this process hears about jobs that it follows."""
        self.redis = client
        self.bell = bell
        self._create = client.register_script(_CREATE)
        self._publish = client.register_script(_PUBLISH)
        self._slice = client.register_script(_SLICE)
        self._end = client.register_script(_END)
        self._look = client.register_script(_LOOK)
        self._begin = client.register_script(_BEGIN)
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
            "bells": self.bell,
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
        args: list[Any] = [index, start, pcm, ttl_s, repr(time.time()), job_id]
        return bool(self._slice(keys=keys, args=args))

    def end(self, job_id: str, state: State, error: str = "") -> bool:
        """Bring a job to a final state. False when it has ended before, or is unknown."""
        keys = [job_key(job_id), events_key(job_id), TOTALS]
        args = [state.value, error, repr(time.time()), job_id, OVER]
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
        self._mark(keys=[job_key(job_id), events_key(job_id)], args=[index, n_samples, job_id])

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
        keys = [job_key(job_id) for job_id, _ in chunks]
        answers = self._begin(keys=keys, args=[token, company, *(index for _, index in chunks)])
        return [
            (State(_text(state)) if state else None, bool(is_published), attempt)
            for state, is_published, attempt in answers
        ]

    def published(self, job_id: str, indexes: Sequence[int]) -> list[int | None]:
        """Samples of each chunk that is published, None for the others."""
        if not indexes:
            return []
        row = self.redis.hmget(job_key(job_id), [f"chunk:{index}" for index in indexes])
        return [None if n_samples is None else int(n_samples) for n_samples in row]

    def events(self, job_id: str, after: str = "0") -> list[Event]:
        """Entries after an entry id, oldest first; does not wait. What is said later comes by the
        bell as well.
        """
        start = f"({after}" if after != "0" else "-"
        keys = [job_key(job_id), events_key(job_id)]
        reply: Any = self._look(keys=keys, args=[start, self.bell])
        return [_event(_text(entry_id), fields) for entry_id, fields in reply]

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

    def audio(self, job_id: str, index: int, last_s: int | None = None) -> bytes | None:
        """Samples of one chunk, None once they have left Redis. With ``last_s`` nobody else will
        want them, and they are kept only so much longer.
        """
        key = _audio_key(job_id, index)
        reply: Any = self.redis.get(key) if last_s is None else self.redis.getex(key, ex=last_s)
        return reply  # type: ignore[no-any-return]

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


def news_from(message: bytes) -> tuple[str, list[Event]]:
    """What a bell carries: a job's id and what was said about it."""
    job_id, news = json.loads(message)
    return job_id, [_event(entry_id, fields) for entry_id, *fields in news]


def _event(entry_id: str, fields: Sequence[Any]) -> Event:
    """From the fields and values of an entry, in a row as Redis gives them."""
    names = iter(fields)
    values = {_text(name): _text(value) for name, value in zip(names, names, strict=True)}
    return Event(
        entry_id=entry_id,
        type=values["type"],
        index=int(values.get("index", -1)),
        n_samples=int(values.get("n_samples", 0)),
        facts=json.loads(values.get("facts", "{}")),
        error=values.get("error", ""),
    )
