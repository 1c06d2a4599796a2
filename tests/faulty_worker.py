"""A speech worker that breaks on purpose: ``celery -A tests.faulty_worker worker``.

It is the real worker with the real built-in voice. Text with "poison" makes the engine raise, text
with "murder" kills the whole process, as a crash inside a driver or the system's own killer would,
text with "glutton" asks for more memory than the process may have, and text with "nap" takes NAP_S.
"""

import os
import resource
import signal
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import tasks.worker
from supertonic.engine import Engine
from supertonic.utterance import Audio, Utterance
from tasks.celery import app

__all__ = ["app"]

LIMIT_BYTES = 1 << 36
NAP_S = 9.0


def load_faulty() -> Engine:
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    engine = tasks.worker.load_engine()
    speak = engine.synthesize

    def synthesize(utterances: Sequence[Utterance], *how: Any, **more: Any) -> list[Audio]:
        if any("murder" in utterance.text for utterance in utterances):
            os.kill(os.getpid(), signal.SIGKILL)
        if any("trance" in utterance.text for utterance in utterances):
            time.sleep(3600)
        if any("nap" in utterance.text for utterance in utterances):
            time.sleep(NAP_S)
        if any("poison" in utterance.text for utterance in utterances):
            raise RuntimeError("poisoned")
        if any("glutton" in utterance.text for utterance in utterances):
            np.ones(LIMIT_BYTES, np.uint8)
        return speak(utterances, *how, **more)

    engine.synthesize = synthesize
    return engine


tasks.worker.engine_factory = load_faulty
