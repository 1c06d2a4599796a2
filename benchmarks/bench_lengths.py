"""What a worker gathers that meets every length of text, ``make bench-lengths``.

Claim: kernels are built for few sizes only, so memory stops growing soon and a length that comes
for the first time costs no more than one that has been there. Batches of one to five texts of
random length are spoken on one core, twice; then others, twice.
"""

import argparse
import os
import random
import resource
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import describe, json_line, machine, table

WORDS = "the lights of a town were out of sight and only sound left was water by night " * 9


def rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def batches(n: int, dice: random.Random) -> list[Any]:
    from supertonic.utterance import Utterance

    words = WORDS.split()

    def text() -> str:
        return " ".join(dice.sample(words, dice.randint(4, 50))) + "."

    return [
        [Utterance(text(), "en", "M1", 2, 1.05, 7, row) for row in range(dice.randint(1, 5))]
        for _ in range(n)
    ]


def speak(engine: Any, some: list[Any]) -> float:
    """Seconds of sound per second."""
    started, audio_s = time.perf_counter(), 0.0
    for batch in some:
        audios = engine.synthesize(batch, cores=1)
        audio_s += sum(len(audio.samples) / audio.sample_rate for audio in audios)
    return audio_s / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", default="tiny", help="tiny, or full: the published size")
    parser.add_argument("--batches", type=int, default=150)
    parser.add_argument("--quick", action="store_true", help="a few batches")
    arguments = parser.parse_args()
    # As in a worker, and before torch comes in.
    os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "8192"
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ["BENCH_ENGINE"] = arguments.engine
    from benchmarks.engines import make_engine
    from supertonic.memory import reuse_large_buffers

    facts = machine("torch")
    print(describe(facts))
    engine, dice = make_engine(), random.Random(1)
    reuse_large_buffers()
    found = [{"lengths": "before", "audio_s_per_s": None, "rss_mb": rss_mb()}]
    for name in ("new", "others"):
        some = batches(5 if arguments.quick else arguments.batches, dice)
        for again in ("", ", again"):
            rate = speak(engine, some)
            found.append({"lengths": name + again, "audio_s_per_s": rate, "rss_mb": rss_mb()})
    rows = [
        [row["lengths"], f"{row['audio_s_per_s'] or 0:.0f}", f"{row['rss_mb']:.0f}"]
        for row in found
    ]
    print(table(["lengths", "audio-s/s", "memory, MB"], rows))
    print(json_line({"benchmark": "lengths", **facts, "engine": arguments.engine, "rows": found}))


if __name__ == "__main__":
    main()
