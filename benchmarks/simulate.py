"""The schedule by a clock of its own: ``python -m benchmarks.simulate``.

Thousands of listeners and up to 64 workers in a minute, on ``tasks/batching.py`` and
``tasks/pace.py`` as they are: only the clock, the engine and the network are models. Texts are
really cut, chunks get their deadlines from ``tasks/sending.py``, and workers claim messages by the
credits of ``tasks/lanes.py``. An engine is a cost (seconds before the first row, per row, per
second of audio; a worker computes several batches at once, one per core), its speech is longer or
shorter than estimated, and no two batches take equally long. A listener plays what he has and
counts how long he hears nothing in between.

Claim: by deadlines, streams stay without gaps up to a higher load than first come, first served,
or than first chunks first. The rivals are the same code with other deadlines. What it cannot show:
the costs of messages, of Redis and of the web.
"""

import argparse
import heapq
import math
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.measure import describe, json_line, machine, percentile, table
from celeryconfig import worker_prefetch_multiplier
from supertonic.text import Break, split_text
from tasks.batching import BatchLimits, Waiting, take, wait_until
from tasks.lanes import LANES
from tasks.messages import Chunk, Job, Kind, Piece, SpeechRequest, State, Urgency
from tasks.pace import Cost, Pace, work
from tasks.sending import make_chunks

# Two cores with AMX, full size, bfloat16, 2 steps (BENCHMARKS.md, bench_burst).
DEFAULT, CORES = Cost(fixed_s=0.017, s_per_row=0.010, s_per_work=0.0118), 2
SENTENCES = (
    "It was late in the afternoon when they arrived at the harbour.",
    "Nobody had expected so many people, and the boats were already full.",
    "She asked whether there would be another one before dark.",
    "No.",
    "The man at the counter shook his head, looked at the sky, and went back to his newspaper.",
    "What they did then, without much discussion, was to walk along the shore until the lights of "
    "the town were out of sight and the only sound left was the water.",
    "In the morning everything looked different.",
)
MIX = ((0.5, 60), (0.35, 350), (0.15, 1500))  # share and characters: short, medium, long
TRANSIT_S = 0.005  # from the worker to the ear
C50_S = 0.05
POLICIES = ("deadlines", "first come", "first chunks first")


@dataclass(slots=True)
class Listener:
    """Somebody who plays a stream while it comes."""

    asked_at: float
    pauses: list[float]
    heard: dict[int, float] = field(default_factory=dict)  # index to real seconds
    at: dict[int, float] = field(default_factory=dict)  # index to when it came

    def first_s(self) -> float:
        return self.at[0] - self.asked_at

    def worst_gap_s(self) -> float:
        """The longest silence where speech should have gone on."""
        clock, worst = 0.0, 0.0
        for index, pause_s in enumerate(self.pauses):
            clock = max(clock, self.at[index]) if index == 0 else clock
            gap_s = max(0.0, self.at[index] - clock)
            worst = max(worst, gap_s)
            clock += gap_s + self.heard[index] + pause_s
        return worst


@dataclass
class Worker:
    pace: Pace
    limits: BatchLimits
    held: list[Waiting] = field(default_factory=list)
    batches: list[list[Chunk]] = field(default_factory=list)  # being computed now
    wakes_at: float = math.inf
    credit: dict[Urgency, int] = field(init=False)

    def __post_init__(self) -> None:
        self.credit = {
            Urgency.HIGH: LANES["high"],
            Urgency.NORMAL: worker_prefetch_multiplier * self.pace.batches_at_once,
            Urgency.LOW: LANES["low"],
        }

    @property
    def is_busy(self) -> bool:
        return len(self.batches) == self.pace.batches_at_once


@dataclass(frozen=True)
class Scene:
    """What is simulated. ``per_s`` 0 means that all come at the same moment."""

    policy: str
    n_listeners: int
    per_s: float
    workers: int = 1
    cost: Cost = DEFAULT
    cores: int = CORES
    with_long_jobs: bool = False
    seed: int = 1
    mix: tuple[tuple[float, int], ...] = MIX


