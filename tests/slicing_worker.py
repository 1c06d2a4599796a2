"""A speech worker that always slices and takes its time: ``celery -A tests.slicing_worker worker``.

It is the real worker with the real built-in voice. Text with "murder" kills the process after its
second slice, once: the file named by SLICING_MARK tells the next worker that it has happened.
While there is a file named by SLICING_HEARD, each slice waits until it says that all before have
been heard; or the web, when it stood still for a moment, would tell of two as one.
"""

import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import tasks.slicing
import tasks.worker
from supertonic.engine import Engine
from supertonic.utterance import Audio, OnSlice, Utterance
from tasks.celery import app

__all__ = ["app"]

tasks.slicing.WORTH_S = 0.0


def n_heard(ears: Path) -> float:
    """All of them where nobody counts."""
    try:
        return int(ears.read_text() or 0)
    except FileNotFoundError:
        return math.inf


def load_slow() -> Engine:
    engine = tasks.worker.load_engine()
    speak = engine.synthesize
    mark, ears = Path(os.environ["SLICING_MARK"]), Path(os.environ["SLICING_HEARD"])

    def synthesize(
        utterances: Sequence[Utterance],
        on_slice: OnSlice | None = None,
        cores: int | None = None,
    ) -> list[Audio]:
        is_murder = any("murder" in utterance.text for utterance in utterances)
        heard = []

        def slowly(row: int, samples: np.ndarray) -> bool | None:
            assert on_slice is not None
            is_hurried = on_slice(row, samples)
            heard.append(row)
            if len(heard) == 2 and is_murder and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            give_up_at = time.monotonic() + 10
            while n_heard(ears) < len(heard) and time.monotonic() < give_up_at:
                time.sleep(0.005)
            return is_hurried

        return speak(list(utterances), slowly if on_slice else None, cores)

    engine.synthesize = synthesize
    return engine


tasks.worker.engine_factory = load_slow
