"""PCM of a job, chunk after chunk, to the sound format a client asked for.

One encoder and one resampler live as long as the sound does, so chunks join without a click.
"""

import io
import struct
from typing import Protocol

import numpy as np
import soundfile
import soxr

from supertonic.audio import wav_bytes

# What the OpenAI interface means by pcm.
PCM_RATE = 24_000
# Ogg Opus knows only a few rates, and this is the highest.
OPUS_RATE = 48_000
UNKNOWN_SIZE = 0xFFFFFFFF

MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
# Of an MP3 whose bits per second change, without its length in front, readers cannot tell where it
# ends. This much compression gives 112 kbit/s at 44.1 kHz.
_MP3_OPTIONS = {"bitrate_mode": "CONSTANT", "compression_level": 0.7}
_FILES = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "flac": ("FLAC", "PCM_16")}


class Encoder(Protocol):
    """Takes s16le mono PCM, gives bytes of the format as soon as there are some."""

    rate: int

    def encode(self, pcm: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


def encoder(kind: str, rate_in: int, rate_out: int) -> Encoder:
    """An encoder for one of ``MEDIA_TYPES``."""
    if kind == "pcm":
        return Pcm(rate_in, rate_out)
    if kind == "wav":
        return Wav(rate_in, rate_out)
    return File(kind, rate_in, OPUS_RATE if kind == "opus" else rate_out)


class Pcm:
    """Samples alone, at once."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        self.rate = rate_out
        is_same = rate_in == rate_out
        self._resampler = None if is_same else soxr.ResampleStream(rate_in, rate_out, 1, "int16")

    def encode(self, pcm: bytes) -> bytes:
        return self._resample(pcm, is_last=False)

    def finish(self) -> bytes:
        return self._resample(b"", is_last=True)

    def _resample(self, pcm: bytes, is_last: bool) -> bytes:
        if self._resampler is None:
            return pcm
        resampled = self._resampler.resample_chunk(np.frombuffer(pcm, "<i2"), is_last)
        return bytes(resampled.astype("<i2").tobytes())


class Wav(Pcm):
    """A WAV file whose end is not known yet: its header says so as players know it."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        super().__init__(rate_in, rate_out)
        head = bytearray(wav_bytes(b"", rate_out))
        for at in (4, 40):
            struct.pack_into("<I", head, at, UNKNOWN_SIZE)
        self._head = bytes(head)

    def encode(self, pcm: bytes) -> bytes:
        head, self._head = self._head, b""
        return head + super().encode(pcm)


class File(Pcm):
    """A compressed file. FLAC comes whole at the end, when its beginning can tell its length."""

    def __init__(self, kind: str, rate_in: int, rate_out: int) -> None:
        super().__init__(rate_in, rate_out)
        container, subtype = _FILES[kind]
        options = _MP3_OPTIONS if kind == "mp3" else {}
        self._sink = io.BytesIO() if kind == "flac" else Appended()
        self._file = soundfile.SoundFile(
            self._sink, "w", rate_out, 1, subtype=subtype, format=container, **options
        )

    def encode(self, pcm: bytes) -> bytes:
        self._file.buffer_write(super().encode(pcm), "int16")
        return self._sink.take() if isinstance(self._sink, Appended) else b""

    def finish(self) -> bytes:
        self._file.buffer_write(super().finish(), "int16")
        self._file.close()
        return self._sink.take() if isinstance(self._sink, Appended) else self._sink.getvalue()


class Appended:
    """A file that is sent while it is written, for soundfile. What was sent cannot be written
    anew, as an MP3's first frame would be in the end: it stays a frame of silence.
    """

    def __init__(self) -> None:
        self._new = bytearray()
        self._at = self._end = 0

    def take(self) -> bytes:
        """What was appended since the last time."""
        new = bytes(self._new)
        self._new.clear()
        return new

    def write(self, data: bytes) -> int:
        if self._at == self._end:
            self._new += data
            self._end += len(data)
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        return self._at
