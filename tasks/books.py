"""A long job as an audiobook: what it is called and where its chapters begin.

``DATA/jobs/J/book.json`` holds the names, ``book.m4b`` the file once somebody has asked for it
(tasks/m4b.py). Chapters follow from the job's pieces and from the index of its sound.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis

from tasks.jobsound import Entry, write_whole
from tasks.messages import Piece

FACTS, BOOK = "book.json", "book.m4b"
# How long what was noted of a book in the making is true.
NOTE_S = 60
# The most, of speech in one channel.
AAC_BIT_RATE = 96_000


@dataclass(frozen=True, slots=True)
class Book:
    """What a book is called, as its speaker said; either may be empty."""

    title: str = ""
    author: str = ""

    @classmethod
    def load(cls, folder: Path) -> "Book":
        """The book of the job in this folder; without names if none were given."""
        try:
            return cls(**json.loads((folder / FACTS).read_text("utf-8")))
        except FileNotFoundError:
            return cls()

    def save(self, folder: Path) -> None:
        write_whole(folder / FACTS, json.dumps(asdict(self), ensure_ascii=False).encode())


@dataclass(frozen=True, slots=True)
class Chapter:
    """``start`` and ``end`` are samples from the beginning of the sound, None for what is not
    spoken yet.
    """

    title: str
    index: int  # of its first chunk
    start: int | None
    end: int | None


def chapters(pieces: Sequence[Piece], entries: Sequence[Entry]) -> Iterator[Chapter]:
    """The chapters of a job, as far as its sound is there. The silence behind one is its own."""
    firsts = [index for index, piece in enumerate(pieces) if piece.chapter]
    for first, behind in pairwise([*firsts, len(pieces)]):
        start = entries[first].start if first < len(entries) else None
        end = entries[behind - 1].end if behind <= len(entries) else None
        yield Chapter(pieces[first].chapter, first, start, end)


class Making:
    """What is known of a book that is being made, in Redis: how much of it is done, or why not.
    Without Redis nobody is told, and the book is made all the same.
    """

    def __init__(self, client: "redis.Redis", job_id: str) -> None:
        self._redis = client
        self._key = f"supertonic:book:{job_id}"

    def note(self, share: float = 0.0, error: str = "") -> None:
        with suppress(redis.RedisError):
            self._redis.hset(self._key, mapping={"share": share, "error": error})
            self._redis.expire(self._key, NOTE_S)

    def forget(self) -> None:
        with suppress(redis.RedisError):
            self._redis.delete(self._key)

    def read(self) -> tuple[float, str]:
        """The share that is done, and what prevents the rest; 0 and empty if nothing is known."""
        found: Any = self._redis.hmget(self._key, ["share", "error"])
        share, error = found
        return float(share or 0), (error or b"").decode()
