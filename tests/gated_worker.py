"""A speech worker that waits where a test wants it: ``celery -A tests.gated_worker worker``.

Text with "gate" and a name is spoken once a file of that name is in the folder GATES; all other
text takes no time. One chunk makes a batch, so nothing but the gate keeps a chunk waiting.
"""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tasks.worker
from benchmarks.null_engine import NullEngine
from supertonic.utterance import Audio, Utterance
from tasks.celery import app

__all__ = ["app"]

GATE = re.compile(r"\bgate (\w+)")


class GatedEngine(NullEngine):
    def synthesize(self, utterances: Sequence[Utterance], *how: Any, **more: Any) -> list[Audio]:
        for name in GATE.findall(" ".join(utterance.text for utterance in utterances)):
            while not (Path(os.environ["GATES"]) / name).exists():
                time.sleep(0.02)
        return super().synthesize(utterances, *how, **more)


tasks.worker.engine_factory = GatedEngine