def templates(mix: Sequence[tuple[float, int]], dice: random.Random) -> list[list[Chunk]]:
    """Per text length: chunks of texts as the web makes them, sent at second 0."""
    made = []
    for share, length in mix:
        for _ in range(max(1, round(share * 60))):
            text = ""
            while len(text) < length * dice.uniform(0.7, 1.3):
                text += " " + dice.choice(SENTENCES)
            made.append(cut(text.strip()))
    return made


def cut(text: str) -> list[Chunk]:
    share = {Break.CLAUSE: 0.5, Break.WORD: 0.0, Break.END: 0.0}
    pieces = [
        Piece(chunk.text, 0.3 * share.get(chunk.ends_at, 1.0)) for chunk in split_text(text, "en")
    ]
    request = SpeechRequest(
        text[:20], len(text), "M1", "en", steps=2, speed=1.05, seed=0, pause_s=0.3
    )
    job = Job(
        "", Kind.STREAM, State.QUEUED, request, len(pieces), 0, 0, 0, 44_100, 0.0, None, None,
        None, (), "",
    )  # fmt: skip
    chunks = make_chunks(job, pieces, range(len(pieces)))
    sent_at = chunks[0].sent_at
    return [replace(chunk, due=chunk.due - sent_at, sent_at=0.0) for chunk in chunks]


def seen_by(policy: str, chunk: Chunk) -> Chunk:
    """The rivals' deadlines: when a chunk came, or also which queue it came from."""
    if policy == "deadlines":
        return chunk
    rank = {Urgency.HIGH: -1e9, Urgency.NORMAL: 0.0, Urgency.LOW: 1e9}[chunk.urgency]
    due = chunk.sent_at + (rank if policy == "first chunks first" else 0.0)
    return replace(chunk, due=due, kind=Kind.STREAM)


