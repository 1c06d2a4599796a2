"""What slices bring: first sound with and without them, ``make bench-slices``.

Claim: a listener alone hears something sooner with slices, by what decoding the rest of the first
chunk takes; with fifty listeners at once the worker makes hardly any slices, and nobody waits
longer than without. Ceiling: the engine's time to the first slice.

The whole service, one worker, full-size random weights (BENCH_ENGINE). Rounds with and without
slices take turns, so that a slow minute hits both. A listener has heard something when the first
``chunk`` event has arrived to its last byte.
"""

import argparse
import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import describe, json_line, machine, percentile, ratio, table
from benchmarks.service import Service

WORKER = "exec celery --quiet -A benchmarks.engine_worker worker --without-mingle --without-gossip"
TEXTS = {
    "clause": "Good evening, and welcome. More is said behind it, for whoever likes to listen.",
    "sentence": "A first sentence without a pause in it as long as first chunks may become.",
}


@dataclass
class Heard:
    """Seconds from asking to the first sound and to the end, and events per first chunk."""

    first_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    slices: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def listen(port: int, text: str, slices: bool, seed: int, heard: Heard) -> None:
    body = json.dumps({"text": text, "slices": slices, "seed": seed, "steps": 2})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    started, first_s, parts, event = time.perf_counter(), 0.0, 0, ""
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/synthesize/stream", body, headers)
        response = connection.getresponse()
        for line in response:
            if line.startswith(b"event: "):
                event = line[7:].strip().decode()
            elif line.startswith(b"data: ") and event == "chunk":
                first_s = first_s or time.perf_counter() - started
                parts += b'"index": 0,' in line[:200]
        if event != "done":
            raise OSError(f"status {response.status}, last event {event!r}")
        heard.first_s.append(first_s)
        heard.whole_s.append(time.perf_counter() - started)
        heard.slices.append(parts)
    except OSError as error:
        heard.errors.append(str(error))
    finally:
        connection.close()


def together(port: int, n: int, text: str, slices: bool, round_: int, heard: Heard) -> None:
    threads = [
        threading.Thread(target=listen, args=(port, text, slices, 1000 * round_ + i, heard))
        for i in range(n)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def compare(port: int, n: int, text: str, rounds: int) -> dict[str, Any]:
    """n listeners at once, in turn with and without slices."""
    with_, without = Heard(), Heard()
    for round_ in range(rounds):
        for heard in (without, with_) if round_ % 2 else (with_, without):
            together(port, n, text, heard is with_, round_ + 500 * (heard is with_), heard)
    result: dict[str, Any] = {"streams": n, "failed": len(with_.errors) + len(without.errors)}
    for name, heard in (("with", with_), ("without", without)):
        result[f"first_p50_ms_{name}"] = percentile(heard.first_s, 50) * 1000
        result[f"first_p95_ms_{name}"] = percentile(heard.first_s, 95) * 1000
        result[f"whole_p50_ms_{name}"] = percentile(heard.whole_s, 50) * 1000
    result["sliced_share"] = sum(parts > 1 for parts in with_.slices) / max(1, len(with_.slices))
    if n == 1 and not result["failed"]:
        result["first_ratio"] = ratio(with_.first_s, without.first_s)
    return result


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", default="full", help="full, or what SUPERTONIC_MODEL takes")
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9, help="of one listener; of many a third")
    parser.add_argument("--quick", action="store_true", help="the built-in voice, once each")
    parsed = parser.parse_args()
    if parsed.quick:
        parsed.engine, parsed.precisions, parsed.streams, parsed.rounds = "tiny", ["auto"], 4, 1
    return parsed


def main() -> None:
    arguments = parse()
    facts = machine("torch", "redis", "celery", "gunicorn", "flask")
    print(describe(facts), flush=True)
    cells: dict[str, dict[str, Any]] = {}
    for precision in arguments.precisions:
        env = {"BENCH_ENGINE": arguments.engine, "SUPERTONIC_PRECISION": precision}
        with Service(**env, SUPERTONIC_MODEL="tiny", SUPERTONIC_MAX_WAIT_S="0") as service:
            service.start("redis")
            service.start("worker", WORKER)
            service.start("web")
            service.wait_until_ready()
            together(service.port, 2, TEXTS["clause"], True, 0, Heard())
            for name, text in TEXTS.items():
                cells[f"{precision}, {name}, alone"] = compare(
                    service.port, 1, text, arguments.rounds
                )
            cells[f"{precision}, {arguments.streams} at once"] = compare(
                service.port, arguments.streams, TEXTS["clause"], max(1, arguments.rounds // 3)
            )
    columns = ["first_p50_ms_with", "first_p50_ms_without", "first_p95_ms_with"]
    columns += ["first_p95_ms_without", "whole_p50_ms_with", "whole_p50_ms_without", "sliced_share"]
    rows = [[name, *(f"{cell[column]:.4g}" for column in columns)] for name, cell in cells.items()]
    print(table(["", *columns], rows))
    failed = sum(cell["failed"] for cell in cells.values())
    print(json_line({"benchmark": "slices", **facts, "failed": failed, "cells": cells}))


if __name__ == "__main__":
    main()
