"""A long job's sound while it grows: chunks are appended as they come, in order, each once.

``audio.wav`` grows by whole chunks and their pauses, and ``chunks.idx`` says where each one lies.
A chunk that comes before its turn waits in a file of its own, ``00007.pcm``. Whoever dies in
the middle leaves an index that is behind the sound, never ahead of it: the next one cuts the sound
to what the index holds and goes on. One writer at a time (JobFiles.alone); readers need no lock.
"""

import os
import struct
import uuid
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from supertonic.audio import BYTES_PER_SAMPLE, WAV_HEADER_BYTES, silence, wav_header
from tasks.messages import Piece

SOUND = "audio.wav"
_ENTRY = struct.Struct("<QIII")  # the fields of an entry, and a checksum of them


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a chunk lies in the file's samples."""

    start: int  # samples before it
    n_samples: int
    pause_samples: int

    @property
    def end(self) -> int:
        return self.start + self.n_samples + self.pause_samples


def read_index(folder: Path) -> list[Entry]:
    """The chunks that are in the sound. What a dying writer left half done is not among them."""
    try:
        data = (folder / "chunks.idx").read_bytes()
    except FileNotFoundError:
        return []
    entries: list[Entry] = []
    for start in range(0, len(data), _ENTRY.size):
        entry = _unpack(data[start : start + _ENTRY.size])
        if entry is None or entry.start != (entries[-1].end if entries else 0):
            break
        entries.append(entry)
    return entries


def find_entry(folder: Path, index: int) -> Entry | None:
    """Where chunk ``index`` lies, None if it is not in the sound yet."""
    try:
        with (folder / "chunks.idx").open("rb") as file:
            file.seek(index * _ENTRY.size)
            return _unpack(file.read(_ENTRY.size))
    except FileNotFoundError:
        return None


def _pack(entry: Entry) -> bytes:
    fields = (entry.start, entry.n_samples, entry.pause_samples)
    return _ENTRY.pack(*fields, zlib.crc32(repr(fields).encode()))


def _unpack(data: bytes) -> Entry | None:
    if len(data) != _ENTRY.size:
        return None
    *fields, checksum = _ENTRY.unpack(data)
    return Entry(*fields) if zlib.crc32(repr(tuple(fields)).encode()) == checksum else None


def loose_chunks(folder: Path) -> set[int]:
    """Chunks that wait for one before them."""
    return {int(path.stem) for path in folder.glob("[0-9]*.pcm")}


def loose_path(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.pcm"


class Recorder:
    """Appends chunks to a job's sound; used in a ``with`` block, at whose end they are durable."""

    def __init__(self, folder: Path, pieces: Sequence[Piece], sample_rate: int) -> None:
        self.folder = folder
        self.pieces = pieces
        self.sample_rate = sample_rate
        self.entries = self._whole_entries()
        self.loose = loose_chunks(folder)
        self._durable = len(self.entries)
        self._sound: BinaryIO | None = None

    def _whole_entries(self) -> list[Entry]:
        """The index as far as the sound is there: what is not is spoken again."""
        try:
            size = (self.folder / SOUND).stat().st_size
        except FileNotFoundError:
            size = 0
        n_samples = (size - WAV_HEADER_BYTES) // BYTES_PER_SAMPLE
        return [entry for entry in read_index(self.folder) if entry.end <= n_samples]

    @property
    def collected(self) -> set[int]:
        """Chunks that are on disk, appended or waiting."""
        return set(range(len(self.entries))) | self.loose

    def __enter__(self) -> "Recorder":
        self._append_loose()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.commit()
        finally:
            if self._sound is not None:
                self._sound.close()
                self._sound = None

    def add(self, index: int, pcm: bytes) -> None:
        """Take the samples of a chunk, without its pause."""
        if index == len(self.entries):
            self._append(pcm)
            self._append_loose()
        elif index > len(self.entries):
            write_whole(loose_path(self.folder, index), pcm)
            self.loose.add(index)

    def commit(self) -> None:
        """Make durable what was appended; only then may its origin be dropped."""
        if self._sound is None or len(self.entries) == self._durable:
            return
        self._sound.flush()
        os.fsync(self._sound.fileno())
        with (self.folder / "chunks.idx").open("r+b" if self._durable else "wb") as file:
            file.seek(self._durable * _ENTRY.size)
            for entry in self.entries[self._durable :]:
                file.write(_pack(entry))
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._durable = len(self.entries)
        for index in [index for index in self.loose if index < self._durable]:
            loose_path(self.folder, index).unlink(missing_ok=True)
            self.loose.discard(index)

    def finish(self) -> int:
        """Write the header that a complete file has; returns its samples, pauses included."""
        n_samples = self.entries[-1].end
        self._open().seek(0)
        self._open().write(wav_header(n_samples, self.sample_rate))
        self._open().flush()
        os.fsync(self._open().fileno())
        return n_samples

    def _append_loose(self) -> None:
        while len(self.entries) in self.loose:
            self._append(loose_path(self.folder, len(self.entries)).read_bytes())

    def _append(self, pcm: bytes) -> None:
        pause = silence(self.pieces[len(self.entries)].pause_s, self.sample_rate)
        sound = self._open()
        sound.write(pcm)
        sound.write(pause)
        start = self.entries[-1].end if self.entries else 0
        lengths = len(pcm) // BYTES_PER_SAMPLE, len(pause) // BYTES_PER_SAMPLE
        self.entries.append(Entry(start, *lengths))

    def _open(self) -> BinaryIO:
        """The sound, cut to what the index holds, ready to be written at its end."""
        if self._sound is None:
            path = self.folder / SOUND
            path.touch()
            self._sound = path.open("r+b")
            end = self.entries[-1].end if self.entries else 0
            size = WAV_HEADER_BYTES + BYTES_PER_SAMPLE * end
            if end == 0:
                self._sound.write(wav_header(0, self.sample_rate))
            self._sound.truncate(size)
            self._sound.seek(size)
        return self._sound


def blocks(file: BinaryIO, n_bytes: int, size: int = 1 << 18) -> Iterator[bytes]:
    """The next ``n_bytes`` of a file, a block at a time."""
    while n_bytes > 0 and (block := file.read(min(size, n_bytes))):
        n_bytes -= len(block)
        yield block


def write_whole(path: Path, data: bytes) -> None:
    """Write beside the place and rename: a reader sees all of it or what was there before."""
    # A name of this writer's own: two that meet must not write into one file.
    partial = path.with_suffix(f".{uuid.uuid4().hex[:8]}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
