"""What all cores make together, as threads of one worker: ``make bench-cores``.

Claim: threads on different cores hardly wait for each other, although they share one Python.
Ceiling: a process per core, which shares nothing but the machine. All speak the same mixed texts,
one way after the other, round by round; ratios are medians of the rounds'.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from benchmarks.engines import ENGINE_ENV
from benchmarks.measure import describe, json_line, machine, table
from supertonic.cores import one_per_core, usable_cores
from supertonic.prepared import has_fast_bfloat16

ONE, THREADS, PROCESSES = "one core", "a thread per core", "a process per core"


def rates(engine: str, precision: str, groups: Collection[Collection[int]]) -> float:
    """Audio seconds per second of a process on each group of cores, all at the same time."""
    env = os.environ | ENGINE_ENV
    env |= {"BENCH_ENGINE": engine, "SUPERTONIC_PRECISION": precision, "SUPERTONIC_DEVICE": "cpu"}

    def rate(cores: Collection[int]) -> float:
        command = [sys.executable, "-m", "benchmarks.engines", *map(str, cores)]
        ended = subprocess.run(
            command, env=env, stdout=subprocess.PIPE, text=True, timeout=300, check=True
        )
        return float(ended.stdout.split()[-1])

    with ThreadPoolExecutor(len(groups)) as pool:
        return sum(pool.map(rate, groups))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, the built-in voice only")
    arguments = parser.parse_args()
    facts = machine("torch")
    print(describe(facts))
    engines = [("tiny", "float32")]
    if not arguments.quick:
        engines += [("full", "float32"), *([("full", "bfloat16")] if has_fast_bfloat16() else [])]
    cores = one_per_core()[: usable_cores()]
    ways = {ONE: [cores[:1]], THREADS: [cores], PROCESSES: [[core] for core in cores]}
    found, rows = {}, []
    for engine, precision in engines:
        rounds = [
            {name: rates(engine, precision, groups) for name, groups in ways.items()}
            for _ in range(1 if arguments.quick else arguments.rounds)
        ]
        of = {name: median(one[name] for one in rounds) for name in ways}
        times = median(one[THREADS] / one[ONE] for one in rounds)
        share = median(one[THREADS] / one[PROCESSES] for one in rounds)
        of_all = [f"{value:.0f}" for value in of.values()]
        rows.append([f"{engine}, {precision}", *of_all, f"{times:.2f}", f"{share:.2f}"])
        found[f"{engine} {precision}"] = of | {
            "threads_vs_one": times,
            "threads_vs_processes": share,
        }
    head = ["audio-s/s", *ways, "threads ÷ one core", "threads ÷ processes"]
    print(table(head, rows))
    print(json_line({"benchmark": "cores", **facts, "rates": found}))


if __name__ == "__main__":
    main()
