"""From a job to its audio in order, from any web process and from any starting point.

Everything that is needed is in Redis or, for long jobs, on disk; so a follower may come at any
time, leave, and be replaced by another.
"""

import logging
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from queue import Empty

import redis
from kombu.exceptions import OperationalError

from app.delivery import Delivery
from app.jobs import Speech
from tasks.events import Event, position
from tasks.logs import facts
from tasks.messages import Job, Kind, Piece, State
from tasks.sending import silence_s

logger = logging.getLogger(__name__)

# Delivered audio nobody can ask for again: at 300 chunks/s a minute of it would fill gigabytes.
DELIVERED_ONCE_S = 2
# More than this is not fetched before it is written: a client may read slowly.
AT_ONCE_SAMPLES = 250_000
# Without news a stream looks by itself this often; the bell normally wakes it.
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Spoken:
    """Chunk ``index`` with its pause: ``pcm`` is s16le mono, None where it was not asked for.

    Or a part of it: from sample ``start`` on, and without the end where ``is_last`` is false.
    """

    index: int
    text: str
    pcm: bytes | None
    n_samples: int
    facts: dict[str, float | int]
    start: int = 0
    is_last: bool = True


@dataclass(frozen=True, slots=True)
class Gap:
    """Chunk ``index`` was spoken, but its audio is no longer kept."""

    index: int


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing happened for a moment."""


@dataclass(frozen=True, slots=True)
class Paused:
    """The job is paused: what follows comes when it is resumed."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The job goes on."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The last item of every following: how the job ended."""

    state: State
    error: str = ""


def follow(
    speech: Speech,
    job: Job,
    pieces: list[Piece],
    after: int = -1,
    *,
    with_audio: bool = True,
    start: int = 0,
    once: bool = False,
) -> Iterator[Spoken | Gap | Quiet | Paused | Resumed | Ended]:
    """Chunks after index ``after``, in order, each once; then ``Ended``. Of the first of them only
    what is behind its first ``start`` samples. Where ``job.slices``, chunks come in parts.

    ``Quiet`` is yielded about once a second while nothing happens, so that the caller can
    show a sign of life. Redis being away for a while is waited out. ``once``: nobody will follow
    this job later, so its audio leaves Redis as soon as it is taken.
    """
    items = _follow(speech, job, pieces, after, with_audio, start, once)
    return Delivery(job, speech.meter, after).watch(items)


def _follow(
    speech: Speech,
    job: Job,
    pieces: list[Piece],
    after: int,
    with_audio: bool,
    start: int,
    once: bool,
) -> Generator[Spoken | Gap | Quiet | Paused | Resumed | Ended, None, None]:
    ready: dict[int, Event] = {}
    sounds: dict[int, bytes | None] = {}  # of the next ones that are ready
    begun: set[int] = set()  # chunks of which slices are there
    ending: Event | None = None
    next_index, cursor = after + 1, "0"
    is_paused = was_paused = False
    care = _Care(speech, job, pieces)
    heard: list[Event] = []
    must_look = True
    with speech.bell.listen(job.job_id) as line:
        while True:
            news: list[Event] = []
            is_looking = must_look
            try:
                if must_look:
                    news = speech.store.events(job.job_id, cursor)
                    care.redis_answered()
                    must_look = False
                else:
                    # It may have been seen by looking already.
                    news = [event for event in heard if event.position > position(cursor)]
                for event in news:
                    cursor = event.entry_id
                    if event.type in ("paused", "resumed"):
                        is_paused = event.type == "paused"
                    elif event.type == "slice":
                        begun.add(event.index)
                    elif event.type != "audio":
                        ending = event
                    elif event.index >= next_index:
                        ready[event.index] = event
                while next_index in ready:
                    if with_audio and next_index not in sounds:
                        sounds = _sounds(speech, job, ready, next_index, once)
                        care.redis_answered()
                    sound = sounds.pop(next_index) if with_audio else b""
                    item = _item(job, pieces, ready[next_index], sound, with_audio, start)
                    if isinstance(item, Gap) and ending is None and job.kind is not Kind.LONG:
                        # Said, but lost before we had it: the same samples can be made again.
                        # The files worker does that for long jobs; what it has on disk and
                        # this process cannot see must not be taken for lost.
                        del ready[next_index]
                        speech.store.forget_chunk(job.job_id, next_index)
                        speech.send(job, pieces, [next_index])
                        break
                    yield item
                    del ready[next_index]
                    next_index, start = next_index + 1, 0
                    care.renew(next_index)
                if job.slices and next_index in begun - ready.keys() and with_audio:
                    if pcm := speech.store.audio_after(job.job_id, next_index, start):
                        text, n = pieces[next_index].text, len(pcm) // 2
                        yield Spoken(next_index, text, pcm, n, {}, start, is_last=False)
                        start += n
                if is_looking and not news and care.look_after(next_index):
                    # A Redis that lost everything numbers its entries anew.
                    cursor = "0"
                care.renew(next_index)
            except (redis.RedisError, OperationalError) as error:
                care.redis_was_away(error)
            # A failed or cancelled job may have later chunks, but never the next one.
            if ending is not None and next_index not in ready:
                yield Ended(State(ending.type), ending.error)
                return
            if is_paused is not was_paused:
                # Only how it stands now: whoever comes later is not told of pauses that are over.
                was_paused = is_paused
                yield Paused() if is_paused else Resumed()
            if news:
                care.heard()
            elif care.gave_up:
                yield Ended(State.FAILED, care.gave_up)
                return
            try:
                heard = line.wait(LOOK_S) or []
                must_look = must_look or not heard
            except Empty:
                must_look = True
                yield Quiet()


def _item(
    job: Job, pieces: list[Piece], event: Event, sound: bytes | None, with_audio: bool, start: int
) -> Spoken | Gap:
    piece = pieces[event.index]
    pause_samples = round(piece.pause_s * job.sample_rate)
    pcm = None
    if with_audio:
        if sound is None:
            return Gap(event.index)
        pcm = b"".join((sound, bytes(2 * pause_samples))) if pause_samples else sound
        if start:
            pcm = pcm[2 * start :]
    n_samples = max(0, event.n_samples + pause_samples - start)
    return Spoken(event.index, piece.text, pcm, n_samples, event.facts or {}, start)


def _sounds(
    speech: Speech, job: Job, ready: dict[int, Event], first: int, once: bool
) -> dict[int, bytes | None]:
    """Samples, without pauses, of the next chunks that are ready, wherever they are kept now: of
    more than the first as far as they are small.
    """
    indexes, n_samples = [first], ready[first].n_samples
    while (event := ready.get(indexes[-1] + 1)) is not None:
        n_samples += event.n_samples
        if n_samples > AT_ONCE_SAMPLES:
            break
        indexes.append(event.index)
    may_go = once and job.kind is not Kind.LONG
    last_s = DELIVERED_ONCE_S if may_go else None
    sounds = dict(zip(indexes, speech.store.audios(job.job_id, indexes, last_s), strict=True))
    if job.kind is Kind.LONG:
        for index in (index for index, sound in sounds.items() if sound is None):
            sounds[index] = speech.files.read_chunk(job.job_id, index)
    return sounds


def let_go(speech: Speech, job: Job, indexes: Iterable[int]) -> None:
    """Delivered audio is kept only as long as a client may come back for it."""
    if job.kind is Kind.LONG:
        return
    grace_s = speech.settings.delivered_ttl_s
    try:
        speech.store.let_go(job.job_id, indexes, grace_s)
    except redis.RedisError as error:
        # Nobody's loss: it has a time to live anyway.
        logger.warning("could not shorten the life of delivered audio: %s", error)


class _Care:
    """What a follower does while it hears nothing: finds out why, and repairs it if it can."""

    def __init__(self, speech: Speech, job: Job, pieces: list[Piece]) -> None:
        self.speech = speech
        self.job = job
        self.pieces = pieces
        self.gave_up = ""
        self._heard_at = self._worker_at = time.monotonic()
        self._looked_at = self._renewed_at = self._heard_at
        self._away_since: float | None = None

    def heard(self) -> None:
        self._heard_at = self._worker_at = time.monotonic()

    def redis_was_away(self, error: Exception) -> None:
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._away_since > self.speech.settings.patience_s:
            self.gave_up = f"Redis could not be reached: {error}"

    def redis_answered(self) -> None:
        self._away_since = None

    def renew(self, next_index: int) -> None:
        """A slow listener, who plays while receiving, must not find the end expired."""
        now, ttl_s = time.monotonic(), self.speech.settings.stream_ttl_s
        if self.job.kind is not Kind.LONG and now - self._renewed_at > ttl_s / 4:
            self._renewed_at = now
            self.speech.store.renew(self.job.job_id, range(next_index, self.job.count), ttl_s)

    def look_after(self, next_index: int) -> bool:
        """Called when the stream holds nothing new. True if the job had to be made again."""
        now = time.monotonic()
        if now - self._looked_at < LOOK_S:
            return False
        self._looked_at = now
        settings, store = self.speech.settings, self.speech.store
        if self.job.kind is Kind.LONG or self.speech.workers():
            # A long job outlives a time without workers; whoever watches it waits with it.
            self._worker_at = now
        elif now - self._worker_at > settings.patience_s:
            self.gave_up = f"no speech worker was running for {settings.patience_s:g} s"
            store.end(self.job.job_id, State.FAILED, self.gave_up)
            return False
        is_gone = store.job(self.job.job_id) is None
        if self.job.kind is Kind.LONG:
            # The files worker looks after long jobs, as long as they are on disk.
            if is_gone and self.speech.files.load(self.job.job_id) is None:
                self.gave_up = "the job was deleted"
        elif is_gone:
            logger.warning("job sent again, Redis lost it", extra=facts(job_id=self.job.job_id))
            if store.create(self.job, self.pieces, settings.stream_ttl_s):
                for index in range(next_index):
                    store.mark_published(self.job.job_id, index, 0)
                self._send_again(next_index)
            return True
        elif now - self._heard_at > silence_s(store, settings, settings.stream_ttl_s):
            self._send_again(next_index)
        return False

    def _send_again(self, next_index: int) -> None:
        indexes = list(range(next_index, self.job.count))
        published = self.speech.store.published(self.job.job_id, indexes)
        missing = [i for i, n in zip(indexes, published, strict=True) if n is None]
        if missing:
            about = facts(job_id=self.job.job_id, chunks=missing)
            logger.warning("chunks sent again, they seem lost", extra=about)
            self.speech.send(self.job, self.pieces, missing)
        self._heard_at = time.monotonic()
