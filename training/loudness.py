"""Loudness as broadcasters measure it (ITU-R BS.1770), computed in the spectrum."""

import numpy as np

BLOCK_S, HOP_S = 0.4, 0.1
ABSOLUTE, RELATIVE = -70.0, -10.0


def _weighting(hertz: np.ndarray) -> np.ndarray:
    """Power response of the two K filters, from their analogue shapes."""
    s = 2j * np.pi * np.maximum(hertz, 1e-3)
    # A shelf of 4 dB above 1.7 kHz, and a second-order high-pass at 38 Hz.
    shelf, gain, q = 2 * np.pi * 1681.97, 10 ** (3.99984 / 20), 0.70718
    high = (gain * s**2 + s * shelf * np.sqrt(gain) / q + shelf**2) / (
        s**2 + s * shelf / q + shelf**2
    )
    low, q = 2 * np.pi * 38.135, 0.50033
    cut = s**2 / (s**2 + s * low / q + low**2)
    return np.abs(high * cut) ** 2


def lufs(samples: np.ndarray, rate: int) -> float:
    """Integrated loudness of mono sound; -inf for silence."""
    size, hop = round(BLOCK_S * rate), round(HOP_S * rate)
    padded = np.pad(samples.astype(np.float64), (0, max(0, size - len(samples))))
    spectrum = np.fft.rfft(padded)
    weighted = np.fft.irfft(
        spectrum * np.sqrt(_weighting(np.fft.rfftfreq(len(padded), 1 / rate))), len(padded)
    )
    blocks = np.lib.stride_tricks.sliding_window_view(weighted, size)[::hop]
    power = (blocks**2).mean(1)
    for gate in (ABSOLUTE, None):
        if not len(power):
            return -np.inf
        floor = gate if gate is not None else _decibels(power.mean()) + RELATIVE
        power = power[_decibels(power) > floor]
    return float(_decibels(power.mean())) if len(power) else -np.inf


def _decibels(power: np.ndarray) -> np.ndarray:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-20))
