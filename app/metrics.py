"""Figures about the service, for people as JSON and for Prometheus as text.

All counts live in Redis: totals written in the same step as what they count, histograms added up
there by every process (tasks/measures.py). So they are right with any number of processes and
survive restarts.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from flask import Response
from kombu.exceptions import OperationalError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from app.jobs import Speech
from tasks import dead_letters, measures
from tasks.celery import queue_lengths
from tasks.measures import Measure
from tasks.names import PREFIX
from tasks.workers import WorkerRecord

logger = logging.getLogger(__name__)

NAME = "supertonic_"
# Names of the totals that tasks/scripts.py counts, by what is shown.
CACHE_RESULTS = {"hit": "cache_hits", "coalesced": "coalesced", "miss": "cache_misses"}
# Kept by tasks/demand.py and tasks/cache.py.
QUEUED = PREFIX + "queued"
CACHE_SIZES = PREFIX + "cache:sizes"


def json_metrics(speech: Speech) -> dict[str, Any]:
    """The original server's figures; seconds are audio seconds unless the name says otherwise."""
    totals, workers = speech.store.totals(), speech.workers()
    queues = _queue_lengths(speech)
    audio_s = totals.get("audio_ms", 0) / 1000
    busy_s = sum(worker.busy_s for worker in workers)
    return {
        "total_requests": totals.get("jobs", 0),
        "requests_done": totals.get("jobs_done", 0),
        "requests_failed": totals.get("jobs_failed", 0),
        "requests_cancelled": totals.get("jobs_cancelled", 0),
        "total_chunks": totals.get("chunks", 0),
        "total_audio_seconds": round(audio_s, 3),
        "average_batch_size": _mean([worker.batch_size for worker in workers]),
        "average_queue_time_ms": _mean([worker.queue_wait_s * 1000 for worker in workers]),
        "audio_seconds_per_busy_second": round(
            sum(worker.audio_s for worker in workers) / busy_s if busy_s else 0.0, 2
        ),
        "queue_sizes": queues,
        "dead_letters": dead_letters.count(speech.store.redis),
        "workers": len(workers),
        "device_memory_bytes": sum(worker.device_memory_bytes for worker in workers),
    }


def _queue_lengths(speech: Speech) -> dict[str, int]:
    """Empty where a broker beside Redis cannot be asked: no figure is better than a wrong one, and
    all others are there.
    """
    try:
        return queue_lengths(speech.store)
    except OperationalError as error:
        logger.warning("lengths of queues are not known: %s", error)
        return {}


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 3) if values else 0.0


