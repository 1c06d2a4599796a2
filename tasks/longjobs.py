"""What Redis knows of long jobs beyond any job: pausing, pace, places in the queue, the list.

Keys: ``supertonic:jobs`` (all long jobs by the time they were accepted) and ``supertonic:open``
(those that have not ended). The event stream tells ``paused`` and ``resumed`` between the chunks.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from tasks import demand
from tasks.events import EventStore
from tasks.messages import Job, State
from tasks.names import BELL, JOBS, OPEN, events_key, job_key

# A pace is what was done in the last minute; where that is less than five chunks, it is what the
# last five took, but nothing older than ten minutes says anything about now.
PACE_S = 60.0
PACE_CHUNKS = 5
PACE_OLDEST_S = 600.0
# Chunks of one batch are published within this; a window begins after a batch, not inside it.
BATCH_S = 0.1
PAGE = 200

_PAUSE = (
    demand.LUA
    + """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' and state ~= 'running' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'paused')
redis.call('XADD', KEYS[2], '*', 'type', 'paused')
local ttl = redis.call('TTL', KEYS[1])
if ttl > 0 then redis.call('EXPIRE', KEYS[2], ttl) end
hold(ARGV[2], true)
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
"""
)

# What workers have skipped meanwhile does not count as sent any more (BEGIN in tasks/scripts.py).
_RESUME = (
    demand.LUA
    + """
