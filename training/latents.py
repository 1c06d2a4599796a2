"""Sound to latents and back, by signal processing: there is no encoder to train.

A base frame of 256 samples is described at its right edge by 14 principal components of the
log-mel spectral envelope, the voicing, the voice's pulse rate, and a clock of three frames. The
target that the decoder learns is not the teacher's waveform but a resynthesis from these numbers:
pulses and noise at places fixed by the clock, filtered by the envelope. So the samples are a
function of the latents alone, and a plain regression can learn it.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.plan import CLOCK, CONFIG, SEED

RATE = CONFIG.sample_rate
FRAME = CONFIG.base_chunk_size
PER_TOKEN = CONFIG.chunk_compress_factor
FFT = 1024
BINS = FFT // 2 + 1
BANDS = 64
COMPONENTS = CONFIG.ldim - 4
FLOOR = 1e-7  # power per sample: -70 dB of full scale
EDGE_S = 0.1  # silence before and after every utterance
GAIN = 0.9  # of the resynthesis, for about -20 LUFS; set once, measured


def mel(hertz: np.ndarray | float) -> np.ndarray:
    return 1127 * np.log1p(np.asarray(hertz) / 700)


@cache
def bands() -> Tensor:
    """(513, 64): each column averages the bins of one triangular band."""
    edges = np.linspace(mel(30.0), mel(RATE / 2), BANDS + 2)
    at = mel(np.linspace(0, RATE / 2, BINS))[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    weight = np.minimum((at - low) / (middle - low), (high - at) / (high - middle)).clip(min=0)
    nearest = np.abs(at - middle).argmin(axis=0)
    weight[nearest, np.arange(BANDS)] += 1e-3  # the narrow ones may lie between two bins
    return torch.from_numpy(weight / weight.sum(axis=0)).float()


@cache
def unbands() -> Tensor:
    """(64, 513): from bands back to bins, by straight lines on the mel scale."""
    centres = np.linspace(mel(30.0), mel(RATE / 2), BANDS + 2)[1:-1]
    at = mel(np.linspace(0, RATE / 2, BINS))
    rows = [np.interp(at, centres, np.eye(BANDS)[i]) for i in range(BANDS)]
    return torch.from_numpy(np.stack(rows)).float()


@cache
def _analysis(hertz: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `analyse` needs for a known pitch; the idea is that of WORLD's CheapTrick.

    A window of three periods, the power spectrum averaged over two thirds of the pitch, and its
    cepstrum shaped so that neither the harmonics nor that averaging remain visible.
    """
    period = RATE / hertz
    half = round(1.5 * period)
    window = torch.hann_window(2 * half + 1, periodic=False)
    width = 2 / 3 * hertz / (RATE / FFT)  # in bins
    i = torch.arange(BINS)[:, None].float()
    source = torch.arange(-BINS + 1, 2 * BINS - 1)
    overlap = torch.minimum(source + 0.5, i + width / 2) - torch.maximum(
        source - 0.5, i - width / 2
    )
    smooth = torch.zeros(BINS, BINS)
    folded = source.abs()
    folded = torch.where(folded > BINS - 1, 2 * (BINS - 1) - folded, folded)
    smooth.index_add_(1, folded, overlap.clamp(min=0) / width)
    quefrency = torch.minimum(torch.arange(FFT), FFT - torch.arange(FFT)) / RATE
    lifter = torch.sinc(hertz * quefrency) * (
        1.3 - 0.3 * torch.cos(2 * math.pi * quefrency * hertz)
    )
    # log spectrum -> cepstrum -> lifter -> log spectrum -> bands, all linear: one matrix.
    spectra = torch.eye(BINS)
    lifted = torch.fft.rfft(torch.fft.irfft(spectra, FFT) * lifter, FFT).real
    to_bands = lifted @ bands()
    # Autocorrelation at lags near the period, and at none.
    lags = torch.arange(math.floor(period) - 2, math.floor(period) + 4)
    angle = (
        2 * math.pi * torch.arange(BINS)[:, None] * torch.cat([torch.zeros(1), lags])[None] / FFT
    )
    weight = torch.full((BINS, 1), 2.0)
    weight[0] = weight[-1] = 1
    cosines = weight * torch.cos(angle)
    padded = torch.nn.functional.pad(window, (0, FFT - len(window)))
    own = torch.fft.irfft(torch.fft.rfft(padded).abs() ** 2)
    cosines[:, 1:] *= own[0] / own[lags]
    return window, smooth.T.contiguous(), to_bands.contiguous(), cosines, lags


