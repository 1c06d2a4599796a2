"""Stage 8, pictures for docs/voice.md: `python -m training.plots`. Curves and spectrograms."""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from supertonic.loading import BUILTIN, load_engine
from supertonic.utterance import Utterance
from training.corpus import USUAL_RATE, load_space, read_aloud
from training.latents import resynthesise
from training.plan import VOICES, WORK
from training.teacher import Teacher

matplotlib.use("svg")
from matplotlib import pyplot as plt  # noqa: E402

IMAGES = Path(__file__).parent.parent / "docs" / "images"
SENTENCE = "Most of the flowers by the river were yellow."
CURVES = {
    "text_to_latent": ("mse", "sampled", "reading", "spelling"),
    "decoder": ("direct", "spectra"),
    "durations": ("held_out", "training"),
}


def draw_curves() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    for axis, (stage, keys) in zip(axes, CURVES.items(), strict=True):
        lines = [json.loads(line) for line in (WORK / f"{stage}.jsonl").read_text().splitlines()]
        for key in keys:
            axis.plot(
                [line["step"] for line in lines], [line.get(key) for line in lines], label=key
            )
        axis.set(title=stage.replace("_", " "), xlabel="step", yscale="log")
        axis.legend(fontsize=7)
    figure.savefig(IMAGES / "voice-curves.svg")


def draw_spectrogram(axis: Axes, samples: np.ndarray, rate: int, title: str) -> None:
    axis.specgram(
        samples + 1e-5, NFFT=512, Fs=rate, noverlap=400, vmin=-120, vmax=-35, cmap="magma"
    )
    axis.set(title=title, xlabel="s", ylim=(0, 8000))
    axis.title.set_fontsize(9)


def draw_spectrograms(directory: Path) -> None:
    engine, space, voice = load_engine(str(directory), device="cpu"), load_space(), "M1"
    item, taught = read_aloud(Teacher(), SENTENCE, "en", voice, USUAL_RATE)
    target = resynthesise(space, item.frames(space), VOICES[voice].pulses)
    figure, axes = plt.subplots(1, 4, figsize=(12, 2.8), layout="constrained", sharey=True)
    draw_spectrogram(axes[0], taught, 22050, "teacher")
    draw_spectrogram(axes[1], target, 22050, "what the decoder learns")
    for axis, steps in zip(axes[2:], (2, 8), strict=True):
        [audio] = engine.synthesize([Utterance(SENTENCE, "en", voice, steps, 1.0, 1, 0)])
        draw_spectrogram(axis, audio.samples, audio.sample_rate, f"the voice, {steps} steps")
    axes[0].set_ylabel("Hz")
    figure.savefig(IMAGES / "voice-spectrograms.png", dpi=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=BUILTIN)
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw_curves()
    draw_spectrograms(parser.parse_args().directory)


if __name__ == "__main__":
    main()
