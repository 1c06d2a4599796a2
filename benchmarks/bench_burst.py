"""One stream, then twenty at once, on a full-size model: ``make bench-burst``.

Claim: on two cores with AMX a text of 350 to 400 characters is heard after 0.12 s at most when its
listener is alone; of 20 who ask at the same moment 95 % hear something within 1.2 s, at 60 seconds
of sound per second or more, and nobody hears a gap above 50 ms. Ceiling: the engine's rate.

The weights are random, in the published size (benchmarks/engines.py), with the lengths a text
takes; 2 steps. Redis, worker and web run as the Procfile says. Listeners play in real time, and
waiting counts from the moment a request was meant to be sent.
"""

import argparse
import asyncio
import time
from typing import Any

from benchmarks import traffic
from benchmarks.bench_service import SERVICE, Stage, settings, summary
from benchmarks.measure import describe, json_line, machine, percentile, table
from benchmarks.service import Service
from benchmarks.traffic import BURST, Goal

COLUMNS = ("streams", "failed", "first_p50_ms", "first_p95_ms", "c50", "underrun_max_s")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rounds of one stream and of a burst in turn, so that a slow minute hits both."""
    rounds = 1 if arguments.quick else arguments.rounds
    alone, together, cores = [], [], []
    # Everybody is let in: this is about who is spoken when, not about who is refused.
    with Service(**settings(arguments), SUPERTONIC_MAX_WAIT_S="0") as service:
        stage = Stage(service, arguments.engine)
        stage.start(with_rival=False)
        goal = Goal(stage.port(SERVICE))
        asyncio.run(traffic.burst(goal, 2))
        for _ in range(rounds):
            for _ in range(2 if arguments.quick else 5):
                alone.append(summary(asyncio.run(traffic.burst(goal, 1))))
                time.sleep(0.3)
            cpu_s, started = service.cpu_s("worker"), time.perf_counter()
            together.append(summary(asyncio.run(traffic.burst(goal, arguments.streams))))
            seconds = time.perf_counter() - started
            cores.append((service.cpu_s("worker") - cpu_s) / seconds)
            time.sleep(0.5)
        workers = stage.call("GET", "/")["workers"]
    print(table(COLUMNS, [[_short(one[name]) for name in COLUMNS] for one in together]))
    found = {
        "engine": arguments.engine,
        "precision": workers[0]["precision"],
        "characters": len(BURST),
        "alone_first_ms": percentile([one["first_p50_ms"] for one in alone], 50),
        "alone_first_max_ms": max(one["first_p50_ms"] for one in alone),
        "alone_rounds": len(alone),
        "failed": sum(one["failed"] + one["refused"] for one in alone + together),
        # On a machine with two cores and nothing else to do this is near two.
        "burst_cores_of_worker": percentile(cores, 50),
        "burst_rounds": len(together),
        "burst_streams": arguments.streams,
    }
    for name in ("first_p50_ms", "first_p95_ms", "c50", "audio_s_per_s", "underrun_max_s"):
        found[f"burst_{name}"] = percentile([one[name] for one in together], 50)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", default="full", help="full, null, tiny or a model directory")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round")
    arguments = parser.parse_args()
    facts = machine("torch", "redis", "celery", "gunicorn", "flask")
    print(describe(facts))
    found = run(arguments)
    print(table(["measure", "value"], [[name, _short(value)] for name, value in found.items()]))
    print(json_line({"benchmark": "burst", **facts, **found}))


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
