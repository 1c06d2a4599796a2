"""What listeners get from the whole service under load: ``make bench-service``.

Claim: first sound in time and no silence while playing, for a burst of 100, for 20 strangers a
second, and for 100 and 500 people who listen to the end, with long jobs in the background; beside
a minimal in-process batcher (benchmarks/inprocess.py) on the same engine in the same run.
Ceiling: the engine's rate. The null engine shows what queue and web can carry at most.

Load is open: every request has the moment it was meant to be sent, and waiting counts from there.
Listeners play in real time. C0, C50 and C100 are the shares of streams of several chunks whose
longest silence is at most 0, 50 and 100 ms; a failed or refused stream counts as one that is not.
Client and servers share the cores. Everything listens on 127.0.0.1 and is stopped at the end.

``--capacity`` looks for the most people who can listen without a gap while a long job runs.
``--soak`` keeps a moderate load up and asks whether memory grows.
"""

import argparse
import asyncio
import http.client
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import bench_pipeline, queue_rows, traffic
from benchmarks.engines import ENGINE_ENV
from benchmarks.measure import describe, json_line, machine, percentile, table
from benchmarks.playback import continuity
from benchmarks.service import Service, free_port
from benchmarks.soak import RETENTION, soak
from benchmarks.sse_client import Heard
from benchmarks.traffic import MIXED, SHORT, Goal

SERVICE, RIVAL = "service", "in-process"
HEADER = (
    "engine",
    "load",
    "who",
    "streams",
    "failed",
    "refused",
    "first sound p50 / p95 / p99 ms",
    "longest silence, p99 / max s",
    "C0 / C50 / C100 % (C50 of the admitted)",
    "audio-s/s",
    "cores used",
)
# Enough that the built-in voice is not done with them before the listeners are.
JOBS = 6
# Names of the pipeline's rows in the last line of JSON.
PIPELINE = {
    "idle_p50_ms": "idle_p50_ms",
    "idle_p95_ms": "idle_p95_ms",
    "http_p50_ms": "http_p50_ms",
    "http_p95_ms": "http_p95_ms",
    "sse_300k_per_s": "chunks_per_s_300k",
    "sse_30k_per_s": "chunks_per_s_30k",
    "inprocess_http_p50_ms": "inprocess_http_p50_ms",
    "inprocess_sse_300k_per_s": "inprocess_chunks_per_s_300k",
    "inprocess_sse_30k_per_s": "inprocess_chunks_per_s_30k",
}


@dataclass(frozen=True)
class Mix:
    """One kind of load. Only the service can take long jobs meanwhile."""

    name: str
    ask: Callable[[Goal], Coroutine[Any, Any, list[Heard]]]
    with_jobs: bool = False


def mixes(quick: bool) -> list[Mix]:
    if quick:
        return [
            Mix("burst of 10", lambda goal: traffic.burst(goal, 10)),
            Mix("5 requests/s", lambda goal: traffic.arrivals(goal, 5, 2, {SHORT: 1})),
            Mix("4 users + jobs", lambda goal: traffic.users(goal, 4, 1, 8, {SHORT: 1}), True),
        ]
    return [
        Mix("burst of 100", lambda goal: traffic.burst(goal, 100)),
        Mix("20 requests/s", lambda goal: traffic.arrivals(goal, 20, 15, {SHORT: 1})),
        Mix("100 users", lambda goal: traffic.users(goal, 100, 12, 15, MIXED)),
        Mix("500 users", lambda goal: traffic.users(goal, 500, 12, 15, MIXED)),
        Mix("100 users + jobs", lambda goal: traffic.users(goal, 100, 12, 15, MIXED), True),
    ]


