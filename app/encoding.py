"""PCM of a job, chunk after chunk, to the sound format a client asked for.

One encoder and one resampler live as long as the sound does, so chunks join without a click.
"""

import io
import struct
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import Any, Protocol

import av
import numpy as np
import soundfile
import soxr

from supertonic.audio import wav_bytes
from tasks.books import AAC_BIT_RATE

# What the OpenAI interface means by pcm.
PCM_RATE = 24_000
# Opus knows only a few rates, and this is the highest.
OPUS_RATE, OPUS_RATES = 48_000, (16_000, 24_000, 48_000)
UNKNOWN_SIZE = 0xFFFFFFFF
# More of a file that is made before it is sent goes to disk.
SPOOL_BYTES = 4 << 20
BLOCK_BYTES = 1 << 18

MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/opus",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
FILE_FORMATS = ("wav", "mp3", "opus", "aac", "flac")
# Of an MP3 whose bits per second change, without its length in front, readers cannot tell where it
# ends. This much compression gives 112 kbit/s at 44.1 kHz.
_MP3_OPTIONS = {"bitrate_mode": "CONSTANT", "compression_level": 0.7}
_FILES = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "flac": ("FLAC", "PCM_16")}


class Encoder(Protocol):
    """Takes s16le mono PCM, gives bytes of the format as soon as there are some, then the rest."""

    rate: int

    def encode(self, pcm: bytes) -> bytes: ...

    def finish(self) -> Iterator[bytes]: ...


def encoder(kind: str, rate_in: int, rate_out: int) -> Encoder:
    """An encoder for one of ``MEDIA_TYPES``."""
    if kind == "pcm":
        return Pcm(rate_in, rate_out)
    if kind == "wav":
        return Wav(rate_in, rate_out)
    if kind == "flac":
        return Flac(rate_in, rate_out)
    if kind == "aac":
        return Aac(rate_in, rate_out)
    return File(kind, rate_in, rate_out)


class Pcm:
    """Samples alone, at once."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        self.rate = rate_out
        is_same = rate_in == rate_out
        # In whole numbers soxr adds noise that depends on where the sound was cut.
        self._resampler = None if is_same else soxr.ResampleStream(rate_in, rate_out, 1, "float32")

    def encode(self, pcm: bytes) -> bytes:
        return self._resample(pcm, is_last=False)

    def finish(self) -> Iterator[bytes]:
        yield self._resample(b"", is_last=True)

    def _resample(self, pcm: bytes, is_last: bool) -> bytes:
        if self._resampler is None:
            return pcm
        samples = np.frombuffer(pcm, "<i2").astype(np.float32)
        resampled = np.rint(self._resampler.resample_chunk(samples, is_last))
        return bytes(resampled.clip(-32_768, 32_767).astype("<i2").tobytes())


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


class WholeWav(Pcm):
    """A WAV file all at once, when its length is known; for sounds that fit into memory."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        super().__init__(rate_in, rate_out)
        self._pcm: list[bytes] = []

    def encode(self, pcm: bytes) -> bytes:
        self._pcm.append(super().encode(pcm))
        return b""

    def finish(self) -> Iterator[bytes]:
        self._pcm += super().finish()
        yield wav_bytes(b"".join(self._pcm), self.rate)


class File(Pcm):
    """MP3 or Opus, sent while it is written."""

    def __init__(self, kind: str, rate_in: int, rate_out: int, sink: Any = None) -> None:
        super().__init__(rate_in, rate_out)
        self.sink: Any = Appended() if sink is None else sink
        container, subtype = _FILES[kind]
        options = _MP3_OPTIONS if kind == "mp3" else {}
        self._file = soundfile.SoundFile(
            self.sink, "w", rate_out, 1, subtype=subtype, format=container, **options
        )

    def encode(self, pcm: bytes) -> bytes:
        self._write(super().encode(pcm))
        return self._taken()

    def finish(self) -> Iterator[bytes]:
        self._write(b"".join(super().finish()))
        self._file.close()
        yield self._taken()

    def _write(self, pcm: bytes) -> None:
        self._file.buffer_write(pcm, "int16")

    def _taken(self) -> bytes:
        taken: bytes = self.sink.take()
        return taken


class Aac(Pcm):
    """AAC in frames that need no file around them (ADTS), sent while they are made."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        super().__init__(rate_in, rate_out)
        self._sink = Appended()
        # Without it a second of sound waits in the muxer.
        options = {"flush_packets": "1"}
        self._file = av.open(self._sink, "w", format="adts", options=options)
        self._stream = self._file.add_stream(
            "aac", rate=rate_out, layout="mono", bit_rate=AAC_BIT_RATE
        )
        self._n_samples = 0

    def encode(self, pcm: bytes) -> bytes:
        self._mux(super().encode(pcm))
        return self._sink.take()

    def finish(self) -> Iterator[bytes]:
        self._mux(b"".join(super().finish()))
        self._file.mux(self._stream.encode(None))
        self._file.close()
        yield self._sink.take()

    def _mux(self, pcm: bytes) -> None:
        if not pcm:
            return
        samples = np.frombuffer(pcm, "<i2")[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts = self.rate, self._n_samples
        self._n_samples += samples.shape[1]
        self._file.mux(self._stream.encode(frame))


class Flac(File):
    """All of it at the end, when its beginning can tell its length; an hour has 100 MB."""

    def __init__(self, rate_in: int, rate_out: int) -> None:
        super().__init__("flac", rate_in, rate_out, SpooledTemporaryFile(SPOOL_BYTES))  # noqa: SIM115

    def finish(self) -> Iterator[bytes]:
        yield from super().finish()
        self.sink.seek(0)
        while block := self.sink.read(BLOCK_BYTES):
            yield block
        self.sink.close()

    def _taken(self) -> bytes:
        return b""


class Appended:
    """A file that is sent while it is written, for an encoder. What was sent cannot be written
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
