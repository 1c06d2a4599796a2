"""A burst of streams on the built-in voice through the real service: ``make bench-streams``.

Claim: 100 listeners who ask at the same moment all get their whole text, and first chunks go
before later ones. First chunks that had to wait while a later one was begun are counted, and so
are later chunks that were published before the last first one; both should be near zero.
Ceiling: the engine's rate. The built-in voice is a small model, so that the burst is about
scheduling more than about arithmetic; the full-size model is bench_engine's.

Redis, worker and web run as the Procfile says. When a chunk was sent, begun and published is read
from the job's events in Redis afterwards, so the order is the worker's and not the network's.
"""

import argparse
import selectors
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.listeners import BrokenStream, Listener
from benchmarks.measure import describe, json_line, machine, percentile, table
from benchmarks.service import Service
from supertonic.text import split_text
from tasks.events import EventStore, connect

TEXT = (
    "Good evening, and welcome. A hundred people asked for this text at the very same moment, and "
    "none of them likes to wait. So the first piece of it is short, and everybody gets theirs "
    "before anybody gets more. What follows may take a little longer, because by then there is "
    "something to listen to. This sentence is there to make a third piece, which nobody needs "
    "before the second one has been heard; and this is the end of it, after a few more words."
)
N_CHUNKS = len(split_text(TEXT, "en"))
LIMIT_S = 300.0
# A message on its way to the worker cannot be chosen yet. And when a batch was begun is known from
# when it was published, which takes a moment; batches are begun on several cores.
TRANSIT_S = 0.02


@dataclass(frozen=True)
class Spoken:
    """When one chunk was queued, taken by the worker and published (epoch seconds)."""

    index: int
    sent_at: float
    begun_at: float
    published_at: float


@dataclass
class Burst:
    """What the listeners of a burst got."""

    first_s: list[float]
    whole_s: list[float]
    errors: list[str]
    job_ids: list[str]
    seconds: float


def burst(port: int, n_streams: int, limit_s: float = LIMIT_S) -> Burst:
    """Open all streams at once and read them to their ends."""
    selector = selectors.DefaultSelector()
    result = Burst([], [], [], [], 0.0)
    body = {"text": TEXT, "steps": 2, "resumable": True}
    listeners = [Listener(port, body, N_CHUNKS) for _ in range(n_streams)]
    waiting_for_first = set(listeners)
    started = time.perf_counter()
    for listener in listeners:
        selector.register(listener.sock, selectors.EVENT_READ, listener)
        listener.ask()
    while selector.get_map() and time.perf_counter() < started + limit_s:
        for key, _ in selector.select(timeout=1.0):
            listener = key.data
            try:
                listener.read()
            except (BrokenStream, OSError) as error:
                result.errors.append(str(error))
                selector.unregister(listener.sock)
                continue
            now_s = time.perf_counter() - started
            if listener in waiting_for_first and listener.has_whole_chunk:
                waiting_for_first.remove(listener)
                result.first_s.append(now_s)
            if listener.has_ended:
                result.whole_s.append(now_s)
                result.job_ids.append(listener.job_id)
                selector.unregister(listener.sock)
    late = len(selector.get_map())
    result.errors += [f"not complete after {limit_s:g} s"] * late
    result.seconds = time.perf_counter() - started
    for listener in listeners:
        listener.close()
    selector.close()
    return result


def history(store: EventStore, job_id: str) -> list[Spoken]:
    """When the worker did what for a job, from its events."""
    spoken = []
    for event in store.events(job_id):
        if event.type != "audio":
            continue
        facts = event.facts or {}
        published_at = float(event.entry_id.split("-")[0]) / 1000
        begun_at = published_at - facts["inference_time_ms"] / 1000
        sent_at = begun_at - facts["queue_time_ms"] / 1000
        spoken.append(Spoken(event.index, sent_at, begun_at, published_at))
    return spoken


def overtaken(chunks: list[Spoken]) -> int:
    """How many first chunks were waiting at the worker while a later chunk was begun."""
    later = [chunk.begun_at for chunk in chunks if chunk.index > 0]
    return sum(
        any(first.sent_at + TRANSIT_S < begun_at < first.begun_at - TRANSIT_S for begun_at in later)
        for first in chunks
        if first.index == 0
    )


def run(n_streams: int) -> dict[str, Any]:
    with Service(SUPERTONIC_MODEL="tiny", SUPERTONIC_MAX_WAIT_S="0") as service:
        for name in ("redis", "worker", "web"):
            service.start(name)
        service.wait_until_ready()
        time.sleep(1.0)  # both web processes know the worker
        burst(service.port, 2)
        got = burst(service.port, n_streams)
        store = EventStore(connect(service.redis_url))
        chunks = [chunk for job_id in got.job_ids for chunk in history(store, job_id)]
        jobs = [job for job in store.jobs(got.job_ids) if job is not None]
        audio_s = sum(job.samples / job.sample_rate for job in jobs)
    firsts = [chunk.published_at for chunk in chunks if chunk.index == 0]
    later = [chunk.published_at for chunk in chunks if chunk.index > 0]
    return {
        "streams": n_streams,
        "complete": len(got.whole_s),
        "failed": len(got.errors),
        "first_p50_ms": percentile(got.first_s, 50) * 1000,
        "first_p95_ms": percentile(got.first_s, 95) * 1000,
        "whole_p50_ms": percentile(got.whole_s, 50) * 1000,
        "whole_p95_ms": percentile(got.whole_s, 95) * 1000,
        "chunks": len(chunks),
        "later_chunks_before_last_first": sum(at < max(firsts) for at in later) if firsts else None,
        "firsts_overtaken": overtaken(chunks),
        "audio_s": audio_s,
        "audio_s_per_s": audio_s / got.seconds,
        "seconds": got.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="10 streams")
    arguments = parser.parse_args()
    facts = machine("torch", "redis", "celery", "gunicorn", "flask")
    print(describe(facts))
    result = run(10 if arguments.quick else arguments.streams)
    print(table(["measure", "value"], [[name, _short(value)] for name, value in result.items()]))
    print(json_line({"benchmark": "streams", **facts, **result}))


def _short(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