class Stage:
    """The running competitors on one engine, and what to ask of them."""

    def __init__(self, service: Service, engine: str) -> None:
        self.service = service
        self.engine = engine
        self.rival_port = free_port()
        self.processes: dict[str, tuple[str, ...]] = {
            SERVICE: ("web", "worker", "files", "redis"),
            RIVAL: (RIVAL,),
        }

    def start(self, with_rival: bool = True) -> None:
        for name in ("redis", "files", "web"):
            self.service.start(name)
        # The worker sets these itself, and the rival is given the same.
        env = ENGINE_ENV | {"BENCH_ENGINE": self.engine, "SUPERTONIC_MODEL": self.engine}
        worker = ""  # as the Procfile says
        if self.engine in ("null", "full"):
            worker = "exec celery --quiet -A benchmarks.engine_worker worker"
            worker += " --without-gossip --without-mingle -n worker-$$@%h"
            del env["SUPERTONIC_MODEL"]
        self.service.start("worker", worker, **env)
        # Before it is ready a worker measures how fast it is; the rival's start would slow it down.
        self.service.wait_until_ready()
        if with_rival:
            rival = "exec uvicorn benchmarks.inprocess:app --host 127.0.0.1 --log-level warning"
            self.service.start(RIVAL, f"{rival} --port {self.rival_port} --backlog 2048", **env)
            self.service.wait_for(self.rival_port, "/", 404)
        time.sleep(1.0)  # both web processes know the worker

    def port(self, name: str) -> int:
        return self.service.port if name == SERVICE else self.rival_port

    def run(self, mix: Mix, name: str) -> dict[str, Any]:
        """One kind of load on one competitor."""
        jobs = [self.start_job() for _ in range(JOBS)] if mix.with_jobs else []
        before = {one: self.service.cpu_s(one) for one in self.processes[name]}
        client_s, started = time.process_time(), time.perf_counter()
        heard = asyncio.run(mix.ask(Goal(self.port(name))))
        wall_s = time.perf_counter() - started
        cores = {one: (self.service.cpu_s(one) - cpu) / wall_s for one, cpu in before.items()}
        cores["client"] = (time.process_time() - client_s) / wall_s
        chunks = [self.end_job(job_id) for job_id in jobs]
        for error in traffic.errors(heard):
            print(f"{self.engine}, {mix.name}, {name}: {error}", file=sys.stderr)
        found = summary(heard) | {"cores": cores}
        if mix.with_jobs:
            found["job_chunks"] = sum(chunks)
        return found

    def start_job(self) -> str:
        """Put a long job into the background; its id."""
        text = traffic.text_of(45_000)
        return str(self.call("POST", "/synthesize/long", {"text": text})["job_id"])

    def end_job(self, job_id: str) -> int:
        """Cancel it; how many of its chunks are done."""
        done = int(self.call("GET", f"/jobs/{job_id}")["chunks_done"])
        self.call("DELETE", f"/jobs/{job_id}")
        return done

    def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=30)
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read().decode()
        connection.close()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:500]}")
        return dict(json.loads(content)) if content else {}


def summary(heard: Sequence[Heard]) -> dict[str, Any]:
    """Figures of one load. Silences are those of streams that came, or were meant to come, in
    several pieces.
    """
    first = [one.first_s for one in heard if one.first_s is not None]
    several = [one for one in heard if max(one.total, one.playback.pieces) != 1]
    worst = [one.worst_s for one in several]
    silences = [silence for silence in worst if silence is not None]
    admitted = [one.worst_s for one in several if not one.is_refused]
    audio_s = sum(one.playback.audio_s for one in heard)
    begin = min((one.intended_at for one in heard), default=0.0)
    seconds = max((one.ended_at for one in heard), default=0.0) - begin
    return {
        "streams": len(heard),
        "failed": sum(bool(one.error) and not one.is_refused for one in heard),
        "refused": sum(one.is_refused for one in heard),
        **{f"first_p{share}_ms": percentile(first, share) * 1000 for share in (50, 95, 99)},
        "underrun_p99_s": percentile(silences, 99),
        "underrun_max_s": max(silences, default=float("nan")),
        **{f"c{ms}": continuity(worst, ms / 1000) for ms in (0, 50, 100)},
        "admitted_c50": continuity(admitted, 0.05),
        "audio_s_per_s": audio_s / seconds if seconds else float("nan"),
        "streams_per_s": len(heard) / seconds if seconds else float("nan"),
    }


