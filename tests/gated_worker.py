"""A speech worker that stops at a gate: ``celery -A tests.gated_worker worker``.

It has the null engine. Text with "gate" in it takes until the file GATE is gone, so that a test can
look at what is half made for as long as it likes (``Stack.shut_gate``).
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tasks.worker
from benchmarks.null_engine import NullEngine
from supertonic.utterance import Audio, Utterance
from tasks.celery import app

__all__ = ["app"]


class GatedEngine(NullEngine):
    gate = Path(os.environ["GATE"])

    def synthesize(self, utterances: Sequence[Utterance], *how: Any, **more: Any) -> list[Audio]:
        while any("gate" in row.text for row in utterances) and self.gate.exists():
            time.sleep(0.01)
        return super().synthesize(utterances, *how, **more)


tasks.worker.engine_factory = GatedEngine
