"""The files worker's own steps, against a real Redis, without the processes around it."""

import time
from pathlib import Path

import redis

from tasks.advancing import JobAdvancer
from tasks.events import ChunkResult, EventStore
from tasks.jobfiles import JobFiles
from tasks.messages import Kind
from tasks.sending import silence_s
from tasks.settings import Settings
from tests.examples import a_job, some_pieces


def test_a_job_that_waits_its_turn_is_not_queued_again(
    client: "redis.Redis", tmp_path: Path
) -> None:
    client.flushall()
    job, files = a_job("0" * 24, 5, Kind.LONG), JobFiles(tmp_path)
    files.save(job, some_pieces(5))
    advancer = JobAdvancer(client, files, Settings())

    def messages(age_s: float) -> int:
        client.zadd(f"supertonic:sent:{job.job_id}", dict.fromkeys(range(5), time.time() - age_s))
        advancer.advance(job.job_id)
        return client.llen("low")

    advancer.advance(job.job_id)
    assert client.llen("low") == 5
    assert messages(age_s=1000) == 5, "others wait too, and nothing that waits is lost"
    client.delete("low")
    assert messages(age_s=10) == 0
    assert messages(age_s=30) == 5, "nothing waits, so they are not coming any more"


def test_only_the_claim_channel_is_trusted_to_keep_what_waits(client: "redis.Redis") -> None:
    client.flushall()
    store, own = EventStore(client), Settings()
    stock = Settings(broker_url=own.redis_url)
    assert [silence_s(store, each, 3600) for each in (own, stock)] == [20, 20]
    client.lpush("low", "somebody's chunk")
    assert [silence_s(store, each, 3600) for each in (own, stock)] == [3600, 200]
    client.delete("low")
    client.hset("unacked", "tag", "a chunk in a worker")
    assert [silence_s(store, each, 3600) for each in (own, stock)] == [3600, 200]


def test_what_kept_a_job_is_told_as_long_as_it_keeps_it(
    client: "redis.Redis", tmp_path: Path
) -> None:
    client.flushall()
    job, files = a_job("0" * 24, 2, Kind.LONG), JobFiles(tmp_path)
    files.save(job, some_pieces(2))
    advancer = JobAdvancer(client, files, Settings())
    advancer.advance(job.job_id)
    advancer.long_jobs.note(job.job_id, "no room")

    def error() -> str | None:
        kept = advancer.store.job(job.job_id)
        assert kept is not None
        return kept.error

    advancer.advance(job.job_id)
    assert error() == "no room"
    advancer.store.publish([ChunkResult(job.job_id, 0, bytes(2000), {}, 100)])
    advancer.advance(job.job_id)
    assert error() is None
