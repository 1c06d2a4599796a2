"""What travels between web, queue and workers: requests, chunks, jobs. Everything is plain JSON.

Checking happens at the web's edge (app/reading.py); here a message is only refused when it cannot
be understood at all, because whoever wrote it was not this program.
"""

import json
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache
from typing import Any

# No field of ours comes near: a chunk has at most 900 characters, times are seconds since 1970.
MAX_CHARS = 10_000
MAX_NUMBER = 1e12
# Of a text, in lists of jobs.
PREVIEW_CHARS = 120


class MalformedMessage(ValueError):
    """A queue message or stored record does not have the shape this version writes."""


class Urgency(StrEnum):
    """The queue a chunk waits in."""

    HIGH = "high"  # the first chunk of a request: somebody hears nothing yet
    NORMAL = "normal"  # what follows it
    LOW = "low"  # long jobs: nobody is listening


class Kind(StrEnum):
    """What a job's result is wanted as."""

    STREAM = "stream"
    FILE = "file"
    LONG = "long"


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"  # long jobs only: what is spoken stays, nothing more is spoken
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (State.DONE, State.FAILED, State.CANCELLED)

    @property
    def is_spoken(self) -> bool:
        """Whether chunks of such a job may enter a batch."""
        return self in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """What a user asked for, checked. ``pause_s`` is the silence after a sentence's chunk.

    Of the text, which may be a novel, only what lists of jobs show: the pieces hold all of it.
    """

    preview: str  # how it begins
    characters: int
    voice: str
    language: str
    steps: int
    speed: float
    seed: int
    pause_s: float

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "SpeechRequest":
        """Also one that a version before this one has stored, with all of its text."""
        data = dict(data)
        if (text := data.pop("text", None)) is not None:
            data |= {"preview": preview(text), "characters": len(text)}
        return cls(**data)


def preview(text: str) -> str:
    return text if len(text) <= PREVIEW_CHARS else text[:PREVIEW_CHARS] + "…"


@dataclass(frozen=True, slots=True)
class Piece:
    """One chunk of a job's text and the seconds of silence that follow it.

    ``text`` is as written; ``read_as`` is what the model reads in its place, empty where that is
    the text itself. ``chapter`` is the title of the chapter that it begins, if it begins one.
    ``voice`` speaks it, empty for the job's.
    """

    text: str
    pause_s: float
    read_as: str = ""
    chapter: str = ""
    voice: str = ""

    @property
    def spoken(self) -> str:
        return self.read_as or self.text

    @classmethod
    def of_row(cls, row: list[Any]) -> "Piece":
        """What a newer version put behind these fields is left out."""
        return cls(*row[:5])

    def to_row(self) -> list[str | float]:
        """As it is stored; ``of_row`` makes the piece again."""
        row: list[str | float] = [self.text, self.pause_s, self.read_as, self.chapter, self.voice]
        while len(row) > 2 and not row[-1]:
            row.pop()
        return row


@dataclass(frozen=True, slots=True)
class Chunk:
    """One queue message: a piece of text with everything needed to speak it.

    ``due`` is the moment (epoch seconds) at which a listener needs the first sample;
    ``seconds`` is the estimated length of its audio, which scheduling works with. ``content``
    names what it sounds like where it may be shared with other jobs, else it is empty.
    """

    job_id: str
    index: int
    count: int
    text: str
    voice: str
    language: str
    steps: int
    speed: float
    seed: int
    kind: Kind
    urgency: Urgency
    due: float
    seconds: float
    sent_at: float
    slices: bool  # its listener takes it in slices
    content: str

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _fields(Chunk)}

    @classmethod
    def from_json(cls, data: object) -> "Chunk":
        """Rebuild a chunk.

        Raises:
            MalformedMessage: a field is missing, unknown or of the wrong type.
        """
        values = _checked(cls, data)
        try:
            values["kind"] = Kind(values["kind"])
            values["urgency"] = Urgency(values["urgency"])
        except ValueError as error:
            raise MalformedMessage(f"chunk: {error}") from None
        return cls(**values)


_JSON_TYPES: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), bool: (bool,)}


@cache
def _fields(cls: Any) -> dict[str, Any]:
    return {f.name: f.type for f in fields(cls)}


def _checked(cls: type, data: object) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise MalformedMessage(f"{cls.__name__}: expected an object, got {type(data).__name__}")
    names = _fields(cls)
    if missing := sorted(names.keys() - data.keys()):
        raise MalformedMessage(f"{cls.__name__}: {missing[0]} is missing")
    if unknown := sorted(data.keys() - names.keys()):
        raise MalformedMessage(f"{cls.__name__}: {unknown[0]!r} is not a field")
    for name, kind in names.items():
        allowed = _JSON_TYPES.get(kind, (str,))
        value: Any = data[name]
        if not isinstance(value, allowed) or isinstance(value, bool) != (kind is bool):
            raise MalformedMessage(f"{cls.__name__}: {name}={_short(value)} is not {kind}")
        if not _is_bounded(value):
            raise MalformedMessage(f"{cls.__name__}: {name}={_short(value)} is too large")
    return dict(data)


def _is_bounded(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_CHARS
    # NaN compares false with everything, so it is refused too.
    return bool(abs(value) <= MAX_NUMBER)


def _short(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        # A number of more digits than Python likes to write, or a list of lists of lists.
        return "something endless"
    return text if len(text) <= 100 else text[:100] + "…"


@dataclass(frozen=True, slots=True)
class Job:
    """The facts of one job, as stored in Redis (and, for long jobs, in the data directory)."""

    job_id: str
    kind: Kind
    state: State
    request: SpeechRequest
    count: int
    done: int
    samples: int  # of speech so far, without pauses
    pause_samples: int  # of all pauses together
    sample_rate: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    error: str | None
    warnings: tuple[str, ...]
    owner: str
    slices: bool = False  # its listener takes chunks in slices; not stored
    resumable: bool = True  # it goes on when its listener leaves; not read back
    fingerprint: str = ""  # of the model, where chunks may be shared with other jobs

    @property
    def progress(self) -> float:
        return 1.0 if self.state is State.DONE else self.done / max(1, self.count)


def pieces_to_json(pieces: list[Piece]) -> str:
    return json.dumps([piece.to_row() for piece in pieces], ensure_ascii=False)


def pieces_from_json(text: str) -> list[Piece]:
    return [Piece.of_row(row) for row in json.loads(text)]
