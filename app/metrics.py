"""Figures about the service, for people as JSON and for Prometheus as text.

All counts live in Redis, written in the same step as what they count, so they are right with any
number of web processes and survive their restarts.
"""

from collections.abc import Iterator
from typing import Any

from flask import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from app.jobs import Speech


def json_metrics(speech: Speech) -> dict[str, Any]:
    """The original server's figures; seconds are audio seconds unless the name says otherwise."""
    totals, workers = speech.store.totals(), speech.workers()
    queues = speech.store.queue_lengths()
    rate = workers[0].sample_rate if workers else 44_100
    audio_s = totals.get("samples", 0) / rate
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
        "workers": len(workers),
        "device_memory_bytes": sum(worker.device_memory_bytes for worker in workers),
    }


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 3) if values else 0.0


def prometheus_metrics(speech: Speech) -> Response:
    registry = CollectorRegistry()
    registry.register(_Collector(speech))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class _Collector:
    """Reads Redis when scraped; nothing is kept in the web process."""

    def __init__(self, speech: Speech) -> None:
        self.speech = speech

    def collect(self) -> Iterator[Metric]:
        totals = self.speech.store.totals()
        jobs = CounterMetricFamily("supertonic_jobs", "Jobs by how they ended.", labels=["state"])
        for state in ("done", "failed", "cancelled"):
            jobs.add_metric([state], totals.get(f"jobs_{state}", 0))
        yield jobs
        yield _counter("supertonic_jobs_accepted", "Jobs accepted.", totals.get("jobs", 0))
        yield _counter("supertonic_chunks", "Chunks spoken.", totals.get("chunks", 0))
        samples = totals.get("samples", 0)
        yield _counter("supertonic_audio_samples", "Samples of speech made.", samples)
        queues = GaugeMetricFamily(
            "supertonic_queue_chunks", "Messages per queue; held is in workers.", labels=["queue"]
        )
        for name, length in self.speech.store.queue_lengths().items():
            queues.add_metric([name], length)
        yield queues
        yield from self._workers()

    def _workers(self) -> Iterator[Metric]:
        workers = self.speech.workers()
        yield GaugeMetricFamily("supertonic_workers", "Living speech workers.", value=len(workers))
        for name, text, field in (
            ("waiting_chunks", "Chunks a worker holds.", "waiting"),
            ("batch_size", "Chunks per batch, moving mean.", "batch_size"),
            (
                "queue_wait_seconds",
                "Wait of a chunk before its batch, moving mean.",
                "queue_wait_s",
            ),
            ("audio_rate", "Audio seconds made per busy second.", "rate"),
            ("device_memory_bytes", "Memory used on the device.", "device_memory_bytes"),
        ):
            gauge = GaugeMetricFamily(f"supertonic_worker_{name}", text, labels=["worker"])
            for worker in workers:
                gauge.add_metric([worker.name], getattr(worker, field))
            yield gauge


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)