def row(engine: str, mix: str, who: str, found: dict[str, Any]) -> list[str]:
    first = " / ".join(f"{found[f'first_p{share}_ms']:.0f}" for share in (50, 95, 99))
    shares = " / ".join(f"{found[f'c{ms}']:.0f}" for ms in (0, 50, 100))
    shares += f" ({found['admitted_c50']:.0f})"
    silence = f"{found['underrun_p99_s']:.2f} / {found['underrun_max_s']:.2f}"
    cores = ", ".join(f"{name} {share:.2f}" for name, share in found["cores"].items())
    counts = [str(found[name]) for name in ("streams", "failed", "refused")]
    rate = f"{found['audio_s_per_s']:.0f}"
    return [engine, mix, who, *counts, first, silence, shares, rate, cores]


def settings(arguments: argparse.Namespace, n_streams: int = 600) -> dict[str, str]:
    """Of the service: a thread for every stream, and the device that was asked for."""
    return {
        "SUPERTONIC_WEB_THREADS": str(max(100, n_streams)),
        "SUPERTONIC_DEVICE": arguments.device,
        "SUPERTONIC_PRECISION": arguments.precision,
    }


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every load on every engine, the service and its rival in turn."""
    found: dict[str, Any] = {}
    rows = []
    for engine in arguments.engines:
        with Service(**settings(arguments)) as service:
            stage = Stage(service, engine)
            stage.start()
            for name in (SERVICE, RIVAL):
                asyncio.run(traffic.burst(Goal(stage.port(name)), 2))
            for mix in mixes(arguments.quick):
                for name in (SERVICE,) if mix.with_jobs else (SERVICE, RIVAL):
                    one = stage.run(mix, name)
                    found[f"{engine}, {mix.name}, {name}"] = one
                    rows.append(row(engine, mix.name, name, one))
                    print(" ".join(rows[-1]), file=sys.stderr, flush=True)
                    time.sleep(1.0)
    print(table(HEADER, rows))
    return found


def capacity(arguments: argparse.Namespace) -> dict[str, Any]:
    """The most people who can listen all the time without a gap above 50 ms, while long jobs run,
    as a share of what the engine alone makes, and of what it would make with that share of the
    cores which web, Redis and the listeners left the worker.
    """
    engine = arguments.engines[-1]
    limits = {"SUPERTONIC_MAX_WAIT_S": "0"} if arguments.admit_all else {}
    with Service(**settings(arguments, 1000), **limits) as service:
        rate = engine_rate(service, engine)
        print(f"{engine}: the engine alone makes {rate:.0f} seconds of sound per second")
        stage = Stage(service, engine)
        stage.start(with_rival=False)
        found: dict[str, Any] = {"engine": engine, "engine_rate": rate, "gapless": 0, "tried": []}
        shares = (0.3, 0.5) if arguments.quick else (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
        for n_users in arguments.listeners or [max(1, int(rate * share)) for share in shares]:
            warm_s, seconds = (2, 3) if arguments.quick else (12, 20)

            def ask(goal: Goal, n: int = n_users, warm: int = warm_s, s: int = seconds) -> Any:
                return traffic.users(goal, n, warm, s, MIXED, think_s=0.0)

            one = stage.run(Mix(f"{n_users} listeners", ask, with_jobs=True), SERVICE)
            left = rate
            if not arguments.device.startswith("cuda"):
                left *= one["cores"]["worker"] / len(os.sched_getaffinity(0))
            one["engine_rate_left"] = left
            found["tried"].append({"share": n_users / rate, "listeners": n_users, **one})
            print(" ".join(row(engine, f"{n_users} listeners", SERVICE, one)), flush=True)
            if one["failed"] or one["refused"] or one["c50"] < 100:
                break
            found["gapless"], found["gapless_share"] = n_users, n_users / rate
            found["gapless_share_left"] = n_users / left
            print(f"{n_users / rate:.2f} of the engine alone, {n_users / left:.2f} with its cores")
    return found


def engine_rate(service: Service, engine: str) -> float:
    """Of the engine by itself, in a process of its own."""
    command = f"exec {sys.executable} -m benchmarks.engines"
    service.start("rate", command, BENCH_ENGINE=engine)
    process = service.processes.pop("rate")
    process.wait(120)
    return float((service.folder / "rate.log").read_text().splitlines()[-1])


def without_speech(quick: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What queue and web cost when speaking takes no time, by benchmarks/bench_pipeline.py and
    benchmarks/queue_rows.py. A smoke run leaves out the first, which has a smoke run of its own.
    """
    found = {"failed": 0} if quick else bench_pipeline.run(bench_pipeline.Plan())
    queue = queue_rows.measure(0.5, 3) if quick else queue_rows.measure(4.0, 100)
    print(f"published → seen, 300 KB: {queue['chunks_per_s']:.0f} chunks/s")
    high = f"{queue['high_wait_p50_ms']:.0f} / {queue['high_wait_p99_ms']:.0f}"
    print(f"first chunk behind a backlog of 3,000, batches of 50 ms, p50 / p99 ms: {high}")
    return found, queue


