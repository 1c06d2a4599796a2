"""An engine that computes nothing: whatever time remains is the queue's and the web's."""

import os
import time
from collections.abc import Sequence

import numpy as np

from supertonic.characters import LANGUAGES
from supertonic.utterance import Audio, OnSlice, Utterance
from supertonic.voices import VOICES

SAMPLE_RATE = 44_100


class NullEngine:
    """Satisfies the worker's needs of an engine and nothing else.

    Each chunk gets the same ready-made tone at once, or after NULL_BATCH_MS per batch. NULL_BYTES
    sets the size of a chunk's 16-bit audio.
    """

    name = "null"
    is_builtin = False
    description = "Null engine for benchmarks: every chunk is the same tone."
    device = "none"
    precision = "none"
    fingerprint = "null"
    sample_rate = SAMPLE_RATE
    voices = VOICES
    languages = LANGUAGES
    batches_at_once = 1

    def __init__(self) -> None:
        n_samples = int(os.environ.get("NULL_BYTES", "300000")) // 2
        self.batch_s = float(os.environ.get("NULL_BATCH_MS", "0")) / 1000
        tone = 0.1 * np.sin(np.arange(n_samples) * (2 * np.pi * 220 / SAMPLE_RATE))
        self.audio = Audio(tone.astype(np.float32), SAMPLE_RATE)

    def check(self) -> None:
        """It always works."""

    def synthesize(
        self,
        utterances: Sequence[Utterance],
        on_slice: OnSlice | None = None,
        cores: int | None = None,
    ) -> list[Audio]:
        if self.batch_s:
            time.sleep(self.batch_s)
        return [self.audio] * len(utterances)

    def idle(self) -> bool:
        return False

    def slices_save_s(self, audio_s: float) -> float:
        return 0.0

    def device_memory_bytes(self) -> int:
        return 0
