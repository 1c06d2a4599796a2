"""What is trained: sizes, voices, and where the stages keep their files.

Nothing in `supertonic/` reads this; the exported voice brings its own `config.json`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from supertonic.config import (
    DurationPredictorConfig,
    ModelConfig,
    TextEncoderConfig,
    VectorEstimatorConfig,
    VocoderConfig,
)

WORK = Path(os.environ.get("VOICE_DIR", "data/voice"))
SEED = 86

CONFIG = ModelConfig(
    longest_text=90,  # alignment over more than this was not learned in the time
    sample_rate=22050,
    base_chunk_size=256,
    chunk_compress_factor=6,
    ldim=18,
    n_style=16,
    style_dim=64,
    text_encoder=TextEncoderConfig(
        width=128,
        convnext_hidden=512,
        dilations=(1, 1, 1, 1),
        attention_layers=3,
        heads=4,
        ffn_hidden=512,
        style_heads=2,
    ),
    duration_predictor=DurationPredictorConfig(
        width=64,
        convnext_hidden=192,
        dilations=(1, 1, 1, 1),
        attention_layers=2,
        heads=2,
        ffn_hidden=192,
        n_style=8,
        style_dim=16,
        head_hidden=96,
    ),
    vector_estimator=VectorEstimatorConfig(
        width=224,
        convnext_hidden=256,
        blocks=4,
        dilations=(1, 2, 4),
        last_dilations=(1, 1),
        time_dim=64,
        time_hidden=128,
        attention_width=128,
        text_heads=4,
        style_heads=2,
    ),
    vocoder=VocoderConfig(
        width=128, convnext_hidden=384, dilations=(1, 2, 4, 1, 2, 4, 1, 1), head_hidden=512
    ),
)

CLOCK = 3  # base frames after which pulses and noise repeat


@dataclass(frozen=True)
class Voice:
    variant: str  # of espeak-ng
    pulses: int  # glottal pulses per CLOCK frames: 28.7 Hz each
    pitch: int  # espeak's setting that comes nearest to it, measured
    share: float  # of the English utterances

    @property
    def hertz(self) -> float:
        return self.pulses * CONFIG.sample_rate / (CLOCK * CONFIG.base_chunk_size)


VOICES = {
    "M1": Voice("m1", 4, 79, 0.24),
    "M2": Voice("m2", 3, 45, 0.12),
    "M3": Voice("m3", 5, 90, 0.07),
    "M4": Voice("m4", 4, 83, 0.07),
    "M5": Voice("m5", 3, 47, 0.07),
    "F1": Voice("f1", 7, 70, 0.12),
    "F2": Voice("f2", 6, 51, 0.10),
    "F3": Voice("f3", 8, 74, 0.07),
    "F4": Voice("f4", 7, 69, 0.07),
    "F5": Voice("f5", 6, 45, 0.07),
}
TEACHERS = {"en": "en-us", "ko": "ko", "es": "es", "pt": "pt-br", "fr": "fr"}


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
