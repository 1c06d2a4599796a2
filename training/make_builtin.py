"""Makes the built-in placeholder voice: `python -m training.make_builtin [directory]`.

A small model of the same architecture as Supertonic 2, written in the same files and loaded by
the same code. It does not speak: its durations are trained on the rule of thumb that the rest of
the program uses for planning, everything else is seeded and partly designed so that the result is
a soft hum that follows the text. Two minutes on one CPU core; the same seed gives the same voice.
"""

import json
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from supertonic.config import (
    DurationPredictorConfig,
    ModelConfig,
    TextEncoderConfig,
    VectorEstimatorConfig,
    VocoderConfig,
)
from supertonic.engine import BUILTIN, WEIGHTS_FILE, Utterance, load_engine
from supertonic.model import Supertonic
from supertonic.text import LANGUAGES, encode, estimate_seconds
from supertonic.voices import VOICES, Style
from supertonic.weights import save_weights

SEED = 86
PEAK = 0.5  # of the loudest of a few test sentences
TRAINING_STEPS = 800
BATCH = 24

CONFIG = ModelConfig(
    ldim=8,
    n_style=8,
    style_dim=64,
    text_encoder=TextEncoderConfig(
        width=64,
        convnext_hidden=128,
        dilations=(1, 1),
        attention_layers=1,
        heads=2,
        ffn_hidden=128,
        style_heads=2,
    ),
    duration_predictor=DurationPredictorConfig(
        width=32,
        convnext_hidden=64,
        dilations=(1, 1),
        attention_layers=2,
        heads=2,
        ffn_hidden=64,
        head_hidden=64,
    ),
    vector_estimator=VectorEstimatorConfig(
        width=96,
        convnext_hidden=192,
        blocks=2,
        dilations=(1, 2),
        last_dilations=(1,),
        time_dim=32,
        time_hidden=64,
        attention_width=64,
        text_heads=2,
        style_heads=2,
    ),
    vocoder=VocoderConfig(width=48, convnext_hidden=96, dilations=(1, 2), head_hidden=16),
)


def make_styles() -> dict[str, Style]:
    """Ten voices: the men's tokens lean one way, the women's the other."""
    rng = np.random.default_rng(SEED)
    duration = CONFIG.duration_predictor
    lean = rng.standard_normal((CONFIG.n_style, CONFIG.style_dim))
    styles = {}
    for voice in VOICES:
        own = 1.2 * rng.standard_normal(lean.shape)
        ttl = own + (lean if voice[0] == "M" else -lean)
        dp = rng.standard_normal((duration.n_style, duration.style_dim))
        styles[voice] = Style(_unit(ttl), _unit(dp))
    return styles


def _unit(tokens: np.ndarray) -> np.ndarray:
    # Rounded to keep the files small; far inside the tolerance of the loader.
    return (tokens / np.linalg.norm(tokens, axis=1, keepdims=True)).round(5).astype(np.float32)


def write_style(style: Style, path: Path) -> None:
    content = {
        key: {
            "dims": [1, *tokens.shape],
            "type": "float32",
            "data": [[[round(float(x), 5) for x in token] for token in tokens]],
        }
        for key, tokens in (("style_ttl", style.ttl), ("style_dp", style.dp))
    }
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


# Durations: learned