def last_line(
    pipeline: dict[str, Any], queue: dict[str, Any], loads: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """All that was measured; what a smoke run leaves out is None."""
    rows = {name: pipeline.get(key) for name, key in PIPELINE.items()}
    failed = sum(part["failed"] for part in (pipeline, queue, *loads.values()))
    return rows | queue | {"failed": failed, "loads": loads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run; its figures mean little")
    parser.add_argument(
        "--engines",
        nargs="+",
        default=[],
        help="null, tiny, full (published size, random weights), supertonic-2 or a directory; "
        "null and tiny unless said otherwise, tiny for a smoke run",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="auto", help="auto, float32, bfloat16, float16")
    parser.add_argument("--gpu", action="store_true", help="null and full, on cuda")
    parser.add_argument("--capacity", action="store_true", help="only the most gapless listeners")
    parser.add_argument(
        "--listeners", type=int, nargs="+", help="with --capacity: try these numbers of people"
    )
    parser.add_argument("--admit-all", action="store_true", help="with --capacity: refuse nobody")
    parser.add_argument("--soak", type=float, metavar="MINUTES", nargs="?", const=20.0)
    arguments = parser.parse_args()
    arguments.engines = arguments.engines or (["tiny"] if arguments.quick else ["null", "tiny"])
    if arguments.gpu:
        arguments.engines, arguments.device = ["null", "full"], "cuda"
    # The bell complains when its Redis is stopped, which is how each part ends.
    logging.getLogger("tasks.hearing").setLevel(logging.ERROR)
    facts = machine("redis", "celery", "gunicorn", "flask", "uvicorn", "starlette", "torch")
    print(describe(facts))
    result: dict[str, Any]
    if arguments.soak is not None:
        result = run_soak(arguments)
    elif arguments.capacity:
        result = {"capacity": capacity(arguments)}
    else:
        pipeline, queue = without_speech(arguments.quick)
        result = last_line(pipeline, queue, compare(arguments))
    print(json_line({"benchmark": "service", **facts, **result}))


def run_soak(arguments: argparse.Namespace) -> dict[str, Any]:
    with Service(**settings(arguments), **RETENTION) as service:
        stage = Stage(service, arguments.engines[-1])
        stage.start(with_rival=False)
        return soak(service, stage.start_job, arguments.soak * 60)


if __name__ == "__main__":
    main()
