"""Long jobs on disk: what survives the loss of everything else.

``DATA/jobs/J/job.json`` holds the job and its text, ``00000.pcm``… the chunks spoken so far
(s16le mono), ``audio.wav`` the finished sound. Every file is written beside its place and renamed,
so a reader or a restarted worker sees all of it or none.
"""

import json
import os
import shutil
import uuid
import wave
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks.messages import Job, Kind, Piece, SpeechRequest, State

BLOCK_BYTES = 1 << 18
WAV_HEADER_BYTES = 44


class JobFiles:
    """The jobs directory inside a data directory."""

    def __init__(self, data_dir: str | Path) -> None:
        self.root = Path(data_dir) / "jobs"

    # -- the job itself --------------------------------------------------------------------

    def save(self, job: Job, pieces: list[Piece], chunk_samples: list[int] | None = None) -> None:
        """Store the job; ``chunk_samples`` are the chunks' lengths once all are spoken."""
        record = asdict(job) | {
            "pieces": [[piece.text, piece.pause_s] for piece in pieces],
            "chunk_samples": chunk_samples or [],
        }
        folder = self.root / job.job_id
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "job.json", json.dumps(record, ensure_ascii=False).encode())

    def update(self, job: Job, pieces: list[Piece], chunk_samples: list[int] | None) -> None:
        """Store a job's new state, unless it was deleted meanwhile."""
        if (self.root / job.job_id).is_dir():
            self.save(job, pieces, chunk_samples)

    def load(self, job_id: str) -> tuple[Job, list[Piece]] | None:
        """The job as last saved, None if there is none."""
        record = self._record(job_id)
        if record is None:
            return None
        record.pop("chunk_samples")
        pieces = [Piece(text, pause_s) for text, pause_s in record.pop("pieces")]
        record["kind"] = Kind(record["kind"])
        record["state"] = State(record["state"])
        record["request"] = SpeechRequest(**record["request"])
        record["warnings"] = tuple(record["warnings"])
        return Job(**record), pieces

    def saved_chunk_samples(self, job_id: str) -> list[int]:
        """Lengths of the chunks of a finished job, empty before."""
        record = self._record(job_id)
        return [] if record is None else list(record["chunk_samples"])

    def _record(self, job_id: str) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads((self.root / job_id / "job.json").read_text())
        except FileNotFoundError:
            return None
        return record

    def job_ids(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return [entry.parent.name for entry in sorted(self.root.glob("*/job.json"))]

    def delete(self, job_id: str) -> None:
        shutil.rmtree(self.root / job_id, ignore_errors=True)

    # -- chunks ----------------------------------------------------------------------------

    def write_chunk(self, job_id: str, index: int, pcm: bytes) -> None:
        _write(self._chunk(job_id, index), pcm)

    def chunk_indexes(self, job_id: str) -> set[int]:
        return {int(path.stem) for path in (self.root / job_id).glob("[0-9]*.pcm")}

    def chunk_samples(self, job_id: str, index: int) -> int:
        return self._chunk(job_id, index).stat().st_size // 2

    def read_chunk(self, job_id: str, index: int) -> bytes | None:
        try:
            return self._chunk(job_id, index).read_bytes()
        except FileNotFoundError:
            return None

    def _chunk(self, job_id: str, index: int) -> Path:
        return self.root / job_id / f"{index:05d}.pcm"

    # -- the finished sound ----------------------------------------------------------------

    def audio_path(self, job_id: str) -> Path:
        return self.root / job_id / "audio.wav"

    def assemble(self, job_id: str, pieces: list[Piece], sample_rate: int) -> int:
        """Join the chunks and their pauses into ``audio.wav``; returns its samples."""
        path = self.audio_path(job_id)
        partial = _partial(path)
        with wave.open(str(partial), "wb") as sound:
            sound.setparams((1, 2, sample_rate, 0, "NONE", "not compressed"))
            for index, piece in enumerate(pieces):
                for block in _blocks(self._chunk(job_id, index)):
                    sound.writeframesraw(block)
                sound.writeframesraw(bytes(2 * round(piece.pause_s * sample_rate)))
            n_samples = sound.tell()
        os.replace(partial, path)
        return n_samples

    def drop_chunks(self, job_id: str) -> None:
        """Remove the chunks, and what a killed writer may have left."""
        for pattern in ("[0-9]*.pcm", "*.partial"):
            for path in (self.root / job_id).glob(pattern):
                path.unlink(missing_ok=True)

    def read_samples(self, job_id: str, start: int, count: int) -> bytes | None:
        """Part of the finished sound, in samples."""
        try:
            with self.audio_path(job_id).open("rb") as sound:
                sound.seek(WAV_HEADER_BYTES + 2 * start)
                return sound.read(2 * count)
        except FileNotFoundError:
            return None


def _partial(path: Path) -> Path:
    """A name of this writer's own: two that meet must not write into one file."""
    return path.with_suffix(f".{uuid.uuid4().hex[:8]}.partial")


def _write(path: Path, data: bytes) -> None:
    partial = _partial(path)
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block
