"""Stage 7, export: `python -m training.export [directory]`. One directory that the engine loads.

Takes the moving averages of the last saved states, so it may run while training goes on.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from supertonic.download import WEIGHTS
from supertonic.loading import BUILTIN, load_config, load_engine
from supertonic.model import Supertonic
from supertonic.utterance import Utterance
from supertonic.weights import load_weights, save_weights
from training import decoder, durations, text_to_latent
from training.corpus import load_space
from training.durations import Timer
from training.judge import LABELS
from training.latents import SPACE
from training.loop import Average, unit
from training.loudness import lufs
from training.plan import CONFIG, VOICES, WORK

LOUDNESS = -20.0  # LUFS wanted, on average over the voices
PEAK = 0.98  # never louder than this, in any of the sentences that are tried


def averaged(state: Path, module: torch.nn.Module) -> None:
    content = torch.load(state, map_location="cpu", weights_only=True)
    average = Average(module, 0.0)
    average.load_state_dict(content["average"])
    average.swap()


def assemble() -> tuple[Supertonic, Tensor, Tensor]:
    """The model, and the styles (voices, tokens, dims) for sound and for duration."""
    trainee = text_to_latent.Trainee()
    trained = trainee.trained()
    content = torch.load(text_to_latent.STATE, map_location="cpu", weights_only=True)
    trained.load_state_dict(content["trained"])  # the constants among the buffers
    averaged(text_to_latent.STATE, trained)
    model = trainee.model
    timer = Timer()
    averaged(durations.STATE, timer)
    model.duration_predictor.load_state_dict(timer.predictor.state_dict())
    averaged(decoder.STATE, model.vocoder.decoder)
    with torch.no_grad():
        model.vocoder.latent_std.copy_(model.vocoder.normalizer.scale.expand(1, CONFIG.ldim, 1))
        model.vocoder.decoder.head.layer2.weight.div_(decoder.LOUDNESS)
    return model, unit(trainee.style_ttl.detach()), unit(timer.style_dp.detach())


def write_style(ttl: Tensor, dp: Tensor, path: Path) -> None:
    # Rounded to keep the files small; far inside the tolerance of the loader.
    content = {
        key: {
            "dims": [1, *tokens.shape],
            "type": "float32",
            "data": [[[round(float(x), 5) for x in token] for token in tokens]],
        }
        for key, tokens in (("style_ttl", ttl), ("style_dp", dp))
    }
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def gain(directory: Path, voices: list[str], language: str) -> float:
    """What brings the voices to the wanted loudness without clipping."""
    engine = load_engine(str(directory), device="cpu")
    taught = json.loads(LABELS.read_text(encoding="utf-8"))
    texts = [row["text"] for row in taught["sentences"] + taught["long"]]
    tried = [
        audio
        for voice in tqdm(voices, "loudness")
        for speed in (1.05, 1.4)
        for audio in engine.synthesize(
            [Utterance(text, language, voice, 2, speed, i, 0) for i, text in enumerate(texts)]
        )
    ]
    level = float(np.mean([lufs(audio.samples, audio.sample_rate) for audio in tried[::5]]))
    peak = max(float(np.abs(audio.samples).max()) for audio in tried)
    print(f"{level:.1f} LUFS on average, peak {peak:.3f}")
    return min(10 ** ((LOUDNESS - level) / 20), PEAK / peak)


def set_loudness(model: Supertonic, directory: Path, voices: list[str], language: str) -> None:
    """Scale the last layer of a model that is saved in ``directory``, and save it again."""
    factor = gain(directory, voices, language)
    with torch.no_grad():
        model.vocoder.decoder.head.layer2.weight.mul_(factor)
    save_weights(model, directory / WEIGHTS, torch.float16)
    size = (directory / WEIGHTS).stat().st_size
    print(f"{directory}: {size / 1e6:.1f} MB, gain {factor:.2f}, from {WORK}")


def again(directory: Path) -> None:
    """Set the loudness of a voice that was exported before."""
    config = load_config(directory)
    model = Supertonic(config)
    load_weights(model, directory / WEIGHTS)
    voices = sorted(path.stem for path in (directory / "voice_styles").glob("*.json"))
    set_loudness(model, directory, voices, config.languages[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, default=BUILTIN)
    parser.add_argument(
        "--voices", nargs="*", default=list(VOICES), help="those that are good enough"
    )
    parser.add_argument("--languages", nargs="*", default=["en"])
    parser.add_argument(
        "--loudness", action="store_true", help="only set the loudness of what is there, again"
    )
    arguments = parser.parse_args()
    if arguments.loudness:
        again(arguments.directory)
        return
    directory, names = arguments.directory, list(VOICES)
    model, ttl, dp = assemble()
    (directory / "voice_styles").mkdir(parents=True, exist_ok=True)
    for old in (directory / "voice_styles").glob("*.json"):
        old.unlink()
    config = replace(CONFIG, languages=tuple(arguments.languages))
    (directory / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n")
    for voice in arguments.voices:
        index = names.index(voice)
        write_style(ttl[index], dp[index], directory / "voice_styles" / f"{voice}.json")
    save_weights(model, directory / WEIGHTS, torch.float16)
    set_loudness(model, directory, arguments.voices, arguments.languages[0])
    if directory == BUILTIN:
        load_space().save(SPACE)  # the judge needs it to take the teacher's latents


if __name__ == "__main__":
    main()
