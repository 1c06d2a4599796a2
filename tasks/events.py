"""What is known and said about a job: its record, its event stream and its audio, all in Redis.

Every change that readers must see whole is one Lua script (tasks/scripts.py), so a chunk that is
computed twice is published once and a job ends exactly once. Each change rings the bells of the
processes that follow the job: a pub/sub message that repeats what the stream says, so a lost one
costs a second, never a sample. Names of keys are in tasks/names.py.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import redis
from kombu.exceptions import OperationalError
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from tasks import scripts
from tasks.demand import Admission, AdmissionLimits, works
from tasks.envelopes import Envelope
from tasks.messages import Chunk, Job, Kind, Piece, State, pieces_from_json
from tasks.names import QUEUES, TOTALS, audio_key, events_key, job_key, sent_key, work_key
from tasks.records import JOB_FIELDS, Event, as_text, event_from, job_from, record_of

# Chunks of so many bytes together are published in one step, and told in one message per bell. A
# larger one goes by itself: nobody should wait until another's sound is stored.
TOGETHER_BYTES = 250_000
# What a client is told of a chunk that was not spoken for it.
KEPT_FACTS = {"batch_size": 0, "queue_time_ms": 0, "inference_time_ms": 0, "cached": True}


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """One spoken chunk on its way to its listeners. ``facts`` are timings and batch size."""

    job_id: str
    index: int
    pcm: bytes  # s16le mono
    facts: dict[str, float | int]
    ttl_s: int
    content: str = ""  # the content key, where the chunk may be shared with other jobs
    may_be_kept: bool = False


@dataclass(frozen=True, slots=True)
class Begun:
    """What is known of a chunk that is about to be spoken: the job's ``state``, None if unknown and
    running while any job waits for the same content; which ``attempt`` it is; and the job's samples
    per second, ``other_rate``, if they are not those of this worker.
    """

    state: State | None
    is_published: bool
    attempt: int
    other_rate: int = 0


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


def is_full(error: BaseException | None) -> bool:
    """Whether Redis refused something because it has no memory left. From inside a script that
    comes like any other error, and from kombu as one of its own.
    """
    if isinstance(error, OperationalError):
        return is_full(error.__cause__)
    is_inside = isinstance(error, redis.ResponseError) and "-OOM " in str(error)
    return is_inside or isinstance(error, redis.OutOfMemoryError)


class EventStore:
    """Reads and writes jobs, their events and their audio.

    Every method raises ``redis.RedisError`` when Redis cannot be reached.
    """

    def __init__(
        self, client: "redis.Redis", bell: str = "", clock: Callable[[], float] = time.time
    ) -> None:
        """``bell`` is the channel on which this process hears about jobs that it follows."""
        self.redis = client
        self.bell = bell
        self._clock = clock
        self._create = client.register_script(scripts.CREATE)
        self._publish = client.register_script(scripts.PUBLISH)
        self._slice = client.register_script(scripts.SLICE)
        self._end = client.register_script(scripts.END)
        self._end_again = client.register_script(scripts.END_AGAIN)
        self._fail = client.register_script(scripts.FAIL)
        self._look = client.register_script(scripts.LOOK)
        self._begin = client.register_script(scripts.BEGIN)
        self._unbegin = client.register_script(scripts.UNBEGIN)
        self._mark = client.register_script(scripts.MARK)
        self._forget_chunk = client.register_script(scripts.FORGET_CHUNK)
        self._forget_job = client.register_script(scripts.FORGET_JOB)
        self._shrink = client.register_script(scripts.SHRINK)

    # -- writing ---------------------------------------------------------------------------

    def create(
        self, job: Job, pieces: Sequence[Piece], ttl_s: int, messages: Sequence[Envelope] = ()
    ) -> bool:
        """Store a new job and queue messages, without asking whether there is room for it.

        False when the job is there already, or was forgotten a moment ago. It says nothing yet:
        the record itself is the first event.
        """
        return self._store(job, pieces, ttl_s, (), messages, None).is_new

    def admit(
        self,
        job: Job,
        pieces: Sequence[Piece],
        ttl_s: int,
        chunks: Sequence[Chunk],
        messages: Sequence[Envelope] = (),
        limits: AdmissionLimits | None = None,
        *,
        is_known: bool = False,
    ) -> Admission:
        """Store a new job with these chunks to be spoken, all or nothing in one round trip.

        Chunks that are kept are published at once; ones that are being computed for somebody else
        will be. ``messages``, one per chunk, go into the queues for the others only; without them
        the answer's ``to_send`` says which these are. ``limits`` of None let everybody in. A job
        that ``is_known`` is not counted as a new one.
        """
        return self._store(job, pieces, ttl_s, chunks, messages, limits, is_known)

    def _store(
        self,
        job: Job,
        pieces: Sequence[Piece],
        ttl_s: int,
        chunks: Sequence[Chunk],
        messages: Sequence[Envelope],
        limits: AdmissionLimits | None,
        is_known: bool = False,
    ) -> Admission:
        order = {
            "is_known": is_known,
            "now": self._clock() * 1000,
            "owner": job.owner,
            "works": [
                (*work, chunk.content) for work, chunk in zip(works(chunks), chunks, strict=True)
            ],
            "kept_facts": orjson.dumps(KEPT_FACTS).decode(),
        } | ({} if limits is None else {"limits": limits.in_ms()})
        record = record_of(job, pieces) | {"bells": self.bell}
        fields = [value for pair in record.items() for value in pair]
        listed_at = repr(job.created_at) if job.kind is Kind.LONG else ""
        queued = [value for envelope in messages for value in envelope]
        head: list[Any] = [ttl_s, listed_at, job.job_id, orjson.dumps(order), len(fields)]
        args = [*head, *fields, *queued]
        is_new, reason, wait_ms, retry_ms, *to_send = self._create(args=args)
        return Admission(
            reason=as_text(reason),
            wait_s=wait_ms / 1000,
            retry_after_s=retry_ms / 1000,
            is_new=bool(is_new),
            to_send=tuple(to_send),
        )

    def push(self, messages: Iterable[Envelope]) -> None:
        """Queue chunks of a job that is stored already."""
        with self.redis.pipeline(transaction=False) as pipe:
            for queue, message in messages:
                pipe.lpush(queue, message)
            pipe.execute()

    def publish(self, results: Iterable[ChunkResult], cache_bytes: int = 0) -> list[bool]:
        """Publish audio to its jobs, and to others that wait for the same content.

        Up to ``cache_bytes`` of shared content are kept. False marks what was there already, or
        whose job has ended.
        """
        now = repr(self._clock())
        calls: list[list[Any]] = []
        room = 0
        for result in results:
            room -= len(result.pcm)
            if room < 0 or not calls:
                calls.append([now])
                room = TOGETHER_BYTES - len(result.pcm)
            calls[-1] += (
                result.job_id,
                result.index,
                orjson.dumps(result.facts),
                result.pcm,
                result.ttl_s,
                result.content,
                cache_bytes if result.may_be_kept else 0,
            )
        try:
            return self._publish_all(calls)
        except redis.exceptions.NoScriptError:
            # A Redis that was started anew. Repeating what was done already does nothing.
            self.redis.script_load(self._publish.script)
            return self._publish_all(calls)

    def _publish_all(self, calls: Sequence[Sequence[Any]]) -> list[bool]:
        # Not through the client's own pipelined scripts: they ask before each pipeline whether
        # Redis knows the script, which is a round trip more.
        with self.redis.pipeline(transaction=False) as pipe:
            for args in calls:
                pipe.evalsha(self._publish.sha, 0, *args)
            return [bool(is_new) for answer in pipe.execute() for is_new in answer]

    def publish_slice(self, job_id: str, index: int, start: int, pcm: bytes, ttl_s: int) -> bool:
        """Publish what is made of a chunk so far: its samples from number ``start`` on.

        False for what was there already, or whose job has ended or chunk is published.
        """
        args: list[Any] = [job_id, index, start, pcm, ttl_s, repr(self._clock())]
        return bool(self._slice(args=args))

    def end(self, job_id: str, state: State, error: str = "") -> bool:
        """Bring a job to a final state. False when it has ended before, or is unknown."""
        return bool(self._end(args=[job_id, state.value, error, repr(self._clock())]))

    def end_again(self, job: Job) -> bool:
        """Bring a job that Redis had lost to the end that it had before."""
        ended_at = job.finished_at or self._clock()
        args = [job.job_id, job.state.value, job.error or "", repr(ended_at)]
        return bool(self._end_again(args=[*args, job.done, job.samples]))

    def fail(self, chunk: Chunk, error: str) -> None:
        """A chunk cannot be spoken: end its job, and all others that wait for the same content."""
        self._fail(args=[chunk.job_id, chunk.content, error, repr(self._clock())])

    def shrink_cache(self, limit: int) -> int:
        """Keep at most ``limit`` bytes of finished content; how many are left."""
        return int(self._shrink(args=[limit, repr(self._clock())]))

    def let_go(self, job_id: str, indexes: Iterable[int], grace_s: int) -> None:
        """Keep delivered audio only ``grace_s`` longer, enough for a client to reconnect."""
        with self.redis.pipeline(transaction=False) as pipe:
            for index in indexes:
                pipe.expire(audio_key(job_id, index), grace_s)
            pipe.execute()

    def renew(self, job_id: str, indexes: Iterable[int], ttl_s: int) -> None:
        """Somebody is still listening: keep the job and the audio not yet delivered."""
        with self.redis.pipeline(transaction=False) as pipe:
            for key in (job_key(job_id), events_key(job_id), work_key(job_id)):
                pipe.expire(key, ttl_s)
            for index in indexes:
                pipe.expire(audio_key(job_id, index), ttl_s)
            pipe.execute()

    def forget_chunk(self, job_id: str, index: int) -> bool:
        """Make a published chunk unpublished: its audio was lost before anyone had it. False when
        somebody else has done so, or the job has ended.
        """
        return bool(self._forget_chunk(args=[job_id, index]))

    def mark_published(self, job_id: str, index: int, n_samples: int) -> None:
        """Count a chunk that is known from elsewhere (a long job's file) as published."""
        self._mark(args=[job_id, index, n_samples])

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
        heard_at = float(as_text(latest[0][0]).split("-")[0]) / 1000 if latest else 0.0
        deadline = time.time() - stall_s
        return {int(index) for index, sent_at in rows if sent_at > deadline or heard_at > deadline}

    def drop_audio(self, job_id: str, indexes: Iterable[int]) -> None:
        keys = [audio_key(job_id, index) for index in indexes]
        if keys:
            self.redis.unlink(*keys)

    def forget_job(self, job_id: str) -> None:
        self._forget_job(args=[job_id])

    # -- reading ---------------------------------------------------------------------------

    def job(self, job_id: str) -> Job | None:
        return self.jobs([job_id])[0]

    def jobs(self, job_ids: Sequence[str]) -> list[Job | None]:
        with self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(job_key(job_id), JOB_FIELDS)
            rows = pipe.execute()
        return [job_from(job_id, row) for job_id, row in zip(job_ids, rows, strict=True)]

    def exists(self, job_id: str) -> bool:
        return bool(self.redis.exists(job_key(job_id)))

    def pieces(self, job_id: str) -> list[Piece]:
        stored = self.redis.hget(job_key(job_id), "pieces")
        return pieces_from_json(as_text(stored)) if stored else []

    def begin(
        self, chunks: Sequence[Chunk], token: str, sample_rate: int, is_alone: bool = False
    ) -> list[Begun]:
        """Ask for chunks just before they are spoken, and count the attempt.

        ``token`` names the attempt: asking twice with the same counts once. Only first attempts are
        counted, unless ``is_alone``: a chunk begun before has to be asked for by itself, while
        nothing else is spoken here.
        """
        company = "alone" if is_alone else "together"
        answers = self._begin(args=[token, company, sample_rate, *_named(chunks)])
        return [
            Begun(State(as_text(state)) if state else None, bool(is_published), *numbers)
            for state, is_published, *numbers in answers
        ]

    def unbegin(self, chunks: Sequence[Chunk], token: str) -> None:
        """A living worker hands these chunks back: what it began with ``token`` is no attempt."""
        self._unbegin(args=[token, *_named(chunks)])

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
        reply: Any = self._look(args=[job_id, start, self.bell])
        return [event_from(as_text(entry_id), fields) for entry_id, fields in reply]

    def queue_lengths(self) -> dict[str, int]:
        with self.redis.pipeline(transaction=False) as pipe:
            for name in QUEUES:
                pipe.llen(name)
            pipe.hlen("unacked")
            *lengths, held = pipe.execute()
        return dict(zip(QUEUES, lengths, strict=True)) | {"held": held}

    def audio(self, job_id: str, index: int) -> bytes | None:
        """Samples of one chunk, None once they have left Redis."""
        return self.audios(job_id, [index])[0]

    def audios(
        self, job_id: str, indexes: Sequence[int], last_s: int | None = None
    ) -> list[bytes | None]:
        """Samples of some chunks, None for those that have left Redis. With ``last_s`` nobody else
        will want them, and they are kept only so much longer.
        """
        keys = [audio_key(job_id, index) for index in indexes]
        if last_s is None:
            return self.redis.mget(keys)  # type: ignore[return-value]
        if len(keys) == 1:  # a pipeline costs more
            return [self.redis.getex(keys[0], ex=last_s)]  # type: ignore[list-item]
        with self.redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.getex(key, ex=last_s)
            return pipe.execute()

    def memory(self) -> tuple[int, int]:
        """Bytes that Redis uses, and that it may use; 0 where it has no limit."""
        memory: Any = self.redis.info("memory")
        return int(memory["used_memory"]), int(memory.get("maxmemory", 0))

    def audio_after(self, job_id: str, index: int, n_samples: int) -> bytes:
        """What there is of a chunk behind its first ``n_samples``, whole or still being made."""
        return self.redis.getrange(audio_key(job_id, index), 2 * n_samples, -1)  # type: ignore

    def memory_share(self) -> float:
        """How full Redis is, from 0 to 1; 0 where it has no limit."""
        used, limit = self.memory()
        return used / limit if limit else 0.0

    def totals(self) -> dict[str, int]:
        reply: Any = self.redis.hgetall(TOTALS)
        return {as_text(name): int(value) for name, value in reply.items()}


def _named(chunks: Iterable[Chunk]) -> list[Any]:
    return [value for chunk in chunks for value in (chunk.job_id, chunk.index, chunk.content)]
