import io
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from supertonic.audio import (
    WAV_HEADER_BYTES,
    silence,
    to_pcm16,
    wav_bytes,
    wav_header,
    write_wav,
)


def read(file: str | io.BytesIO) -> tuple[int, int, int, int, bytes]:
    with wave.open(file, "rb") as wav:
        frames = wav.readframes(wav.getnframes())
        sizes = wav.getnchannels(), wav.getsampwidth(), wav.getframerate(), wav.getnframes()
    return (*sizes, frames)


def test_samples_are_clipped_scaled_and_little_endian() -> None:
    samples = np.array([0, 1, -1, 2, -9, 0.5, 1 / 32767], dtype=np.float32)
    pcm = np.frombuffer(to_pcm16(samples), dtype="<i2")
    assert pcm.tolist() == [0, 32767, -32767, 32767, -32767, 16384, 1]


def test_rounding_does_not_lean_to_one_side() -> None:
    samples = np.linspace(-1, 1, 1_000_001, dtype=np.float64)
    error = np.frombuffer(to_pcm16(samples), dtype="<i2") - samples * 32767
    assert np.abs(error).max() <= 0.5 + 1e-9 and abs(error.mean()) < 1e-3


def test_silence_is_whole_samples_of_zero() -> None:
    assert silence(0.3, 44100) == bytes(2 * 13230)
    assert silence(0, 44100) == b""
    assert len(silence(0.00001, 44100)) % 2 == 0


def test_wav_bytes_are_a_readable_file() -> None:
    pcm = to_pcm16(np.sin(np.arange(1000) / 10))
    assert read(io.BytesIO(wav_bytes(pcm, 44100))) == (1, 2, 44100, 1000, pcm)


def test_a_wav_written_in_blocks_equals_one_made_at_once(tmp_path: Path) -> None:
    blocks = [to_pcm16(np.full(n, 0.1)) for n in (5, 0, 1000, 3)]
    path = tmp_path / "long.wav"
    write_wav(path, iter(blocks), 44100, 1008)
    assert path.read_bytes() == wav_bytes(b"".join(blocks), 44100)


@pytest.mark.parametrize("announced", [7, 9])
def test_a_wrong_total_is_an_error(tmp_path: Path, announced: int) -> None:
    with pytest.raises(ValueError, match=f"expected {announced} samples, got 8"):
        write_wav(tmp_path / "x.wav", [bytes(16)], 44100, announced)


def test_a_wav_beyond_4_gib_is_read_to_its_end(tmp_path: Path) -> None:
    """What a novel takes: 18 hours. The file has holes and takes no room."""
    path, n_samples = tmp_path / "long.wav", 18 * 3600 * 44_100
    with path.open("wb") as file:
        file.write(wav_header(n_samples, 44_100))
        file.truncate(WAV_HEADER_BYTES + 2 * n_samples)
    with av.open(str(path)) as sound:
        stream = sound.streams.audio[0]
        assert float(stream.duration * stream.time_base) == 18 * 3600
        sound.seek(17 * 3600 * 1_000_000)
        assert next(sound.decode(audio=0)).time == pytest.approx(17 * 3600, abs=1)
    assert len(wav_header(2**31 - 20, 44_100)) == WAV_HEADER_BYTES