class Simulation:
    def __init__(self, scene: Scene) -> None:
        self.scene, self.dice = scene, random.Random(scene.seed)
        self.listeners: dict[str, Listener] = {}
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.queues: dict[Urgency, deque[Chunk]] = {urgency: deque() for urgency in Urgency}
        shared: OrderedDict[str, float] = OrderedDict()
        self.workers = []
        for _ in range(scene.workers):
            pace = Pace(measured=scene.cost, batches_at_once=scene.cores, delays=shared)
            self.workers.append(Worker(pace, BatchLimits(32, 160.0, 0.005, pace)))
        self.turn = 0
        self.audio_s = self.busy_s = self.low_s = self.ended_at = 0.0
        self.to_hear = 0

    def run(self) -> "Simulation":
        scene, texts = self.scene, templates(self.scene.mix, random.Random(0))
        at = 0.0
        for number in range(scene.n_listeners):
            at += self.dice.expovariate(scene.per_s) if scene.per_s else 0.0
            chunks = self.dice.choice(texts)
            self.to_hear += len(chunks)
            self.when(at, lambda now, n=number, c=chunks: self.ask(now, str(n), c))
        if scene.with_long_jobs:
            self.when(0.0, self.refill)
        while self.events and self.to_hear:
            now, _, act = heapq.heappop(self.events)
            act(now)
        return self

    def when(self, at: float, act: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (at, len(self.events) + self.turn, act))
        self.turn += 1

    def ask(self, now: float, job_id: str, chunks: list[Chunk]) -> None:
        ends = [chunk.due + chunk.seconds for chunk in chunks]
        nexts = [chunk.due for chunk in chunks[1:]] + [ends[-1]]
        pauses = [after - end for after, end in zip(nexts, ends, strict=True)]
        self.listeners[job_id] = Listener(now, pauses)
        for chunk in chunks:
            sent = replace(chunk, job_id=job_id, due=now + chunk.due, sent_at=now)
            self.queues[chunk.urgency].append(seen_by(self.scene.policy, sent))
        self.claim(now)

    def refill(self, now: float) -> None:
        """A long job always has a window of chunks in the queue."""
        queue = self.queues[Urgency.LOW]
        while len(queue) < 32:
            chunk = replace(cut("x" * 20)[0], job_id="book", index=len(queue), kind=Kind.LONG)
            low = replace(chunk, urgency=Urgency.LOW, seconds=19.0, sent_at=now, due=now)
            queue.append(seen_by(self.scene.policy, low))
        self.claim(now)
        self.when(now + 1.0, self.refill)

    def claim(self, now: float) -> None:
        """Messages go to workers in turn, as long as these have credit for more."""
        for urgency, queue in self.queues.items():
            passed = 0
            while queue and passed < len(self.workers):
                self.turn += 1
                worker = self.workers[self.turn % len(self.workers)]
                if not worker.credit[urgency]:
                    passed += 1
                    continue
                passed = 0
                # One request's chunks come in one claim.
                job_id = queue[0].job_id
                while queue and queue[0].job_id == job_id and worker.credit[urgency]:
                    worker.credit[urgency] -= 1
                    worker.held.append(Waiting(queue.popleft(), now))
        for worker in self.workers:
            self.start_all(worker, now)

    def start_all(self, worker: Worker, now: float) -> None:
        """A batch for every core that is free."""
        while worker.held and not worker.is_busy and self.start(worker, now):
            pass

    def start(self, worker: Worker, now: float) -> bool:
        batch = take(worker.held, now, worker.limits, worker.batches)
        if not batch:
            at = wait_until(worker.held, now, worker.limits, worker.batches)
            if at < worker.wakes_at or worker.wakes_at <= now:
                worker.wakes_at = at
                self.when(at, lambda then: self.start_all(worker, then))
            return False
        taken = {id(item) for item in batch}
        worker.held = [item for item in worker.held if id(item) not in taken]
        chunks = [item.chunk for item in batch]
        worker.batches.append(chunks)
        worker.wakes_at = math.inf
        worker.pace.took(chunks, now)
        real = [chunk.seconds * self.dice.lognormvariate(0.0, 0.15) for chunk in chunks]
        works = [work(replace(chunk, seconds=s)) for chunk, s in zip(chunks, real, strict=True)]
        busy_s = self.scene.cost.of(works) * self.dice.lognormvariate(0.0, 0.1)
        self.busy_s += busy_s
        self.when(now + busy_s, lambda then: self.finish(worker, chunks, real, busy_s, then))
        return True

    def finish(
        self, worker: Worker, chunks: list[Chunk], real: list[float], busy_s: float, now: float
    ) -> None:
        worker.batches = [batch for batch in worker.batches if batch is not chunks]
        worker.pace.learn(chunks, busy_s)
        for chunk, seconds in zip(chunks, real, strict=True):
            worker.credit[chunk.urgency] += 1
            self.audio_s += seconds
            if chunk.urgency is Urgency.LOW:
                self.low_s += seconds
                continue
            if self.scene.policy == "deadlines":
                worker.pace.published(chunk, seconds, now)
                worker.pace.untold.clear()
            listener = self.listeners[chunk.job_id]
            listener.heard[chunk.index] = seconds
            before = listener.at.get(chunk.index - 1, 0.0)
            listener.at[chunk.index] = max(now + TRANSIT_S, before)
            self.to_hear -= 1
        self.ended_at = now
        self.claim(now)


def results(scene: Scene) -> dict[str, Any]:
    """What the listeners of a scene got."""
    done = Simulation(scene).run()
    first = [listener.first_s() for listener in done.listeners.values()]
    gaps = [one.worst_gap_s() for one in done.listeners.values() if len(one.pauses) > 1]
    return {
        "policy": scene.policy,
        "workers": scene.workers,
        "per_s": scene.per_s,
        "first_p50_s": percentile(first, 50),
        "first_p95_s": percentile(first, 95),
        "c50": sum(gap <= C50_S for gap in gaps) / max(1, len(gaps)),
        "gap_p99_s": percentile(gaps, 99),
        "audio_s_per_s": done.audio_s / done.ended_at,
        "long_share": done.low_s / done.audio_s,
    }


