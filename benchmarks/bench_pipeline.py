"""What the queue and the web cost: a null engine behind the real service, ``make bench-pipeline``.

Claim: the milliseconds between a request and its first chunk, and the chunks per second, when
speaking itself takes no time; beside a minimal in-process batcher (benchmarks/inprocess.py) that
gets the same requests from the same client on the same cores, in turn.
Ceiling: the rival's figures. It has no Redis, no second process and no promises to keep; the
client takes its share of the cores in both cases.

Redis, worker and web run as the Procfile says, with Redis writing its log to disk, except that the
worker's engine is a null engine. Everything listens on 127.0.0.1 and is stopped at the end.
"""

import argparse
import importlib.util
import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from benchmarks.listeners import Listener, Load, listen_together
from benchmarks.measure import describe, json_line, machine, percentile, ratio, table
from benchmarks.queue_alone import SENTENCE, Process
from benchmarks.service import Service, free_port
from supertonic.text import split_text

# Four sentences of this length fill one chunk, and the first chunk holds one.
LONGER = SENTENCE[:-1] + ", for nobody but a program that counts."
SERVICE, RIVAL = "service", "in-process"
N_CHUNKS = 8
N_STREAMS = 16
SIZES = {"300k": 300_000, "30k": 30_000}


def text_of(n_chunks: int) -> str:
    """A text that is cut into exactly so many chunks."""
    text = SENTENCE
    while len(split_text(text, "en")) < n_chunks:
        text += " " + LONGER
    return text


@dataclass
class Plan:
    """How much is measured."""

    idle: int = 150
    rounds: int = 3
    window_s: float = 4.0
    sizes: tuple[str, ...] = ("300k", "30k")


@dataclass
class Rates:
    """Chunks per second of each window, and CPU seconds by process, of one competitor."""

    per_s: list[float] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)
    chunks: int = 0
    failed: int = 0

    def add(self, load: Load, cpu_s: dict[str, float]) -> None:
        self.per_s.append(load.chunks_per_s)
        self.chunks += load.chunks
        self.failed += len(load.errors)
        for name, seconds in cpu_s.items():
            self.cpu_s[name] = self.cpu_s.get(name, 0.0) + seconds

    @property
    def median(self) -> float:
        return percentile(self.per_s, 50)

    @property
    def cpu_ms_per_chunk(self) -> dict[str, float]:
        return {name: 1000 * s / max(1, self.chunks) for name, s in self.cpu_s.items()}


