"""The whole model: a batch of texts in, waveforms out. `Supertonic.forward` is the main path.

B rows in a batch, T characters, L latent frames, N samples. Rows may differ in length, voice,
speed, steps and seed; none of them changes what another row sounds like.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from supertonic.config import ModelConfig
from supertonic.duration_predictor import DurationPredictor
from supertonic.layers import Span
from supertonic.text_encoder import TextEncoder
from supertonic.vector_estimator import VectorEstimator
from supertonic.vocoder import Vocoder

Seed = tuple[int, int]  # the request's seed, and which of its chunks this is
Draw = Callable[[Seed, tuple[int, int]], np.ndarray]


@dataclass(frozen=True)
class Batch:
    text_ids: Tensor  # (B, T) int64
    text_lengths: Tensor  # (B,) int64
    style_ttl: Tensor  # (B, 50, 256)
    style_dp: Tensor  # (B, 8, 16)
    speed: Tensor  # (B,) float32
    steps: list[int]
    seeds: list[Seed]


def draw_noise(seed: Seed, shape: tuple[int, int]) -> np.ndarray:
    """Standard normal noise that depends on the seed alone.

    Each row draws its own, on the CPU, so that neither its neighbours nor the device matter.
    """
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


class Supertonic(nn.Module):
    """The four networks, with the names and shapes of the published weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.text_encoder = TextEncoder(config)
        self.duration_predictor = DurationPredictor(config)
        self.vector_estimator = VectorEstimator(config)
        self.vocoder = Vocoder(config)
        self.shared_names = _shared_names(self)

    def forward(self, batch: Batch, draw: Draw = draw_noise) -> tuple[Tensor, list[int]]:
        """Waveforms (B, N) and how many samples of each row are its own."""
        n_samples = self.durations(batch)
        text_emb = self.text_encoder(batch.text_ids, batch.text_lengths, batch.style_ttl)
        noise, n_frames = self.noise(batch, n_samples, draw)
        latent = self.denoise(noise, n_frames, text_emb, batch)
        return self.vocoder(latent), n_samples

    def durations(self, batch: Batch) -> list[int]:
        """Samples of audio per row, at the row's speed; at least one."""
        seconds = self.duration_predictor(batch.text_ids, batch.text_lengths, batch.style_dp)
        return self.n_samples(seconds.float(), batch.speed).tolist()

    def n_samples(self, seconds: Tensor, speed: Tensor) -> Tensor:
        """(B,) int64 from (B,) float32 seconds at speed 1: float32 products, cut off."""
        return (seconds / speed * self.config.sample_rate).long().clamp(min=1)

    def noise(self, batch: Batch, n_samples: list[int], draw: Draw) -> tuple[Tensor, Tensor]:
        """Initial noise (B, 144, L), zero behind each row's end, and frames per row (B,)."""
        n_frames = [-(-n // self.config.samples_per_frame) for n in n_samples]
        noise = torch.zeros(len(n_frames), self.config.latent_dim, max(n_frames))
        for row, (seed, length) in enumerate(zip(batch.seeds, n_frames, strict=True)):
            noise[row, :, :length] = torch.from_numpy(draw(seed, (len(noise[row]), length)))
        device = batch.text_ids.device
        return noise.to(device), torch.tensor(n_frames, device=device)

    def denoise(self, latent: Tensor, n_frames: Tensor, text_emb: Tensor, batch: Batch) -> Tensor:
        """Follow the velocity from noise to speech, each row in its own number of steps."""
        # Rows with many steps first: those still at work are then the first few of the batch, and
        # a finished row costs nothing.
        order = sorted(range(len(batch.steps)), key=lambda row: -batch.steps[row])
        rows = torch.tensor(order, device=latent.device)
        latent, text_emb, style_ttl = latent[rows], text_emb[rows], batch.style_ttl[rows]
        span = Span.of(n_frames[rows], latent.shape[2], latent.dtype)
        heard = self.vector_estimator.listen(text_emb, batch.text_lengths[rows], style_ttl)
        steps = torch.tensor(batch.steps, device=latent.device, dtype=latent.dtype)[rows]

        for step in range(max(batch.steps)):
            n = sum(steps_of_row > step for steps_of_row in batch.steps)
            span, heard = span.first(n), [known.first(n) for known in heard]
            latent[:n] = self.vector_estimator(latent[:n], span, heard, step, steps[:n])
        return latent[rows.argsort()]


def _shared_names(model: nn.Module) -> list[list[str]]:
    """Groups of state names that stand for one tensor. The published file repeats it under each;
    once such a file has been assigned, the tensors are no longer one, so this is noted before.
    """
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return [names for names in groups.values() if len(names) > 1]
