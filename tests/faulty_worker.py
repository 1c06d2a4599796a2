"""A speech worker that breaks on purpose: ``celery -A tests.faulty_worker worker``.

It is the real worker with the real built-in voice. Text with "poison" makes the engine raise,
text with "murder" kills the whole process, as a crash inside a driver would.
"""

import os
import signal
from collections.abc import Sequence

import tasks.worker
from supertonic.engine import Audio, Engine, Utterance
from tasks.celery import app

__all__ = ["app"]


def load_faulty() -> Engine:
    engine = tasks.worker.load_engine()
    speak = engine.synthesize

    def synthesize(utterances: Sequence[Utterance]) -> list[Audio]:
        if any("murder" in utterance.text for utterance in utterances):
            os.kill(os.getpid(), signal.SIGKILL)
        if any("poison" in utterance.text for utterance in utterances):
            raise RuntimeError("poisoned")
        return speak(utterances)

    engine.synthesize = synthesize
    return engine


tasks.worker.engine_factory = load_faulty
