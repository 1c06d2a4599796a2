"""The engine a benchmark asks for: BENCH_ENGINE is null, full, or what SUPERTONIC_MODEL takes.

``full`` is the published model's size with random weights: it costs what the real one costs and
says nothing. Random weights would also choose random lengths, so each text is given the length
that it would take to say it.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks.null_engine import NullEngine

# What tasks/worker.py sets for itself.
ENGINE_ENV = {"OMP_WAIT_POLICY": "passive", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192"}
SECONDS_PER_CHARACTER = 0.065
MARKS = 9  # characters that the language tags put around a text


def make_engine() -> Any:
    """As the environment says; the device and precision are the worker's settings."""
    wanted = os.environ.get("BENCH_ENGINE", "null")
    if wanted == "null":
        return NullEngine()
    # Imported here: the null engine needs no torch model.
    from supertonic.loading import load_engine
    from tasks.settings import Settings

    settings = Settings.from_env()
    if wanted == "full":
        engine = _full_size(settings.device, settings.precision)
    else:
        engine = load_engine(wanted, settings.model_dir, settings.device, settings.precision)
    engine.warm_up()
    return engine


def _full_size(device: str, precision: str) -> Any:
    import torch

    from benchmarks.engine_variants import random_model
    from supertonic.config import ModelConfig
    from supertonic.cores import usable_cores
    from supertonic.engine import Engine
    from supertonic.loading import resolve_device, resolve_precision
    from supertonic.prepared import prepare
    from supertonic.styles import Style
    from supertonic.voices import VOICES

    config, device = ModelConfig(), resolve_device(device)
    precision = resolve_precision(config, device) if precision == "auto" else precision
    if device == "cpu":
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    model = prepare(random_model(config), device, precision)
    predictor = model.duration_predictor
    predict = predictor.forward

    def plausible(ids: Any, rows: Any, style_dp: Any) -> Any:
        """Seconds by the length of the text; the prediction costs what it costs."""
        seconds = predict(ids, rows, style_dp)
        # A graph's rows know their lengths on the device only. Each begins with a token.
        lengths = getattr(rows, "own", None)
        lengths = seconds.new_tensor(rows.lengths) if lengths is None else lengths
        return ((lengths - 1 - MARKS).clamp(min=1) * SECONDS_PER_CHARACTER).to(seconds.dtype)

    predictor.forward = plausible  # type: ignore[method-assign]
    draw = np.random.default_rng(3)
    size = config.duration_predictor

    def style() -> Style:
        ttl = draw.standard_normal((config.n_style, config.style_dim)) / config.style_dim**0.5
        dp = draw.standard_normal((size.n_style, size.style_dim)) / size.style_dim**0.5
        return Style(ttl.astype(np.float32), dp.astype(np.float32))

    return Engine(
        model,
        {voice: style() for voice in VOICES},
        name="full-size random weights",
        description="Random weights in the size of the published model, for benchmarks.",
        is_builtin=False,
        fingerprint="random",
        device=device,
        precision=precision,
    )


def rate(seconds: float = 5.0) -> float:
    """Audio seconds per second of the engine by itself, speaking the chunks of mixed texts in as
    many batches at once as a worker would.
    """
    from benchmarks.traffic import LONG, MEDIUM, SHORT
    from supertonic.text import split_text
    from supertonic.utterance import Utterance

    engine = make_engine()
    chunks = [chunk.text for text in (SHORT, MEDIUM, LONG) for chunk in split_text(text, "en")]
    batch = [Utterance(text, "en", "M1", 2, 1.05, 7, index) for index, text in enumerate(chunks)]

    def speak(for_s: float) -> float:
        audio_s, started = 0.0, time.perf_counter()
        while (took_s := time.perf_counter() - started) < for_s:
            spoken = engine.synthesize(batch, cores=1)
            audio_s += sum(len(audio.samples) / audio.sample_rate for audio in spoken)
        return audio_s / took_s

    with ThreadPoolExecutor(engine.batches_at_once) as pool:
        list(pool.map(speak, [0.1] * engine.batches_at_once))
        return sum(pool.map(speak, [seconds] * engine.batches_at_once))


if __name__ == "__main__":
    if sys.argv[1:]:  # on these cores only
        os.sched_setaffinity(0, map(int, sys.argv[1:]))
    print(rate())
