"""A speech worker of a known pace: ``celery -A tests.paced_worker worker``.

Every utterance hums for as long as was estimated for its text and takes that long divided by
PACE to make, whatever the machine does; so a test knows what the service can carry. AT_ONCE
batches are made at the same time, each at that pace.
"""

import os
import time
from collections.abc import Sequence

import numpy as np

import tasks.worker
from benchmarks.null_engine import SAMPLE_RATE, NullEngine
from supertonic.text import estimate_seconds
from supertonic.utterance import Audio, Utterance
from tasks.celery import app

__all__ = ["app"]


class PacedEngine(NullEngine):
    fingerprint = "paced"
    # As on a CPU: a batch is no longer than the longest chunk.
    size_per_pass = 256
    batches_at_once = int(os.environ.get("AT_ONCE", "1"))

    def synthesize(self, utterances: Sequence[Utterance], **how: object) -> list[Audio]:
        lengths = [estimate_seconds(row.text, row.language, row.speed) for row in utterances]
        time.sleep(sum(lengths) / float(os.environ["PACE"]))
        return [Audio(hum(row, s), SAMPLE_RATE) for row, s in zip(utterances, lengths, strict=True)]


def hum(row: Utterance, seconds: float) -> np.ndarray:
    """A tone of its own for every seed and index."""
    pitch = 200 + 10 * (row.seed % 40) + row.index
    at = np.arange(round(seconds * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    return 0.1 * np.sin(2 * np.pi * pitch * at, dtype=np.float32)


tasks.worker.engine_factory = PacedEngine
