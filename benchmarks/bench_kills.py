"""What a SIGKILL costs: messages lost, and chunks computed again, ``make bench-kills``.

Claim: no message is lost, and of a killed worker's chunks only the batch it was computing is
computed again. Two workers on the null engine empty the queue while one of them is killed every
few seconds and started again. There is no web here that would notice a loss and send again what
is missing: a chunk that was never published is lost.
"""

import argparse
import random
import signal
import time
from dataclasses import dataclass, replace
from typing import Any

import redis

from benchmarks.measure import describe, json_line, machine, table
from benchmarks.queue_alone import make_job
from benchmarks.service import Service
from tasks import dead_letters
from tasks.celery import SYNTHESIZE, app
from tasks.envelopes import envelopes
from tasks.events import EventStore, connect
from tasks.messages import Urgency
from tasks.sending import make_chunks
from tasks.workers import WorkerRecords

WORKERS = ("worker", "worker2")
LEASE_S = 3
QUIET_S = 30.0  # nothing published for this long: what is missing is lost


@dataclass
class Plan:
    jobs: int = 50
    chunks_per_job: int = 1000
    batch_ms: int = 20
    every_s: float = 1.0

    @property
    def messages(self) -> int:
        return self.jobs * self.chunks_per_job


def queue_all(store: EventStore, plan: Plan) -> list[str]:
    """Ids of the jobs whose chunks are in the queues now, spread over all three."""
    job_ids = []
    for _ in range(plan.jobs):
        job, pieces = make_job(plan.chunks_per_job)
        lanes = list(Urgency)
        chunks = [
            replace(chunk, urgency=lanes[chunk.index % len(lanes)])
            for chunk in make_chunks(job, pieces, range(job.count))
        ]
        store.admit(job, pieces, 3600, chunks, envelopes(app, SYNTHESIZE, chunks, 3600))
        job_ids.append(job.job_id)
    return job_ids


def start_worker(service: Service, name: str) -> None:
    command = "exec celery -A benchmarks.null_worker worker --without-gossip --without-mingle"
    service.start(name, f"{command} -n {name}@bench")


def kill_and_count(service: Service, store: EventStore, plan: Plan) -> int:
    """Kill one of two working workers now and then, until nothing is left or nothing happens."""
    records = WorkerRecords(store.redis)
    kills, published, news_at = 0, 0, time.monotonic()
    next_kill = 0.0
    while published < plan.messages and time.monotonic() < news_at + QUIET_S:
        time.sleep(0.05)
        now = time.monotonic()
        before, published = published, store.totals().get("chunks", 0)
        if published > before:
            news_at = now
        living = records.living()
        if len(living) < len(WORKERS) or published == plan.messages:
            next_kill = now + plan.every_s
        elif now > next_kill:
            name = random.choice(WORKERS)
            victim = service.processes.pop(name)
            victim.send_signal(signal.SIGKILL)
            victim.wait(10)
            kills += 1
            records.leave(f"{name}@bench")
            start_worker(service, name)
    return kills


def attempts(client: "redis.Redis", job_id: str) -> list[int]:
    """How often each chunk that was begun was begun."""
    record: Any = client.hgetall(f"supertonic:job:{job_id}")
    return [int(value) for name, value in record.items() if name.startswith(b"attempt:")]


def run(plan: Plan) -> dict[str, Any]:
    settings = {"SUPERTONIC_VISIBILITY_TIMEOUT_S": str(LEASE_S), "NULL_BYTES": "2000"}
    with Service(**settings, NULL_BATCH_MS=str(plan.batch_ms)) as service:
        service.start("redis")
        client = connect(service.redis_url)
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.1)
        store = EventStore(client)
        job_ids = queue_all(store, plan)
        for name in WORKERS:
            start_worker(service, name)
        started = time.monotonic()
        kills = kill_and_count(service, store, plan)
        seconds = time.monotonic() - started
        begun = [count for job_id in job_ids for count in attempts(client, job_id)]
        published = store.totals().get("chunks", 0)
        given_up = dead_letters.count(client)
        client.close()
    return {
        "messages": plan.messages,
        "kills": kills,
        "lost": plan.messages - published,
        "given_up": given_up,
        "recomputed": sum(begun) - len(begun),
        "recomputed_per_kill": (sum(begun) - len(begun)) / max(1, kills),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1,000 messages")
    quick = Plan(jobs=1, batch_ms=100, every_s=1.0)
    plan = quick if parser.parse_args().quick else Plan()
    facts = machine("redis", "celery", "kombu")
    print(describe(facts))
    result = run(plan)
    print(table(["measure", "value"], [[name, f"{value:g}"] for name, value in result.items()]))
    print(json_line({"benchmark": "kills", **facts, **result}))


if __name__ == "__main__":
    main()
