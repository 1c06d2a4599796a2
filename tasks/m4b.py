"""Makes the M4B file of a long job that is done: AAC with chapters, as audiobook players read it.

It is made when somebody asks for it, by the files worker, and kept beside the sound.
"""

import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import redis
from celery.utils.log import get_logger

from supertonic.audio import WAV_HEADER_BYTES
from tasks.books import AAC_BIT_RATE, BOOK, Book, Chapter, Making, chapters
from tasks.jobfiles import JobFiles
from tasks.logs import facts
from tasks.messages import Job, Piece
from tasks.places import PlaceAway

logger = get_logger(__name__)

# Not ``*.partial``: those are removed when a job is closed, which may be at this moment.
PARTIAL, LOCK = "book.m4b.part", "book.lock"
BLOCK_BYTES = 1 << 18
NOTE_EVERY_S = 1.0


class BookMaker:
    """Makes at most ``at_once`` books at a time."""

    def __init__(self, client: "redis.Redis", files: JobFiles, at_once: int) -> None:
        self.redis = client
        self.files = files
        self._room = threading.BoundedSemaphore(at_once)

    def make(self, job_id: str) -> None:
        """Make the book of a job whose sound is whole, unless it is there or being made. Where
        others are being made nothing happens: who waits for it asks again.
        """
        saved = self.files.load(job_id)
        if saved is None or not self._room.acquire(blocking=False):
            return
        try:
            with self.files.alone(job_id, LOCK) as is_mine:
                if is_mine and not (self.files.folder(job_id) / BOOK).exists():
                    self._make(*saved)
        except FileNotFoundError:
            if self.files.load(job_id) is not None:
                raise
            # Deleted meanwhile.
        finally:
            self._room.release()

    def _make(self, job: Job, pieces: list[Piece]) -> None:
        folder, making = self.files.folder(job.job_id), Making(self.redis, job.job_id)
        making.note()
        try:
            self._write(folder, job, pieces, making)
            os.replace(folder / PARTIAL, folder / BOOK)
        except (OSError, av.FFmpegError, PlaceAway) as error:
            if self.files.load(job.job_id) is None:
                # Deleted meanwhile.
                making.forget()
                return
            # A full disk, above all.
            self._give_up(folder, making, getattr(error, "strerror", None) or str(error))
        except Exception:
            # Where sound is kept elsewhere, that library's own errors.
            logger.exception("a book cannot be made", extra=facts(job_id=job.job_id))
            self._give_up(folder, making, "its sound cannot be read, see the files worker's log")
        else:
            making.forget()
            logger.info("book made", extra=facts(job_id=job.job_id))

    def _write(self, folder: Path, job: Job, pieces: list[Piece], making: Making) -> None:
        found, entries = self.files.open_sound(job.job_id), self.files.entries(job.job_id)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "its sound is no longer kept")
        with found[0] as sound:
            if len(entries) < job.count:
                raise OSError(errno.EINVAL, "its sound is not whole")
            marks, book = list(chapters(pieces, entries)), Book.load(folder)
            progress = _Progress(making, folder, entries[-1].end)
            write_m4b(folder / PARTIAL, sound, job.sample_rate, book, marks, progress)

    def _give_up(self, folder: Path, making: Making, why: str) -> None:
        # Its place is of more use to others.
        with suppress(OSError):
            (folder / PARTIAL).unlink(missing_ok=True)
        making.note(error=why)
        logger.warning("a book cannot be made: %s", why, extra=facts(job_id=folder.name))


class _Progress:
    """Notes now and then how much is done. FileNotFoundError once the job is deleted."""

    def __init__(self, making: Making, folder: Path, n_samples: int) -> None:
        self._making = making
        self._folder = folder
        self._n_samples = n_samples
        self._noted_at = 0.0

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._noted_at >= NOTE_EVERY_S:
            self._folder.stat()
            self._making.note(done / self._n_samples)
            self._noted_at = time.monotonic()


def write_m4b(
    path: Path,
    sound: BinaryIO,
    sample_rate: int,
    book: Book,
    marks: Sequence[Chapter],
    tell: Callable[[int], None] = lambda done: None,
) -> None:
    """Encode a whole WAV, with what its chapters are called. ``tell`` hears how many samples are
    done.

    Raises:
        OSError, av.FFmpegError: the file cannot be written.
    """
    # With its index in front, so that players may begin before they have all of it.
    options = {"movflags": "+faststart", "brand": "M4B "}
    with av.open(str(path), "w", format="ipod", options=options) as file:
        file.metadata.update(_tags(book))
        file.set_chapters([_mark(number, mark, sample_rate) for number, mark in enumerate(marks)])
        stream = file.add_stream("aac", rate=sample_rate, layout="mono", bit_rate=AAC_BIT_RATE)
        sound.seek(WAV_HEADER_BYTES)
        done = 0
        while block := sound.read(BLOCK_BYTES):
            samples = np.frombuffer(block, "<i2")
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = sample_rate, done
            file.mux(stream.encode(frame))
            done += len(samples)
            tell(done)
        file.mux(stream.encode(None))


def _tags(book: Book) -> dict[str, str]:
    named = {"title": book.title, "album": book.title, "artist": book.author, "genre": "Audiobook"}
    return {name: value for name, value in named.items() if value}


def _mark(number: int, mark: Chapter, sample_rate: int) -> "av.container.core.Chapter":
    return {
        "id": number,
        "start": mark.start or 0,
        "end": mark.end or 0,
        "time_base": Fraction(1, sample_rate),
        "metadata": {"title": mark.title},
    }
