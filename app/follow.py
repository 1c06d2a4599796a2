"""From a job to its audio in order, from any web process and from any starting point.

Everything that is needed is in Redis or, for long jobs, on disk; so a follower may come at any
time, leave, and be replaced by another.
"""

import logging
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from queue import Empty

import redis
from kombu.exceptions import OperationalError

from app.care import LOOK_S, Care
from app.delivery import ListenerWatch
from app.encoding import Encoder
from app.jobs import Speech
from tasks.messages import Job, Kind, Piece, State
from tasks.records import Event, position

logger = logging.getLogger(__name__)

# Delivered audio nobody can ask for again: at 300 chunks/s a minute of it would fill gigabytes. It
# is there for the client's own second try, should the connection break with the answer in it.
DELIVERED_ONCE_S = 1
# More than this is not fetched before it is written: a client may read slowly.
AT_ONCE_SAMPLES = 250_000
# Of a slice. Clients bound a WebSocket's message (1 MiB in Python's websockets) and an event's line
# (512 KB in aiohttp), and a chunk may be longer.
PART_SAMPLES = 131_072


@dataclass(frozen=True, slots=True)
class Spoken:
    """Chunk ``index`` with its pause: ``pcm`` is s16le mono, None where it was not asked for.

    Or a part of it: from sample ``start`` on, and without the end where ``is_last`` is false. With
    an encoder ``pcm`` is what it gave, maybe nothing yet, and ``n_samples`` went into that.
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
    """The last item: how the job ended. Missing where this process ends and the job goes on."""

    state: State
    error: str = ""
    status: int = 500  # of the answer, where it failed


Item = Spoken | Gap | Quiet | Paused | Resumed | Ended


def follow(
    speech: Speech,
    job: Job,
    pieces: list[Piece],
    after: int = -1,
    *,
    with_audio: bool = True,
    start: int = 0,
    may_return: bool = True,
    encoder: Encoder | None = None,
    is_asker: bool = True,
) -> Iterator[Item]:
    """Chunks after index ``after``, in order, each once; then ``Ended``. Of the first of them only
    what is behind its first ``start`` samples. Where ``job.slices``, chunks come in parts.

    ``Quiet`` is yielded about once a second while nothing happens, so that the caller can
    show a sign of life. Redis being away for a while is waited out. Without ``may_return`` nobody
    will follow this job later, so its audio leaves Redis as soon as it is taken. What is measured
    is how ``is_asker`` fares, the one listener who asked for the job.
    """
    items = _Following(speech, job, pieces, after, with_audio, start, may_return).items()
    if encoder is not None:
        items = _encoded(items, encoder)
    return ListenerWatch(job, speech.meter, is_asker).watch(items)


def _encoded(items: Generator[Item, None, None], encoder: Encoder) -> Generator[Item, None, None]:
    """The items in another format; before the end of a job that is done, what is left of it."""
    index = n_samples = 0
    with closing(items):
        for item in items:
            if isinstance(item, Spoken) and item.pcm is not None:
                index, n_samples = item.index, n_samples + item.n_samples
                sound = encoder.encode(item.pcm)
                yield replace(item, pcm=sound, n_samples=n_samples if sound else 0)
                n_samples = 0 if sound else n_samples
                continue
            if isinstance(item, Ended) and item.state is State.DONE:
                for sound in filter(None, encoder.finish()):
                    yield Spoken(index, "", sound, n_samples, {}, is_last=False)
                    n_samples = 0
            yield item


class _Following:
    """How far one listener has come with a job, and what is known of the rest."""

    def __init__(
        self,
        speech: Speech,
        job: Job,
        pieces: list[Piece],
        after: int,
        with_audio: bool,
        start: int,
        may_return: bool,
    ) -> None:
        self.speech = speech
        self.job = job
        self.pieces = pieces
        self.with_audio = with_audio
        self.may_return = may_return
        self.next_index, self.start = after + 1, start  # what comes next: a chunk, from a sample on
        self._care = Care(speech, job, pieces)
        self._cursor = "0"  # the last entry seen of the job's events
        self._ready: dict[int, Event] = {}
        self._begun: set[int] = set()  # chunks of which slices are there
        self._sounds: dict[int, bytes | None] = {}  # of the next ones that are ready
        self._ending: Event | None = None
        self._is_paused = False

    def items(self) -> Generator[Item, None, None]:
        care, heard, must_look, was_paused = self._care, list[Event](), True, False
        is_sure = False  # of all that was said before the job ended
        with self.speech.bell.listen(self.job.job_id) as line:
            while True:
                news: list[Event] = []
                try:
                    if has_looked := must_look:
                        has_ended = self._ending is not None
                        news = self.speech.store.events(self.job.job_id, self._cursor)
                        care.redis_answered()
                        is_sure, must_look = has_ended, False
                    else:
                        # It may have been seen by looking already.
                        news = [e for e in heard if e.position > position(self._cursor)]
                    self._note(news)
                    yield from self._chunks()
                    yield from self._slices()
                    if has_looked and not news and care.look_after(self.next_index):
                        # A Redis that lost everything numbers its entries anew.
                        self._cursor = "0"
                    care.renew(self.next_index)
                except (redis.RedisError, OperationalError) as error:
                    care.redis_was_away(error)
                # A failed or cancelled job may have later chunks, but never the next one.
                if self._ending is not None and self.next_index not in self._ready:
                    if not self._is_missing(self._ending):
                        yield Ended(State(self._ending.type), self._ending.error)
                        return
                    if is_sure:
                        yield Gap(self.next_index)
                        self.next_index, self.start = self.next_index + 1, 0
                        continue
                    # News of it may have been missed: all of it once more.
                    self._cursor, must_look = "0", True
                if self._is_paused is not was_paused:
                    # Only how it stands now: who comes later is not told of pauses that are over.
                    was_paused = self._is_paused
                    yield Paused() if was_paused else Resumed()
                if news:
                    care.heard()
                elif care.gave_up:
                    yield Ended(State.FAILED, care.gave_up, care.status)
                    return
                if time.monotonic() > self.speech.stops_at:
                    if not self.job.resumable:
                        care.stop()
                        yield Ended(State.FAILED, care.gave_up, care.status)
                    # Else whoever follows it goes on where he was, at another process.
                    return
                try:
                    heard = line.wait(LOOK_S) or []
                    must_look = must_look or not heard
                except Empty:
                    must_look = True
                    yield Quiet()

    def _is_missing(self, ending: Event) -> bool:
        """Whether the next chunk has been spoken, since the job is done, and is not known of."""
        is_done = ending.type == State.DONE and self.job.kind is not Kind.LONG
        return is_done and self.next_index < self.job.count

    def _note(self, news: Iterable[Event]) -> None:
        for event in news:
            self._cursor = event.entry_id
            if event.type in ("paused", "resumed"):
                self._is_paused = event.type == "paused"
            elif event.type == "slice":
                self._begun.add(event.index)
            elif event.type != "audio":
                self._ending = event
            elif event.index >= self.next_index:
                self._ready[event.index] = event

    def _chunks(self) -> Iterator[Spoken | Gap]:
        """The next chunks, as far as they are ready."""
        while (event := self._ready.get(self.next_index)) is not None:
            if self.with_audio and event.index not in self._sounds:
                kept = {n: sound for n, sound in self._sounds.items() if sound is not None}
                self._sounds = {**self._fetch(event.index), **kept}
                self._care.redis_answered()
            item = self._item(event)
            if isinstance(item, Gap) and self._ending is None and self.job.kind is not Kind.LONG:
                # Said, but lost before we had it: the same samples can be made again. The files
                # worker does that for long jobs; what it has on disk and this process cannot see
                # must not be taken for lost.
                del self._ready[event.index]
                if self.speech.store.forget_chunk(self.job.job_id, event.index):
                    self.speech.send(self.job, self.pieces, [event.index])
                return
            yield from [item] if isinstance(item, Gap) else self._parts(item)
            del self._ready[event.index]
            self.next_index, self.start = event.index + 1, 0
            self._care.renew(self.next_index)

    def _slices(self) -> Iterator[Spoken]:
        """What there is of the next chunk while it is being made."""
        index = self.next_index
        if not self.job.slices or index not in self._begun - self._ready.keys():
            return
        if self.with_audio and (
            pcm := self.speech.store.audio_after(self.job.job_id, index, self.start)
        ):
            n_samples = len(pcm) // 2
            text = self.pieces[index].text
            yield from self._parts(
                Spoken(index, text, pcm, n_samples, {}, self.start, is_last=False)
            )
            self.start += n_samples

    def _parts(self, spoken: Spoken) -> Iterator[Spoken]:
        """The same in several, where its listener takes a chunk in slices and this one is long."""
        if not self.job.slices or spoken.pcm is None or spoken.n_samples <= PART_SAMPLES:
            yield spoken
            return
        for begin in range(0, spoken.n_samples, PART_SAMPLES):
            end = min(begin + PART_SAMPLES, spoken.n_samples)
            is_end = end == spoken.n_samples
            yield replace(
                spoken,
                pcm=spoken.pcm[2 * begin : 2 * end],
                n_samples=end - begin,
                facts=spoken.facts if is_end else {},
                start=spoken.start + begin,
                is_last=spoken.is_last and is_end,
            )

    def _item(self, event: Event) -> Spoken | Gap:
        piece = self.pieces[event.index]
        pause_samples = round(piece.pause_s * self.job.sample_rate)
        if self.start > event.n_samples + pause_samples:
            # Nobody can have heard so much of it; rather all of it again than nothing.
            self.start = 0
        pcm = None
        if self.with_audio:
            sound = self._sounds.pop(event.index)
            if sound is None:
                return Gap(event.index)
            pcm = b"".join((sound, bytes(2 * pause_samples))) if pause_samples else sound
            if self.start:
                pcm = pcm[2 * self.start :]
        n_samples = event.n_samples + pause_samples - self.start
        return Spoken(event.index, piece.text, pcm, n_samples, event.facts, self.start)

    def _fetch(self, first: int) -> dict[int, bytes | None]:
        """Samples, without pauses, of the next chunks that are ready, wherever they are kept now:
        of more than the first as far as they are small.
        """
        job, ready = self.job, self._ready
        indexes, n_samples = [first], ready[first].n_samples
        while (event := ready.get(indexes[-1] + 1)) is not None:
            n_samples += event.n_samples
            if n_samples > AT_ONCE_SAMPLES:
                break
            indexes.append(event.index)
        last_s = None if self.may_return or job.kind is Kind.LONG else DELIVERED_ONCE_S
        audios = self.speech.store.audios(job.job_id, indexes, last_s)
        sounds = dict(zip(indexes, audios, strict=True))
        if job.kind is Kind.LONG:
            for index in (index for index, sound in sounds.items() if sound is None):
                sounds[index] = self.speech.files.read_chunk(job.job_id, index)
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
