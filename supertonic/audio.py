"""Float samples to 16-bit PCM to WAV. Pieces of PCM can be joined by writing them in a row."""

import io
import struct
import wave
from collections.abc import Iterable
from pathlib import Path

import numpy as np

BYTES_PER_SAMPLE = 2  # mono, signed 16 bit, little-endian
FULL_SCALE = 32767
WAV_HEADER_BYTES = 44
MOST_TOLD = 2**32 - 1  # bytes


def to_pcm16(samples: np.ndarray) -> bytes:
    """Mono samples in [-1, 1] to PCM; what lies outside is clipped."""
    scaled = samples * FULL_SCALE
    # In place: a chunk is a megabyte of floats, and each copy would touch all of it once more.
    np.rint(scaled, out=scaled)
    np.clip(scaled, -FULL_SCALE, FULL_SCALE, out=scaled)
    return scaled.astype("<i2").tobytes()


def silence(seconds: float, sample_rate: int) -> bytes:
    """PCM of `seconds` without sound, rounded to whole samples."""
    return bytes(BYTES_PER_SAMPLE * round(seconds * sample_rate))


def wav_bytes(pcm: bytes, sample_rate: int) -> bytes:
    """A complete WAV file around `pcm`."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        _describe(wav, sample_rate, len(pcm) // BYTES_PER_SAMPLE)
        wav.writeframesraw(pcm)
    return file.getvalue()


def wav_header(n_samples: int, sample_rate: int) -> bytes:
    """The beginning of a WAV file whose samples are written elsewhere, WAV_HEADER_BYTES long.

    Beyond 4 GiB it tells the largest size it can, which FFmpeg and browsers take for "to the end".
    """
    size = BYTES_PER_SAMPLE * n_samples
    byte_rate = BYTES_PER_SAMPLE * sample_rate
    format_ = struct.pack("<IHHIIHH", 16, 1, 1, sample_rate, byte_rate, BYTES_PER_SAMPLE, 16)
    riff = b"RIFF" + struct.pack("<I", min(WAV_HEADER_BYTES - 8 + size, MOST_TOLD)) + b"WAVE"
    return riff + b"fmt " + format_ + b"data" + struct.pack("<I", min(size, MOST_TOLD))


def write_wav(path: str | Path, blocks: Iterable[bytes], sample_rate: int, n_samples: int) -> None:
    """Write pieces of PCM as one WAV file, one piece in memory at a time.

    `n_samples` is their total: it stands in the header before the first piece is written.
    """
    with wave.open(str(path), "wb") as wav:
        _describe(wav, sample_rate, n_samples)
        for block in blocks:
            wav.writeframesraw(block)
        if wav.tell() != n_samples:
            raise ValueError(f"{path}: expected {n_samples} samples, got {wav.tell()}")


def _describe(wav: wave.Wave_write, sample_rate: int, n_samples: int) -> None:
    wav.setnchannels(1)
    wav.setsampwidth(BYTES_PER_SAMPLE)
    wav.setframerate(sample_rate)
    wav.setnframes(n_samples)