def sentences(rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless nonsense (text, language), 3 to 450 characters, all lengths equally often."""
    letters = "eeeeaaaoooiinnttssrrlldcumpghbfvwykjxqz"
    accents = {"es": "áéíóúñ", "pt": "ãõáéêç", "fr": "éèàçêô"}
    while True:
        language = rng.choice(LANGUAGES)
        alphabet = letters + accents.get(language, "")
        length = math.exp(rng.uniform(math.log(3), math.log(450)))
        length /= 2.5 if language == "ko" else 1  # a Hangul syllable is two or three ids
        text = ""
        while len(text) < length:
            if language == "ko":
                word = "".join(chr(rng.randint(0xAC00, 0xD7A3)) for _ in range(rng.randint(1, 5)))
            else:
                word = "".join(rng.choices(alphabet, k=rng.randint(1, 9)))
            if rng.random() < 0.03:
                word = str(rng.randint(0, 3000))
            if rng.random() < 0.15:
                word = word.capitalize()
            text += word + rng.choices([" ", ", ", ". ", "? ", "! ", "; "], (80, 9, 7, 1, 1, 1))[0]
        yield text.strip(), language


def train_durations(model: Supertonic, styles: dict[str, Style]) -> float:
    """Fit log seconds to the planning estimate; returns the last mean relative error."""
    rng, predictor = random.Random(SEED), model.duration_predictor
    texts = sentences(rng)
    pace = dict(zip(styles, np.linspace(0.92, 1.08, len(styles)), strict=True))
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=TRAINING_STEPS)
    error = math.nan
    for step in range(TRAINING_STEPS):
        rows = []
        for text, language in (next(texts) for _ in range(BATCH)):
            voice = rng.choice(list(styles))
            seconds = estimate_seconds(text, language, 1.0) * pace[voice]
            rows.append((encode(text, language), styles[voice].dp, math.log(seconds)))
        rows.sort(key=lambda row: len(row[0]))
        losses = []
        # Every step sees all lengths (it does not learn otherwise), in groups of similar ones.
        for part in (rows[: BATCH // 2], rows[BATCH // 2 : -BATCH // 6], rows[-BATCH // 6 :]):
            loss = (_predict(predictor, part).log() - _column(part, 2)).abs().sum() / BATCH
            loss.backward()
            losses.append(loss.item())
        nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        error = sum(losses) if step == 0 else 0.98 * error + 0.02 * sum(losses)
        if step % 100 == 0:
            print(f"step {step}: mean error {error:.1%}", flush=True)
    return error


def _predict(predictor: nn.Module, rows: list[tuple[list[int], np.ndarray, float]]) -> Tensor:
    lengths = torch.tensor([len(ids) for ids, _, _ in rows])
    text_ids = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids, _, _ in rows], True)
    style_dp = torch.from_numpy(np.stack([dp for _, dp, _ in rows]))
    seconds: Tensor = predictor(text_ids, lengths, style_dp)
    return seconds


def _column(rows: list[tuple[list[int], np.ndarray, float]], column: int) -> Tensor:
    return torch.tensor([row[column] for row in rows])


# Sound: designed


@torch.no_grad()
def design_sound(model: Supertonic) -> None:
    """Random networks, except where it decides that the sound is a hum that follows the text."""
    for name, tensor in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last in ("key_emb", "sentence_token") or name.endswith("char_embedder.weight"):
            nn.init.normal_(tensor)
        elif last in ("emb_rel_k", "emb_rel_v"):
            nn.init.normal_(tensor, std=0.1)
        elif last == "gamma":
            nn.init.constant_(tensor, 0.5)
    for attention in (
        model.text_encoder.speech_prompted_text_encoder.attention1,
        model.text_encoder.speech_prompted_text_encoder.attention2,
    ):
        attention.tanh.Tanh_output_0.normal_().tanh_()

    field = model.vector_estimator.vector_field
    for group in range(CONFIG.vector_estimator.blocks):
        attend, style = field.main_blocks[6 * group + 3].attn, field.main_blocks[6 * group + 5]
        # Equal, constant queries and keys: rotation alone decides, so frames look at the
        # characters at the same relative place in the text.
        for layer in (attend.W_query.linear, attend.W_key.linear):
            layer.weight.mul_(0.1)
            first, _ = layer.bias.view(attend.heads, 2, -1).unbind(1)
            layer.bias.zero_()
            first.fill_(5.0)
        attend.W_value.linear.weight.mul_(3)
        attend.out_fc.linear.weight.mul_(4)
        style.attention.W_value.linear.weight.mul_(10)
        style.attention.out_fc.linear.weight.mul_(4)
    field.proj_out.net.weight.mul_(6)  # text and voice should outweigh the noise

    design_vocoder(model.vocoder)


def design_vocoder(vocoder: nn.Module) -> None:
    """Smooth the latent over a fifth of a second; let it mix chords of the frame rate.

    Channels are used in three thirds: the embedding writes the first, each block smooths one
    third into the next, and the head reads the last, so that no noise passes unsmoothed.
    """
    decoder = vocoder.decoder
    third = CONFIG.vocoder.width // 3
    vocoder.latent_std.fill_(float(vocoder.normalizer.scale))
    window = torch.hann_window(9)[1:-1] / torch.hann_window(9).sum()
    decoder.embed.net.weight.copy_(nn.init.normal_(decoder.embed.net.weight[:, :, :1]) * window)
    decoder.embed.net.weight[third:] = 0
    decoder.embed.net.bias.zero_()
    for i, block in enumerate(decoder.convnext):
        block.dwconv.net.weight.copy_(window.expand_as(block.dwconv.net.weight))
        block.dwconv.net.bias.zero_()
        reads, writes = slice(i * third, (i + 1) * third), slice((i + 1) * third, (i + 2) * third)
        kept = torch.zeros(CONFIG.vocoder.width)
        kept[reads] = 1
        nn.init.normal_(block.pwconv1.weight, std=third**-0.5).mul_(kept[None, :, None])
        kept = torch.zeros(CONFIG.vocoder.width)
        kept[writes] = 1
        hidden = CONFIG.vocoder.convnext_hidden
        nn.init.normal_(block.pwconv2.weight, std=2 * hidden**-0.5).mul_(kept[:, None, None])
        block.pwconv2.bias.zero_()
        block.gamma.fill_(1.0)

    head = decoder.head
    nn.init.normal_(head.layer1.net.weight[:, :, :1], std=(4 / third) ** 0.5)
    head.layer1.net.weight.copy_(head.layer1.net.weight[:, :, :1].expand(-1, -1, 3) / 3)
    head.layer1.net.weight[:, : 2 * third] = 0
    head.layer1.net.bias.fill_(0.1)
    head.act.weight.fill_(0.05)
    head.layer2.weight.copy_(chords(CONFIG.vocoder.head_hidden)[:, :, None])


def chords(count: int) -> Tensor:
    """(512, count) one period each: harmonics that fade with their number, all sines.

    A period is one frame, so a chord held over frames is seamless; sines are zero at the frame
    edge, so a change of loudness there makes no click. Half of the chords are an octave higher.
    """
    time = torch.arange(CONFIG.base_chunk_size) / CONFIG.base_chunk_size
    periods = []
    for chord in range(count):
        octave = 1 + chord % 2
        harmonics = octave * torch.arange(1, 17)
        # Each chord has its own formant: a band of harmonics that it favours.
        formant = torch.exp(-((harmonics - torch.randint(1, 24, ())) ** 2) / 18)
        loudness = torch.randn(16) * (formant + 0.15) / harmonics**0.5
        periods.append(loudness @ torch.sin(2 * math.pi * harmonics[:, None] * time))
    waves = torch.stack(periods, dim=1)
    return waves / waves.square().sum(0).sqrt()


def set_loudness(model: Supertonic, directory: Path) -> None:
    """Scale the last layer so that the loudest of a few sentences peaks at PEAK."""
    engine = load_engine(str(directory))
    text = "The quick brown fox jumps over the lazy dog, and then it sleeps. Does it? It does!"
    utterances = [
        Utterance(text[: 20 + 15 * seed], "en", voice, steps, 1.0, seed, 0)
        for voice in VOICES
        for seed, steps in enumerate((1, 2, 4, 8))
    ]
    peak = max(np.abs(audio.samples).max() for audio in engine.synthesize(utterances))
    with torch.no_grad():
        model.vocoder.decoder.head.layer2.weight.mul_(PEAK / float(peak))


def main(directory: Path) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # small tensors, and sums that do not depend on the machine's cores
    styles = make_styles()
    model = Supertonic(CONFIG)
    design_sound(model)
    error = train_durations(model, styles)
    print(f"durations: mean error {error:.1%}")

    (directory / "voice_styles").mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(asdict(CONFIG), indent=2) + "\n")
    for voice, style in styles.items():
        write_style(style, directory / "voice_styles" / f"{voice}.json")
    save_weights(model, directory / WEIGHTS_FILE, torch.float16)
    set_loudness(model, directory)
    save_weights(model, directory / WEIGHTS_FILE, torch.float16)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else BUILTIN)
