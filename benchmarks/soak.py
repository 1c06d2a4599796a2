"""A long moderate load, and the question whether memory grows: a line with its uncertainty."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import traffic
from benchmarks.measure import table
from benchmarks.service import Service
from benchmarks.traffic import MIXED, Goal
from tasks.events import connect

PER_S = 3.0
# What is kept on purpose must stop growing long before the line begins, or one would see only that.
RETENTION = {
    "SUPERTONIC_STREAM_TTL_S": "60",
    "SUPERTONIC_JOB_TTL_S": "120",
    "SUPERTONIC_CACHE_MB": "8",
}
PROCESSES = ("web", "worker", "files", "redis")
# The beginning fills caches and pools; it is left out of the line.
WARM_SHARE = 0.25
# Neighbouring seconds are alike; means over so many are nearly independent.
BLOCKS = 15


@dataclass(frozen=True)
class Line:
    """``slope`` per second, and its standard error; and the means of the blocks."""

    mean: float
    slope: float
    error: float
    means: tuple[float, ...] = ()

    @property
    def is_growth(self) -> bool:
        """Whether the slope is above zero beyond doubt (97.5 %), and above 2 % of the mean per
        hour: less than that is not what a leak looks like.
        """
        t = 2.16  # Student's, 13 degrees of freedom
        return self.slope - t * self.error > 0 and self.slope * 3600 > 0.02 * self.mean


def fit(times: Sequence[float], values: Sequence[float]) -> Line:
    """Least squares through means of BLOCKS blocks; the scatter of those gives the error."""
    at = [float(np.mean(part)) for part in np.array_split(np.asarray(times), BLOCKS)]
    means = [float(np.mean(part)) for part in np.array_split(np.asarray(values), BLOCKS)]
    x = np.asarray(at) - np.mean(at)
    slope = float((x * means).sum() / (x * x).sum())
    rest = np.asarray(means) - np.mean(means) - slope * x
    error = math.sqrt(float((rest * rest).sum()) / (BLOCKS - 2) / float((x * x).sum()))
    return Line(float(np.mean(means)), slope, error, tuple(means))


def soak(service: Service, start_job: Callable[[], str], seconds: float) -> dict[str, Any]:
    """Mixed streams at random, one long job after the other, and a sample every second."""
    samples = asyncio.run(_run(service, start_job, seconds))
    kept = samples["streams"]
    begin = len(samples["at"]) * WARM_SHARE
    rows, slopes = [], {}
    for name in (*PROCESSES, "redis data"):
        line = fit(samples["at"][int(begin) :], samples[name][int(begin) :])
        slopes[name] = {
            "mean_mb": line.mean / 1e6,
            "kb_per_min": line.slope * 60 / 1e3,
            "error_kb_per_min": line.error * 60 / 1e3,
            "grows": line.is_growth,
            "means_mb": [round(mean / 1e6, 2) for mean in line.means],
        }
        change = f"{line.slope * 60 / 1e3:+.1f} ± {line.error * 60 / 1e3:.1f}"
        rows.append([name, f"{line.mean / 1e6:.1f}", change, "yes" if line.is_growth else "no"])
    print(table(["memory of", "mean MB", "slope KB/min ± standard error", "grows"], rows))
    return {
        "minutes": seconds / 60,
        "streams": len(kept),
        "refused": sum(one.is_refused for one in kept),
        "failed": sum(bool(one.error) and not one.is_refused for one in kept),
        "errors": traffic.errors(kept),
        "memory": slopes,
        "grows": sorted(name for name, slope in slopes.items() if slope["grows"]),
    }


async def _run(service: Service, start_job: Callable[[], str], seconds: float) -> dict[str, Any]:
    samples: dict[str, Any] = {name: [] for name in ("at", "redis data", *PROCESSES)}
    client, started = connect(service.redis_url), time.monotonic()
    load = asyncio.create_task(traffic.arrivals(Goal(service.port), PER_S, seconds, MIXED))
    job_at = 0.0
    while not load.done():
        now = time.monotonic() - started
        if now >= job_at and now < seconds:
            await asyncio.to_thread(start_job)
            job_at = now + 60
        for name in PROCESSES:
            samples[name].append(service.rss_bytes(name))
        memory: Any = await asyncio.to_thread(client.info, "memory")
        samples["redis data"].append(int(memory["used_memory"]))
        samples["at"].append(now)
        await asyncio.sleep(max(0.0, 1.0 - (time.monotonic() - started - now)))
    samples["streams"] = await load
    client.close()
    return samples