if redis.call('HGET', KEYS[1], 'state') ~= 'paused' then return 0 end
local state = 'queued'
if redis.call('HEXISTS', KEYS[1], 'started_at') == 1 then state = 'running' end
redis.call('HSET', KEYS[1], 'state', state, 'pace_since', ARGV[3])
redis.call('XADD', KEYS[2], '*', 'type', 'resumed')
hold(ARGV[2], false)
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
"""
)

# Not for a forgotten job, which must not come back as a fragment.
_SET = """
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
"""


class LongJobs:
    """Methods raise ``redis.RedisError`` when Redis cannot be reached."""

    def __init__(self, store: EventStore) -> None:
        self.store = store
        self.redis = store.redis
        self._pause = self.redis.register_script(_PAUSE)
        self._resume = self.redis.register_script(_RESUME)
        self._set = self.redis.register_script(_SET)

    def pause(self, job_id: str) -> bool:
        """None of the job's chunks enters a batch from now on. False if it neither waits nor runs.

        What is being spoken at this moment is still taken.
        """
        keys = [job_key(job_id), events_key(job_id)]
        return bool(self._pause(keys=keys, args=[BELL, job_id]))

    def resume(self, job_id: str) -> bool:
        """Let a paused job go on. False if it is not paused."""
        keys = [job_key(job_id), events_key(job_id)]
        return bool(self._resume(keys=keys, args=[BELL, job_id, repr(time.time())]))

    def measure_afresh(self, job_id: str) -> None:
        """What was published before now says nothing about the pace."""
        self._set(keys=[job_key(job_id)], args=["pace_since", repr(time.time())])

    def note(self, job_id: str, text: str) -> None:
        """Show what keeps a job from ending, until it ends."""
        self._set(keys=[job_key(job_id)], args=["error", text])

    # -- reading ---------------------------------------------------------------------------

    def etas(self, jobs: Sequence[Job]) -> list[float | None]:
        """Seconds until each job is done, at its pace of late; None where there is none."""
        now = time.time()
        running = [job for job in jobs if job.state is State.RUNNING]
        paces = dict(zip((job.job_id for job in running), self._paces(running, now), strict=True))
        answers: list[float | None] = []
        for job in jobs:
            pace = paces.get(job.job_id)
            if job.state.is_final:
                answers.append(0.0)
            else:
                answers.append((job.count - job.done) / pace if pace else None)
        return answers

    def _paces(self, jobs: Sequence[Job], now: float) -> list[float | None]:
        """Chunks per second of each job, None where too little is known."""
        with self.redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hget(job_key(job.job_id), "pace_since")
                pipe.xrevrange(events_key(job.job_id), count=PACE_CHUNKS + 1)
            replies = pipe.execute()
        starts = []
        for since, latest in zip(replies[::2], replies[1::2], strict=True):
            reach = min([now - PACE_S, *(_spoken_at(entry_id) for entry_id, _ in latest[-1:])])
            starts.append(max(reach, now - PACE_OLDEST_S, float(since or 0)))
        with self.redis.pipeline(transaction=False) as pipe:
            for job, start in zip(jobs, starts, strict=True):
                pipe.xrange(events_key(job.job_id), min=f"{int(start * 1000)}", count=64)
            windows = pipe.execute()
        return [_pace(job, window, now) for job, window in zip(jobs, windows, strict=True)]

    def states(self, job_ids: Sequence[str]) -> list[State | None]:
        with self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hget(job_key(job_id), "state")
            states: list[bytes | None] = pipe.execute()
        return [None if state is None else State(state.decode()) for state in states]

    def places(self) -> dict[str, int]:
        """Places of the long jobs that wait for their first chunk; 1 is next."""
        listed: Any = self.redis.zrange(OPEN, 0, -1)
        job_ids = [job_id.decode() for job_id in listed]
        states = dict(zip(job_ids, self.states(job_ids), strict=True))
        over = [job_id for job_id, state in states.items() if state is None or state.is_final]
        if over:
            self.redis.zrem(OPEN, *over)
        waiting = [job_id for job_id in job_ids if states[job_id] is State.QUEUED]
        return {job_id: place for place, job_id in enumerate(waiting, 1)}

    def page(
        self, owner: str, state: State | None, limit: int, cursor: tuple[float, str] | None
    ) -> tuple[list[Job], tuple[float, str] | None]:
        """Long jobs of one owner, the newest first, and where the next page begins."""
        found: list[tuple[float, str]] = []
        for keys in self._listed(cursor):
            found += self._wanted(keys, owner, state)
            if len(found) > limit:
                break
        jobs = self.store.jobs([job_id for _, job_id in found[:limit]])
        return [job for job in jobs if job], found[limit - 1] if len(found) > limit else None

    def _listed(self, cursor: tuple[float, str] | None) -> Iterator[list[tuple[float, str]]]:
        highest = "+inf" if cursor is None else repr(cursor[0])
        for start in range(0, 10**9, PAGE):
            rows: Any = self.redis.zrevrangebyscore(
                JOBS, highest, "-inf", start=start, num=PAGE, withscores=True
            )
            keys = [(score, job_id.decode()) for job_id, score in rows]
            yield [key for key in keys if cursor is None or key < cursor]
            if len(rows) < PAGE:
                return

    def _wanted(
        self, keys: list[tuple[float, str]], owner: str, state: State | None
    ) -> list[tuple[float, str]]:
        with self.redis.pipeline(transaction=False) as pipe:
            for _, job_id in keys:
                # Only these two fields: a record holds the whole text.
                pipe.hmget(job_key(job_id), ["state", "owner"])
            rows = pipe.execute()
        return [
            key
            for key, (its_state, its_owner) in zip(keys, rows, strict=True)
            if its_state is not None
            and (its_owner or b"").decode() == owner
            and (state is None or its_state.decode() == state)
        ]


def _spoken_at(entry_id: bytes) -> float:
    return int(entry_id.split(b"-")[0]) / 1000


def _pace(job: Job, window: Sequence[Any], now: float) -> float | None:
    spoken = [(_spoken_at(entry_id), int(e[b"done"])) for entry_id, e in window if b"done" in e]
    if not spoken:
        return None
    began = spoken[0][0]
    before = max(done for at, done in spoken if at <= began + BATCH_S)
    if job.done <= before or now - began < 1:
        return None
    return (job.done - before) / (now - began)
