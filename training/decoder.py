"""Stage 3, the decoder: `python -m training.decoder`. Latents to the designed waveform.

The target (`latents.resynthesise`) is a function of the latents, so the loss may compare samples
with samples; spectra in three resolutions make quiet sounds count as well.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from supertonic.model import Supertonic
from training import fast
from training.corpus import load_shard, load_space, shard_path
from training.latents import FRAME, resynthesise
from training.loop import Average, autocast, initialise, load_state, save_state, trapezoid
from training.plan import CONFIG, SEED, VOICES, WORK, device

STATE = WORK / "decoder.state.pt"
TARGETS = WORK / "targets.pt"
CURVE = WORK / "decoder.jsonl"
LOUDNESS = 10.0  # the network speaks so much louder than the target; the export takes it back
CONTEXT, CROP = 20, 48  # base frames: seen only, and judged
NOISE = 0.03  # on the latents: the text-to-latent net is not exact either
SECONDS_PER_VOICE = 150.0


def make_targets() -> list[tuple[Tensor, Tensor]]:
    """(frames (F, 18), samples (256 F,)) from all voices, float16."""
    if TARGETS.exists():
        return [tuple(pair) for pair in torch.load(TARGETS, weights_only=True)]  # type: ignore[misc]
    space, pairs = load_space(), []
    wanted = dict.fromkeys(VOICES, SECONDS_PER_VOICE)
    bar = tqdm(total=SECONDS_PER_VOICE * len(wanted), desc="targets", unit="s")
    for number in range(24):
        for item in load_shard(shard_path("en", number)):
            if wanted[item.voice] <= 0 or not 1 < item.seconds < 8:
                continue
            wanted[item.voice] -= item.seconds
            frames = item.frames(space)
            samples = resynthesise(space, frames, VOICES[item.voice].pulses)
            pairs.append((frames.half(), torch.from_numpy(samples).half()))
            bar.update(item.seconds)
        if max(wanted.values()) <= 0:
            break
    torch.save(pairs, TARGETS)
    return pairs


def crops(
    pairs: list[tuple[Tensor, Tensor]], size: int, rng: random.Random
) -> tuple[Tensor, Tensor, Tensor]:
    """Frames (B, 68, 18), samples (B, 68 · 256), and which frames count (B, 68)."""
    frames, samples, counts = [], [], []
    while len(frames) < size:
        latent, wave = rng.choice(pairs)
        room = len(latent) - CONTEXT - CROP
        if room < 0:
            continue
        # Beginnings have no left context: the decoder must learn them as well.
        start = 0 if rng.random() < 0.2 else rng.randint(0, room)
        frames.append(latent[start : start + CONTEXT + CROP])
        samples.append(wave[start * FRAME : (start + CONTEXT + CROP) * FRAME])
        count = torch.ones(CONTEXT + CROP)
        count[: CONTEXT if start else 0] = 0
        counts.append(count)
    return torch.stack(frames).float(), torch.stack(samples).float(), torch.stack(counts)


def spectral(made: Tensor, target: Tensor) -> Tensor:
    total = torch.zeros((), device=made.device)
    for n_fft in (256, 512, 1024):
        window = torch.hann_window(n_fft, device=made.device)
        a, b = (
            torch.stft(x, n_fft, n_fft // 4, window=window, return_complex=True, center=False).abs()
            for x in (made, target)
        )
        floor = 2e-3 * n_fft**0.5
        total = total + ((a + floor).log() - (b + floor).log()).abs().mean()
        total = total + 0.5 * (a - b).square().sum().sqrt() / b.square().sum().sqrt()
    return total / 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=9500)
    parser.add_argument("--decay-from", type=int)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--minutes", type=float, default=1e9)
    arguments = parser.parse_args()
    decay_from = arguments.decay_from or arguments.steps // 2
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = Supertonic(CONFIG)
    initialise(model)
    decoder = model.vocoder.decoder.to(device()).eval()  # the norm before the head is affine only
    average = Average(decoder, 0.999)
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=arguments.rate, betas=(0.8, 0.99), fused=True
    )
    start = load_state(STATE, decoder=decoder, optimizer=optimizer, average=average)
    pairs = make_targets()
    rng = random.Random(SEED + start)
    generator = torch.Generator().manual_seed(SEED + start)
    begun, mean = time.time(), {}
    bar = tqdm(
        range(start, arguments.steps),
        initial=start,
        total=arguments.steps,
        desc="decoder",
        mininterval=5,
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * trapezoid(step, 200, decay_from, arguments.steps)
        frames, target, counts = crops(pairs, arguments.batch, rng)
        frames += NOISE * torch.randn(frames.shape, generator=generator)
        frames, target = frames.to(device()), LOUDNESS * target.to(device())
        counts = counts.repeat_interleave(FRAME, 1).to(device())
        with autocast():
            made = fast.waveform(decoder, frames, CONFIG.vocoder.dilations)
        made = made.float() * counts
        target = target * counts
        direct = (made - target).abs().mean() / target.abs().mean()
        spectra = spectral(made, target)
        loss = direct + spectra
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        average.update()
        for name, value in (("direct", direct), ("spectra", spectra)):
            mean[name] = value.item() if step == start else 0.98 * mean[name] + 0.02 * value.item()
        bar.set_postfix({name: f"{value:.3f}" for name, value in mean.items()}, refresh=False)
        done = step + 1
        over = time.time() - begun > 60 * arguments.minutes
        if done % 250 == 0 or done == arguments.steps or over:
            line = {"step": done, "minutes": round((time.time() - begun) / 60, 1)}
            line |= {name: round(value, 4) for name, value in mean.items()}
            with Path(CURVE).open("a") as file:
                file.write(json.dumps(line) + "\n")
            save_state(STATE, done, decoder=decoder, optimizer=optimizer, average=average)
        if over:
            break


if __name__ == "__main__":
    main()
