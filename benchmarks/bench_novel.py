"""What a novel costs as one long job: ``make bench-novel``.

Claim: a million characters are accepted in about a second while others are answered at once, and
web, files worker and Redis hold a small multiple of the text, however long its sound is. The null
engine speaks without taking time (0.4 s of sound a chunk), so what is measured is all the rest.
"""

import argparse
import http.client
import json
import random
import time
from typing import Any

from benchmarks.background import Background
from benchmarks.measure import describe, json_line, machine, percentile, table
from benchmarks.service import Service, get_status
from tasks.events import connect

WORKER = "exec celery --quiet -A benchmarks.null_worker worker --without-gossip --without-mingle"
WORDS = (
    "the a lamp keeper boat fog stairs night morning sea letter string box water light walked said"
    " nothing river old young and but"
).split()
MB = 1_000_000
LIMIT_S = 900.0


def novel(characters: int) -> str:
    """Sentences of 6 to 22 words in paragraphs; the same in every run."""
    dice, sentences, length = random.Random(1), [], 0
    while length < characters:
        words = " ".join(dice.choices(WORDS, k=dice.randint(6, 22)))
        sentences.append(words.capitalize() + dice.choice((". ", ". ", ". ", ".\n\n")))
        length += len(sentences[-1])
    return "".join(sentences)[:characters]


class Others(Background):
    """Somebody who asks for the voices ten times a second, and how long each answer took."""

    def __init__(self, port: int) -> None:
        super().__init__(every_s=0.1)
        self.port = port
        self.took_s: list[float] = []
        self.failed = 0

    def step(self) -> None:
        began = time.perf_counter()
        self.failed += get_status(self.port, "/voices") != 200
        self.took_s.append(time.perf_counter() - began)


def call(port: int, method: str, path: str, body: bytes = b"") -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, {"Content-Type": "text/plain"})
    answer = connection.getresponse()
    found = json.loads(answer.read())
    if answer.status >= 400:
        raise RuntimeError(f"{method} {path}: {found}")
    return found


def measure(service: Service, characters: int, chunk_chars: int) -> dict[str, Any]:
    """One novel from its submission to the end of its sound."""
    redis, text = connect(service.redis_url), novel(characters).encode()
    names = ("web", "files")
    before = {name: service.rss_bytes(name) for name in names}
    used = peak_redis = int(redis.info("memory")["used_memory"])  # type: ignore[index]
    peaks = dict(before)
    path = f"/synthesize/long?target_chunk_chars={chunk_chars}&max_chunk_chars={chunk_chars}"
    with Others(service.port) as others:
        began = time.perf_counter()
        job = call(service.port, "POST", path, text)
        accepted_s, n_asked = time.perf_counter() - began, len(others.took_s)
        while job["state"] != "done":
            if job["state"] == "failed" or time.perf_counter() - began > LIMIT_S:
                raise RuntimeError(f"the job is not done: {job}")
            time.sleep(0.2)
            job = call(service.port, "GET", f"/jobs/{job['job_id']}")
            peaks = {name: max(peaks[name], service.rss_bytes(name)) for name in names}
            memory: Any = redis.info("memory")
            peak_redis = max(peak_redis, int(memory["used_memory"]))
        done_s = time.perf_counter() - began
    began = time.perf_counter()
    call(service.port, "GET", "/jobs")
    listed_s = time.perf_counter() - began
    redis.close()
    return {
        "characters": characters,
        "chunks": job["chunks_total"],
        "accepted_s": accepted_s,
        "others_max_s_while_accepted": max(others.took_s[: n_asked + 1]),
        "done_s": done_s,
        "chunks_per_s": job["chunks_total"] / done_s,
        "others_p99_s": percentile(others.took_s, 99),
        "others_max_s": max(others.took_s),
        "others_failed": others.failed,
        "list_s": listed_s,
        "redis_mb": (peak_redis - used) / MB,
        **{f"{name}_mb": (peaks[name] - before[name]) / MB for name in names},
    }


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    with Service(NULL_BYTES="17640", SUPERTONIC_MAX_WAIT_S="0") as service:
        for name, command in (("redis", ""), ("worker", WORKER), ("files", ""), ("web", "")):
            service.start(name, command)
        service.wait_until_ready()
        # What a first job brings into memory is not a novel's.
        measure(service, 5_000, arguments.chunk_chars)
        sizes = [20_000] if arguments.quick else arguments.characters
        return [measure(service, size, arguments.chunk_chars) for size in sizes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    sizes = [100_000, 500_000, 1_000_000]
    parser.add_argument("--characters", type=int, nargs="+", default=sizes)
    parser.add_argument("--chunk-chars", type=int, default=300, help="most of a chunk")
    parser.add_argument("--quick", action="store_true", help="a short story")
    facts = machine("redis", "celery", "gunicorn", "flask")
    print(describe(facts))
    rows = run(parser.parse_args())
    print(table(list(rows[0]), [[f"{value:.4g}" for value in row.values()] for row in rows]))
    print(json_line({"benchmark": "novel", **facts, "novels": rows}))


if __name__ == "__main__":
    main()