@torch.no_grad()
def analyse(samples: np.ndarray, hertz: float) -> tuple[Tensor, Tensor]:
    """Log-envelope in bands (F, 64) and voicing (F,) at the right edge of every frame."""
    window, smooth, to_bands, cosines, _ = _analysis(hertz)
    half = len(window) // 2
    n_frames = len(samples) // FRAME
    padded = np.pad(samples, FFT)[FFT + FRAME - half :]
    frames = torch.from_numpy(padded).float().unfold(0, len(window), FRAME)[:n_frames]
    frames = (frames - frames.mean(1, keepdim=True)) * window
    power = torch.fft.rfft(frames, FFT).abs() ** 2 / window.square().sum()
    correlation = power @ cosines
    strength = correlation[:, 1:].amax(1) / (correlation[:, 0] + FLOOR * FFT)
    voicing = ((strength - 0.35) / 0.45).clamp(0, 1)
    envelope = ((power @ smooth).clamp(min=0) + FLOOR).log() @ to_bands
    return envelope, voicing


@dataclass(frozen=True, eq=False)
class Space:
    """From described frames to latents of mean variance one, and back."""

    mean: Tensor  # (64,)
    basis: Tensor  # (64, 14), orthonormal columns
    spread: Tensor  # (14,) what one unit of latent is worth in component units
    centre: Tensor  # (18,) latents are (value - centre) / unit, as the vocoder undoes it
    unit: Tensor  # (18,)

    @classmethod
    def fit(cls, envelope: Tensor, voicing: Tensor) -> "Space":
        mean = envelope.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov((envelope - mean).T.double()))
        order = values.argsort(descending=True)[:COMPONENTS]
        sigma = values[order].clamp(min=0).sqrt().float()
        # Between no and full whitening: weak components carry detail, but also noise.
        spread = sigma**0.6 * sigma[0] ** 0.4
        scaled = sigma / spread
        spread = spread * scaled.square().mean().sqrt()
        centre, unit = torch.zeros(CONFIG.ldim), torch.ones(CONFIG.ldim)
        centre[COMPONENTS], unit[COMPONENTS] = voicing.mean(), voicing.std()
        centre[COMPONENTS + 1], unit[COMPONENTS + 1] = math.log(5), 0.35
        return cls(mean, vectors[:, order].float().contiguous(), spread, centre, unit)

    def frames(self, envelope: Tensor, voicing: Tensor, pulses: int) -> Tensor:
        """(F, 18) as the decoder sees them before its first layer, in latent units."""
        n = len(envelope)
        values = torch.empty(n, CONFIG.ldim)
        values[:, :COMPONENTS] = (envelope - self.mean) @ self.basis / self.spread
        values[:, COMPONENTS] = voicing
        values[:, COMPONENTS + 1] = math.log(pulses)
        angle = 2 * math.pi * (torch.arange(n) % CLOCK) / CLOCK
        values[:, COMPONENTS + 2] = math.sqrt(2) * angle.cos()
        values[:, COMPONENTS + 3] = math.sqrt(2) * angle.sin()
        return (values - self.centre) / self.unit

    def save(self, path: Path) -> None:
        save_file(self.__dict__, path)

    @classmethod
    def load(cls, path: Path) -> "Space":
        return cls(**load_file(path))