class Bench:
    """The running competitors, each with what to ask it."""

    def __init__(self, service: Service, plan: Plan) -> None:
        self.service = service
        self.plan = plan
        self.rival_port = free_port()
        self.ports = {SERVICE: service.port, RIVAL: self.rival_port}

    def start(self, n_bytes: int) -> None:
        worker = (
            "exec celery --quiet -A benchmarks.null_worker worker --without-gossip --without-mingle"
        )
        self.service.start("worker", f"{worker} -n null@bench", NULL_BYTES=str(n_bytes))
        rival = "exec uvicorn benchmarks.inprocess:app --host 127.0.0.1 --log-level warning"
        command = f"{rival} --port {self.rival_port} --timeout-keep-alive 60"
        self.service.start(RIVAL, command, NULL_BYTES=str(n_bytes))
        self.service.wait_until_ready()
        self.service.wait_for(self.rival_port, "/", 404)
        # Each web process may still believe for half a second that there is no worker.
        time.sleep(1.0)

    def stop(self) -> None:
        self.service.stop("worker")
        self.service.stop(RIVAL)

    def listener(self, name: str, n_chunks: int) -> Callable[[], Listener]:
        # No pauses: the rival has none, and they would be bytes.
        body = {"text": text_of(n_chunks), "seed": 1, "pause_s": 0.0}
        return lambda: Listener(self.ports[name], body, n_chunks)

    def idle(self) -> dict[str, dict[str, list[float]]]:
        """Seconds to the first chunk, and per chunk of eight, one request at a time."""
        found: dict[str, dict[str, list[float]]] = {}
        for n_chunks, key, runs in (
            (1, "first", self.plan.idle),
            (N_CHUNKS, "per_chunk", self.plan.idle // 4),
        ):
            with (
                closing(self.listener(SERVICE, n_chunks)()) as ours,
                closing(self.listener(RIVAL, n_chunks)()) as theirs,
            ):
                for listener in (ours, theirs) * 5:  # warm-up
                    listener.time_one()
                for _ in range(runs):
                    for name, listener in ((SERVICE, ours), (RIVAL, theirs)):
                        first_s, whole_s = listener.time_one()
                        seconds = first_s if key == "first" else whole_s / n_chunks
                        found.setdefault(name, {}).setdefault(key, []).append(seconds)
        return found

    def published_to_seen(self) -> list[float]:
        """Seconds from handing a chunk to the queue to holding its sound, without HTTP."""
        process = Process.at(self.service.redis_url)
        return [process.speak(1) for _ in range(self.plan.idle + 5)][5:]

    def throughput(self) -> dict[str, Rates]:
        """Both competitors under the same load, in turn."""
        rates = {SERVICE: Rates(), RIVAL: Rates()}
        processes = {SERVICE: ("web", "worker", "redis"), RIVAL: (RIVAL,)}
        for number in range(self.plan.rounds + 1):
            for name in rates:
                before = {p: self.service.cpu_s(p) for p in processes[name]}
                client_s = time.process_time()
                window_s = self.plan.window_s if number else min(1.0, self.plan.window_s)
                load = listen_together(self.listener(name, N_CHUNKS), N_STREAMS, window_s)
                used = {p: self.service.cpu_s(p) - cpu_s for p, cpu_s in before.items()}
                used["client"] = time.process_time() - client_s
                if number:  # the first round warms up
                    rates[name].add(load, used)
                # What was under way for the closed connections must not disturb the other one.
                time.sleep(0.5)
        return rates


def run(plan: Plan) -> dict[str, Any]:
    """Everything that was measured, as it goes into the JSON line."""
    result: dict[str, Any] = {"failed": 0}
    rows = []
    # Every request is the same, and none may be answered from what another left behind.
    settings = {"SUPERTONIC_WEB_THREADS": "100", "SUPERTONIC_CACHE_MB": "0"}
    with Service(**settings, SUPERTONIC_MAX_WAIT_S="0") as service:
        service.start("redis")
        service.start("web")
        bench = Bench(service, plan)
        for label in plan.sizes:
            bench.start(SIZES[label])
            if label == "300k":
                rows += _idle_rows(bench, result)
            rates = bench.throughput()
            rows += _throughput_rows(rates, label, result)
            bench.stop()
    print(table(["measure", "service", "in-process", "ratio"], rows))
    return result


def _idle_rows(bench: Bench, result: dict[str, Any]) -> list[list[str]]:
    seen = bench.published_to_seen()
    result |= {"idle_p50_ms": _ms(seen, 50), "idle_p95_ms": _ms(seen, 95)}
    idle = bench.idle()
    ours, theirs = idle[SERVICE], idle[RIVAL]
    result |= {
        "http_p50_ms": _ms(ours["first"], 50),
        "http_p95_ms": _ms(ours["first"], 95),
        "inprocess_http_p50_ms": _ms(theirs["first"], 50),
        "inprocess_http_p95_ms": _ms(theirs["first"], 95),
        "http_ratio": ratio(ours["first"], theirs["first"]),
        "idle_ms_per_chunk": _ms(ours["per_chunk"], 50),
        "inprocess_idle_ms_per_chunk": _ms(theirs["per_chunk"], 50),
    }
    return [
        ["idle: publish → sound seen, p50 / p95 ms", _both(seen), "–", "–"],
        [
            "idle: POST → first whole event, p50 / p95 ms",
            _both(ours["first"]),
            _both(theirs["first"]),
            f"{result['http_ratio']:.2f}",
        ],
        [
            f"idle: one stream of {N_CHUNKS}, per chunk, p50 / p95 ms",
            _both(ours["per_chunk"]),
            _both(theirs["per_chunk"]),
            f"{ratio(ours['per_chunk'], theirs['per_chunk']):.2f}",
        ],
    ]


def _throughput_rows(
    rates: dict[str, Rates], label: str, result: dict[str, Any]
) -> list[list[str]]:
    ours, theirs = rates[SERVICE], rates[RIVAL]
    result[f"chunks_per_s_{label}"] = ours.median
    result[f"inprocess_chunks_per_s_{label}"] = theirs.median
    result[f"throughput_ratio_{label}"] = ratio(ours.per_s, theirs.per_s)
    result[f"cpu_ms_per_chunk_{label}"] = ours.cpu_ms_per_chunk
    result[f"inprocess_cpu_ms_per_chunk_{label}"] = theirs.cpu_ms_per_chunk
    result["failed"] += ours.failed + theirs.failed
    return [
        [
            f"chunks/s, {label[:-1]} KB, {N_STREAMS} streams",
            f"{ours.median:.0f}",
            f"{theirs.median:.0f}",
            f"{result[f'throughput_ratio_{label}']:.2f}",
        ],
        [f"CPU ms per chunk, {label[:-1]} KB", _shares(ours), _shares(theirs), "–"],
    ]


def _ms(seconds: list[float], share: float) -> float:
    return percentile(seconds, share) * 1000


def _both(seconds: list[float]) -> str:
    return f"{_ms(seconds, 50):.2f} / {_ms(seconds, 95):.2f}"


def _shares(rates: Rates) -> str:
    return ", ".join(f"{name} {ms:.2f}" for name, ms in rates.cpu_ms_per_chunk.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="300 KB only, one short round")
    quick = Plan(idle=20, rounds=1, window_s=1.0, sizes=("300k",))
    plan = quick if parser.parse_args().quick else Plan()
    # The bell complains when its Redis is stopped, which is how this ends.
    logging.getLogger("tasks.hearing").setLevel(logging.ERROR)
    facts = machine("redis", "celery", "gunicorn", "flask", "uvicorn", "starlette")
    print(describe(facts))
    fast = [name for name in ("uvloop", "httptools") if importlib.util.find_spec(name)]
    print(f"The in-process rival runs uvicorn with {' and '.join(fast) or 'its plain loop'}")
    result = run(plan)
    print(json_line({"benchmark": "pipeline", **facts, **result}))


if __name__ == "__main__":
    main()
