"""Long jobs on disk: what survives the loss of everything else.

``DATA/jobs/J/job.json`` holds the job and its text, ``audio.wav`` its sound as far as it is done
(tasks/jobsound.py), ``paused`` is there while it is paused. Small files are written beside their
place and renamed, so a reader or a restarted worker sees all of it or none.
"""

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

from supertonic.audio import BYTES_PER_SAMPLE, WAV_HEADER_BYTES
from tasks.jobsound import (
    SOUND,
    Entry,
    Recorder,
    find_entry,
    loose_chunks,
    loose_path,
    read_index,
    write_whole,
)
from tasks.messages import Job, Kind, Piece, SpeechRequest, State
from tasks.places import Place, open_at, read_at, remove_at

# A folder without a job this long after it was made belongs to nobody: whoever made it is dead.
ORPHAN_S = 3600.0

_FIELDS = {field.name for field in fields(Job)}


class JobFiles:
    """The jobs directory inside a data directory, and the place of finished sound beyond it.

    Raises:
        SettingsError: nothing that is installed can open ``jobs_url``.
    """

    def __init__(self, data_dir: str | Path, jobs_url: str = "") -> None:
        self.root = Path(data_dir) / "jobs"
        self.deleted = Path(data_dir) / "deleted"
        self.place = Place(jobs_url) if jobs_url else None

    def folder(self, job_id: str) -> Path:
        return self.root / job_id

    def make_folder(self, job_id: str) -> Path:
        """Where a new job goes. Only who accepts a job makes it: others may come after its end."""
        folder = self.folder(job_id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # -- the job itself --------------------------------------------------------------------

    def save(self, job: Job, pieces: Sequence[Piece]) -> None:
        """Store a new job."""
        self.make_folder(job.job_id)
        self._write(job, pieces)

    def update(self, job: Job, pieces: Sequence[Piece]) -> None:
        """Store a job's new state, unless it was deleted meanwhile."""
        with suppress(FileNotFoundError):
            self._write(job, pieces)

    def _write(self, job: Job, pieces: Sequence[Piece]) -> None:
        record = asdict(job) | {"pieces": [piece.to_row() for piece in pieces]}
        data = json.dumps(record, ensure_ascii=False).encode()
        write_whole(self.folder(job.job_id) / "job.json", data)

    def load(self, job_id: str) -> tuple[Job, list[Piece]] | None:
        """The job as last saved, None if there is none."""
        try:
            text = (self.folder(job_id) / "job.json").read_text("utf-8")
        except FileNotFoundError:
            return None
        record: dict[str, Any] = json.loads(text)
        pieces = [Piece.of_row(row) for row in record.pop("pieces")]
        record["kind"] = Kind(record["kind"])
        record["state"] = State(record["state"])
        record["request"] = SpeechRequest.from_json(record["request"])
        record["warnings"] = tuple(record["warnings"])
        # Another version may have written it: what this one does not know is left out.
        job = Job(**{name: value for name, value in record.items() if name in _FIELDS})
        if not job.state.is_final and (self.folder(job_id) / "cancelled").exists():
            job = replace(job, state=State.CANCELLED)
        elif not job.state.is_final and self.is_paused(job_id):
            job = replace(job, state=State.PAUSED)
        return job, pieces

    def mark_cancelled(self, job_id: str) -> None:
        """Remember that a job is to end, should Redis forget it. An empty file is quickly made, and
        also where the disk is full.

        Raises:
            OSError: it cannot be made; FileNotFoundError where there is no such job any more.
        """
        (self.folder(job_id) / "cancelled").touch()

    def set_paused(self, job_id: str, is_paused: bool) -> None:
        """Remember that a job is paused, or that it is not.

        Raises:
            FileNotFoundError: there is no such job any more.
        """
        mark = self.folder(job_id) / "paused"
        if is_paused:
            mark.touch()
        else:
            mark.unlink(missing_ok=True)

    def is_paused(self, job_id: str) -> bool:
        return (self.folder(job_id) / "paused").exists()

    def job_ids(self) -> list[str]:
        return [entry.parent.name for entry in sorted(self.root.glob("*/job.json"))]

    def delete(self, job_id: str) -> None:
        """Remove a job and its sound.

        Raises:
            PlaceAway: its sound is elsewhere and cannot be removed now; the job stays.
        """
        self._remove_stored(job_id)
        # Renamed away first, in one step: somebody may be writing into it at this moment, and what
        # he writes must not make it a job again.
        self.deleted.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            grave = self.deleted / f"{job_id}.{uuid.uuid4().hex}"
            self.folder(job_id).rename(grave)
            shutil.rmtree(grave, ignore_errors=True)

    def delete_orphans(self) -> None:
        """Remove folders whose job was never accepted, or whose removal was broken off."""
        for folder in self.root.glob("*/"):
            # Somebody else may remove it at this moment.
            with suppress(FileNotFoundError):
                is_old = folder.stat().st_mtime < time.time() - ORPHAN_S
                if is_old and not (folder / "job.json").exists():
                    self.delete(folder.name)
        for grave in self.deleted.glob("*/"):
            shutil.rmtree(grave, ignore_errors=True)

    # -- one at a time ---------------------------------------------------------------------

    @contextmanager
    def alone(self, job_id: str, name: str = "lock") -> Iterator[bool]:
        """Whether the caller has this job for itself inside the block; the system frees what a
        killed holder had. ``name`` tells one lock of a job from another.

        Raises:
            FileNotFoundError: there is no such job.
        """
        with (self.folder(job_id) / name).open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    # -- sound -----------------------------------------------------------------------------

    def record(self, job_id: str, pieces: Sequence[Piece], sample_rate: int) -> Recorder:
        """For the one who has the job for itself: to append chunks."""
        return Recorder(self.folder(job_id), pieces, sample_rate)

    def chunk_lengths(self, job_id: str) -> dict[int, int]:
        """Samples of every chunk that is on disk, without pauses."""
        folder = self.folder(job_id)
        lengths = {index: entry.n_samples for index, entry in enumerate(read_index(folder))}
        for index in loose_chunks(folder) - lengths.keys():
            lengths[index] = loose_path(folder, index).stat().st_size // BYTES_PER_SAMPLE
        return lengths

    def read_chunk(self, job_id: str, index: int) -> bytes | None:
        """Samples of a chunk without its pause, None if it is not kept."""
        folder = self.folder(job_id)
        try:
            return loose_path(folder, index).read_bytes()
        except FileNotFoundError:
            # Not waiting, or not any more: then it is in the index by now.
            entry = find_entry(folder, index)
        if entry is None:
            return None
        start = WAV_HEADER_BYTES + BYTES_PER_SAMPLE * entry.start
        size = BYTES_PER_SAMPLE * entry.n_samples
        try:
            with (folder / SOUND).open("rb") as sound:
                sound.seek(start)
                return sound.read(size)
        except FileNotFoundError:
            url = self.stored_url(job_id)
            return read_at(url, start, size) if url else None

    def spoken_samples(self, job_id: str) -> int:
        """How long the sound is up to the first chunk that is missing."""
        entries = self.entries(job_id)
        return entries[-1].end if entries else 0

    def entries(self, job_id: str) -> list[Entry]:
        """Where each chunk lies in the sound, up to the first that is missing."""
        return read_index(self.folder(job_id))

    def open_sound(self, job_id: str) -> tuple[BinaryIO, int] | None:
        """The sound, complete or not, and its size in bytes; None where there is none.

        Raises:
            PlaceAway: it is elsewhere and cannot be reached.
        """
        try:
            file = (self.folder(job_id) / SOUND).open("rb")
        except FileNotFoundError:
            url = self.stored_url(job_id)
            return open_at(url) if url else None
        return file, os.fstat(file.fileno()).st_size

    # -- finished sound elsewhere ----------------------------------------------------------

    def check_writable(self) -> None:
        """Whether jobs can be kept here.

        Raises:
            OSError, PlaceAway: they cannot.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        probe = self.root / ".probe"
        write_whole(probe, b"supertonic")
        probe.unlink(missing_ok=True)
        if self.place is not None:
            self.place.check()

    def store(self, job_id: str) -> None:
        """Bring finished sound to its place, if that is elsewhere.

        Raises:
            PlaceAway: it cannot be brought there.
        """
        if self.place is None or self.stored_url(job_id):
            return
        name, folder = f"{job_id}.wav", self.folder(job_id)
        # Written first: whoever deletes the job after a crash in the middle knows where to look.
        write_whole(folder / "storing", self.place.url_of(name).encode())
        url = self.place.put(name, folder / SOUND)
        try:
            (folder / "storing").rename(folder / "stored")
        except FileNotFoundError:
            # Deleted while it was brought there: nobody else knows of it any more.
            remove_at(url)
            raise

    def stored_url(self, job_id: str) -> str:
        """Where a job's sound is if it is elsewhere, else empty. The job knows: the setting may
        have changed since.
        """
        return self._url_in(job_id, "stored")

    def _url_in(self, job_id: str, name: str) -> str:
        try:
            return (self.folder(job_id) / name).read_text("utf-8")
        except FileNotFoundError:
            return ""

    def _remove_stored(self, job_id: str) -> None:
        """Remove sound that is elsewhere, or was on its way there when somebody was killed."""
        if url := self.stored_url(job_id) or self._url_in(job_id, "storing"):
            remove_at(url)

    def drop_copy(self, job_id: str) -> None:
        """Remove the sound here if it is elsewhere."""
        if self.stored_url(job_id):
            (self.folder(job_id) / SOUND).unlink(missing_ok=True)

    def drop_loose(self, job_id: str) -> None:
        """Remove chunks that will never be appended, and what a killed writer may have left."""
        for pattern in ("[0-9]*.pcm", "*.partial"):
            for path in self.folder(job_id).glob(pattern):
                path.unlink(missing_ok=True)

    def drop_sound(self, job_id: str) -> None:
        # It may have ended otherwise while its sound was being brought there.
        self._remove_stored(job_id)
        for name in ("storing", "stored", SOUND, "chunks.idx"):
            (self.folder(job_id) / name).unlink(missing_ok=True)