def prometheus_metrics(speech: Speech) -> Response:
    # What this process has not sent yet belongs to what is about to be read.
    speech.meter.send(speech.store.redis)
    registry = CollectorRegistry()
    registry.register(_Collector(speech))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class _Collector:
    """Reads Redis when scraped, so that every web process shows the figures of all."""

    def __init__(self, speech: Speech) -> None:
        self.speech = speech

    def collect(self) -> Iterator[Metric]:
        yield from self._totals()
        yield from self._gauges()
        workers = self.speech.workers(max_age_s=0)
        yield from _workers(workers)
        names = [worker.name for worker in workers]
        whole, *shares = measures.read(self.speech.store.redis, names)
        for measure in measures.ALL:
            yield _family(measure, "", [((), whole)])
        for measure in measures.ALL:
            if measure.is_per_worker:
                stored = [((name,), share) for name, share in zip(names, shares, strict=True)]
                yield _family(measure, "worker_", stored)

    def _totals(self) -> Iterator[Metric]:
        totals = self.speech.store.totals()
        jobs = CounterMetricFamily(f"{NAME}jobs", "Jobs by how they ended.", labels=["state"])
        for state in ("done", "failed", "cancelled"):
            jobs.add_metric([state], totals.get(f"jobs_{state}", 0))
        yield jobs
        cached = CounterMetricFamily(
            f"{NAME}cache_chunks",
            "Chunks that a cache could answer, by what came of it.",
            labels=["result"],
        )
        for result, key in CACHE_RESULTS.items():
            cached.add_metric([result], totals.get(key, 0))
        yield cached
        seconds = totals.get("audio_ms", 0) / 1000
        for name, text, value in (
            ("jobs_accepted", "Jobs accepted.", totals.get("jobs", 0)),
            ("chunks", "Chunks spoken and published, each once.", totals.get("chunks", 0)),
            ("audio_seconds", "Seconds of speech in those chunks.", seconds),
        ):
            yield CounterMetricFamily(NAME + name, text, value=value)

    def _gauges(self) -> Iterator[Metric]:
        queues = GaugeMetricFamily(
            f"{NAME}queue_chunks", "Messages per queue; held is in workers.", labels=["queue"]
        )
        for name, length in _queue_lengths(self.speech).items():
            queues.add_metric([name], length)
        yield queues
        client = self.speech.store.redis
        waiting = GaugeMetricFamily(
            f"{NAME}queued_seconds",
            "Estimated sound still to be made, at 2 steps.",
            labels=["kind"],
        )
        kinds = ("first", "later", "long")
        queued: Any = client.hmget(QUEUED, *kinds)
        for kind, ms in zip(kinds, queued, strict=True):
            waiting.add_metric([kind], int(ms or 0) / 1000)
        yield waiting
        cache_bytes: Any = client.hget(CACHE_SIZES, "total")
        used, limit = self.speech.store.memory()
        buried = dead_letters.count(client)
        for name, text, value in (
            ("dead_letters", "Messages that nobody could read, kept to be looked at.", buried),
            ("cache_bytes", "Memory of the cache of finished chunks.", int(cache_bytes or 0)),
            ("redis_memory_bytes", "Memory that Redis uses.", used),
            ("redis_memory_limit_bytes", "Memory that Redis may use, 0 for any.", limit),
        ):
            yield GaugeMetricFamily(NAME + name, text, value=value)
        # Before the first long job there may be no such directory.
        with suppress(OSError):
            disk = shutil.disk_usage(self.speech.settings.data_dir)
            for name, text, value in (
                ("data_free_bytes", "Room for long jobs where they are kept.", disk.free),
                ("data_disk_bytes", "Size of that disk.", disk.total),
            ):
                yield GaugeMetricFamily(NAME + name, text, value=value)


def _workers(workers: list[WorkerRecord]) -> Iterator[Metric]:
    yield GaugeMetricFamily(f"{NAME}workers", "Living speech workers.", value=len(workers))
    facts = ("model", "device", "precision", "fingerprint")
    info = InfoMetricFamily(f"{NAME}worker", "What a worker speaks with.", labels=["worker"])
    for worker in workers:
        info.add_metric([worker.name], {fact: getattr(worker, fact) for fact in facts})
    yield info
    for kind, name, text, field in (
        (GaugeMetricFamily, "waiting_chunks", "Chunks a worker holds.", "waiting"),
        (
            GaugeMetricFamily,
            "device_memory_bytes",
            "Memory used on the device.",
            "device_memory_bytes",
        ),
        (GaugeMetricFamily, "start_time_seconds", "When it started.", "started_at"),
        (CounterMetricFamily, "chunks", "Chunks it has spoken.", "chunks"),
        (CounterMetricFamily, "audio_seconds", "Seconds of speech it has made.", "audio_s"),
        (CounterMetricFamily, "busy_seconds", "Seconds its engine has worked.", "busy_s"),
    ):
        family = kind(f"{NAME}worker_{name}", text, labels=["worker"])
        for worker in workers:
            family.add_metric([worker.name], getattr(worker, field))
        yield family


Stored = tuple[tuple[str, ...], Mapping[str, float]]


def _family(measure: Measure, prefix: str, stored: Sequence[Stored]) -> Metric:
    """One measure, once per set of ``stored`` numbers; a histogram without labels is always
    there, empty if need be, so that an alert sees zero and not nothing.
    """
    name, labels = f"{NAME}{prefix}{measure.name}", [*measure.labels]
    if prefix:
        labels.insert(0, "worker")
    family: CounterMetricFamily | HistogramMetricFamily
    if measure.bounds:
        family = HistogramMetricFamily(name, measure.help, labels=labels)
    else:
        family = CounterMetricFamily(name, measure.help, labels=labels)
    for owner, numbers in stored:
        found = measures.readings(measure, numbers)
        if not found and not measure.labels:
            found = {(): measures.empty(measure)}
        for values, reading in found.items():
            if isinstance(family, HistogramMetricFamily):
                family.add_metric([*owner, *values], reading.buckets, reading.total)
            else:
                family.add_metric([*owner, *values], reading.total)
    return family