def capacity_per_s(cost: Cost, cores: int, n_listeners: int) -> float:
    """Listeners per second that one worker serves while it always has full batches to make."""
    done = Simulation(Scene("first come", n_listeners, 0.0, cost=cost, cores=cores)).run()
    return n_listeners / done.ended_at


def sweep(scenes: Sequence[Scene]) -> list[dict[str, Any]]:
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(results, scenes))


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Share of streams without a gap, and the wait for the first sound, against load."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.hashsalt": "simulate", "svg.fonttype": "none"})
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for policy in POLICIES:
        own = [row for row in rows if row["policy"] == policy]
        loads = [row["load"] for row in own]
        left.plot(loads, [100 * row["c50"] for row in own], marker="o", label=policy)
        right.plot(loads, [row["first_p95_s"] for row in own], marker="o", label=policy)
    left.set(xlabel="load", ylabel="streams without a gap above 50 ms, %", ylim=(0, 102))
    right.set(xlabel="load", ylabel="first sound, p95, seconds", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fixed-ms", type=float, default=DEFAULT.fixed_s * 1000)
    parser.add_argument("--row-ms", type=float, default=DEFAULT.s_per_row * 1000)
    parser.add_argument("--audio-s-ms", type=float, default=DEFAULT.s_per_work * 1000)
    parser.add_argument("--cores", type=int, default=CORES)
    parser.add_argument("--listeners", type=int, default=10_000, help="of the runs with workers")
    parser.add_argument("--loads", type=float, nargs="*", default=[0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16, 64])
    parser.add_argument("--plot", type=Path, help="write the plot there, as SVG")
    parser.add_argument("--quick", action="store_true", help="a few listeners")
    options = parser.parse_args()
    started = time.perf_counter()
    cost = Cost(options.fixed_ms / 1000, options.row_ms / 1000, options.audio_s_ms / 1000)
    cores = options.cores
    per_s = capacity_per_s(cost, cores, 30 if options.quick else 300)
    n_listeners = 200 if options.quick else options.listeners
    loads = options.loads[::3] if options.quick else options.loads
    facts = machine()
    print(describe(facts))
    print(f"\n{cost} on each of {cores} cores")
    print(f"{per_s:.2f} listeners per second and worker are load 1\n")

    scenes = [
        Scene(policy, n_listeners // 5, load * per_s, cost=cost, cores=cores, with_long_jobs=True)
        for policy in POLICIES
        for load in loads
    ]
    by_load = sweep(scenes)
    for row, scene in zip(by_load, scenes, strict=True):
        row["load"] = scene.per_s / per_s
    print("One worker, long jobs in the background:\n")
    print(shown(by_load, "policy", "load", "first_p50_s", "first_p95_s", "c50", "gap_p99_s"))

    bursts = sweep(
        [
            Scene(policy, size, 0.0, cost=cost, cores=cores, mix=((1.0, 350),))
            for policy in POLICIES
            for size in ((20,) if options.quick else (20, 100))
        ]
    )
    for row, size in zip(bursts, ((20,) if options.quick else (20, 100)) * 3, strict=True):
        row["streams"] = size
    print("\nA burst on one worker, 350 characters each:\n")
    print(shown(bursts, "policy", "streams", "first_p50_s", "first_p95_s", "c50", "audio_s_per_s"))

    workers = options.workers[:2] if options.quick else options.workers
    scaled = sweep(
        [
            Scene("deadlines", n_listeners, 0.8 * n * per_s, workers=n, cost=cost, cores=cores)
            for n in workers
        ]
    )
    print("\nMore workers at load 0.8:\n")
    print(shown(scaled, "workers", "per_s", "first_p50_s", "first_p95_s", "c50", "gap_p99_s"))
    if options.plot:
        plot(by_load, options.plot)
    result = {
        "loads": by_load,
        "bursts": bursts,
        "workers": scaled,
        "seconds": time.perf_counter() - started,
    }
    print(json_line({"benchmark": "simulate", **facts, **result}))


def shown(rows: Sequence[dict[str, Any]], *columns: str) -> str:
    def cell(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    return table(columns, [[cell(row[name]) for name in columns] for row in rows])


if __name__ == "__main__":
    main()