def to_tokens(frames: Tensor) -> Tensor:
    """(6 L, 18) base frames to (L, 108) tokens; channel 6c + r is channel c of frame r."""
    return frames.unflatten(0, (-1, PER_TOKEN)).mT.flatten(1)


@cache
def _noise() -> Tensor:
    """The fixed noise of one clock period: in grains that overlap by half."""
    generator = torch.Generator().manual_seed(SEED)
    period = torch.randn(CLOCK * FRAME, generator=generator)
    # Flat spectrum, random phase: no band of it is louder by chance.
    spectrum = torch.fft.rfft(period)
    return torch.fft.irfft(spectrum / spectrum.abs().clamp(min=1e-6), len(period)) * math.sqrt(
        len(period)
    )


SPACE = Path(__file__).with_name("space.safetensors")  # of the built-in voice

GRAIN = 128  # samples between noise grains, each twice as long
RESPONSE = 512  # samples of an impulse response, and the size of its transform
AUDIBLE = 0.02  # share of voicing or noise below which it is left out


@cache
def _to_cepstrum() -> Tensor:
    """(64, 512): bands of the log-power envelope to the cepstrum of its minimum-phase filter."""
    cepstrum = torch.fft.irfft(0.5 * unbands()[:, :: FFT // RESPONSE], RESPONSE)
    cepstrum[:, 1 : RESPONSE // 2] *= 2
    cepstrum[:, RESPONSE // 2 + 1 :] = 0
    return cepstrum


@torch.no_grad()
def resynthesise(space: Space, frames: Tensor, pulses: int) -> np.ndarray:
    """(F, 18) latents of a voice to F · 256 samples."""
    n = len(frames) * FRAME
    out = torch.zeros(n + 2 * FFT)
    period = CLOCK * FRAME / pulses
    at = torch.arange(0, n, period, dtype=torch.float64)
    envelope, voicing = _described(space, frames, at)
    heard = voicing > AUDIBLE
    filters = _filters(envelope[heard])
    response = torch.fft.irfft(filters, RESPONSE)
    response[:, -128:] *= torch.hann_window(256)[128:]
    gain = (voicing[heard] * period).sqrt()
    _add(out, at[heard].round().long(), response * gain[:, None])

    at = torch.arange(0, n, GRAIN, dtype=torch.float64)
    envelope, voicing = _described(space, frames, at)
    heard = voicing < 1 - AUDIBLE
    start = at[heard].long() - GRAIN
    index = (start[:, None] + torch.arange(2 * GRAIN)) % (CLOCK * FRAME)
    grains = _noise()[index] * torch.hann_window(2 * GRAIN)
    spectra = torch.fft.rfft(grains, RESPONSE) * _filters(envelope[heard])
    gain = (1 - voicing[heard]).sqrt()
    _add(out, start, torch.fft.irfft(spectra, RESPONSE) * gain[:, None])
    return (GAIN * out[:n]).numpy()


def _described(space: Space, frames: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Envelope (P, 64) and voicing (P,) at sample positions, between the frames' right edges."""
    place = at / FRAME
    left = place.floor().long()
    weight = (place - left).float()[:, None]
    earlier, later = frames[(left - 1).clamp(min=0)], frames[left.clamp(max=len(frames) - 1)]
    values = ((1 - weight) * earlier + weight * later) * space.unit + space.centre
    envelope = space.mean + (values[:, :COMPONENTS] * space.spread) @ space.basis.T
    return envelope, values[:, COMPONENTS].clamp(0, 1)


def _filters(envelope: Tensor) -> Tensor:
    return torch.fft.rfft(envelope @ _to_cepstrum(), RESPONSE).exp()


def _add(out: Tensor, at: Tensor, pieces: Tensor) -> None:
    index = at[:, None] + torch.arange(pieces.shape[1])
    inside = index >= 0
    out.index_add_(0, index[inside], pieces[inside])
