"""From what a user typed to chunks that are spoken one at a time.

``read_text`` finds the paragraphs, ``split_text`` cuts them; what the model reads of a chunk is in
``characters``.
Standard library only, so the web can use it without the model.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from supertonic.characters import (
    MAX_IDS,
    NOTHING_TO_SAY,
    check_language,
    count_ids,
    is_speakable,
)
from supertonic.chunking import Break, Size, cut_paragraph
from supertonic.errors import EmptyText
from supertonic.lexicon import Lexicon, Reading
from supertonic.marks import MOST_S, PAUSE, VOICE, seconds, voice

__all__ = [
    "Break",
    "Paragraph",
    "TextChunk",
    "estimate_seconds",
    "read_text",
    "split_text",
]

_FIRST_CHARS = {"ko": 24}  # elsewhere 60
_TARGET_CHARS = {"ko": 120}  # elsewhere 300, as in the official clients
_GROWTH = 2  # of a chunk over the one before, which is heard while it is spoken
# Between two paragraphs there is a blank line or a mark, whose groups are split off too.
_PARTING = re.compile(rf"\n\s*\n|\u2029|{PAUSE}|{VOICE}", re.IGNORECASE)


@dataclass(frozen=True)
class Paragraph:
    """A part of a text that ends with a blank line or marks; no chunk spans two.

    ``pause_s``: the seconds of silence behind it that marks ask for, however many; None without
    any. It may be empty if the text begins with a mark. ``voice``: as the mark before it names it,
    empty for the usual one. ``ends_at``: SENTENCE where only the voice changes behind it.
    """

    reading: Reading
    pause_s: float | None = None
    voice: str = ""
    ends_at: Break = Break.PARAGRAPH


@dataclass(frozen=True)
class TextChunk:
    """A piece of text to speak in one go, and the kind of break that follows it.

    ``read_as`` is what the model reads in its place, empty where that is the text itself.
    ``pause_s``: the seconds of silence behind it that pause marks ask for, None without any.
    ``voice``: as a mark names it, empty for the usual one.
    """

    text: str
    ends_at: Break
    read_as: str = ""
    pause_s: float | None = None
    voice: str = ""

    @property
    def spoken(self) -> str:
        return self.read_as or self.text

    def silence_s(self, usual: Mapping[Break, float]) -> float:
        """The seconds of silence behind it: those of marks, else what is usual for its break."""
        return usual[self.ends_at] if self.pause_s is None else min(self.pause_s, MOST_S)


def read_text(text: str, lexicon: Lexicon | None = None, most: float = math.inf) -> list[Paragraph]:
    """A text as it is to be spoken, in paragraphs whose words are one space apart.

    Raises TextTooLong where the lexicon makes more than ``most`` characters of it.
    """
    found: list[Paragraph] = []
    speaker = ""
    parts: Iterator[str | None] = iter((*_PARTING.split(text), None, None, None))
    for part, number, unit, named in zip(parts, parts, parts, parts, strict=True):
        written = " ".join((part or "").split())
        pause_s = seconds(number, unit) if number and unit else None
        ends_at = Break.SENTENCE if named else Break.PARAGRAPH
        if written or (pause_s is not None and not found):
            reading = lexicon.read(written, most) if lexicon else Reading(written, written)
            most -= len(reading.spoken)
            found.append(Paragraph(reading, pause_s, speaker, ends_at))
        elif found:
            # Marks in a row, or one in a line of its own, belong to what is before.
            silence_s = _sum(found[-1].pause_s, pause_s)
            if found[-1].ends_at is Break.PARAGRAPH:
                ends_at = Break.PARAGRAPH
            found[-1] = replace(found[-1], pause_s=silence_s, ends_at=ends_at)
        if named:
            speaker = voice(named)
    return found


def _sum(pause_s: float | None, more_s: float | None) -> float | None:
    return pause_s if more_s is None else (pause_s or 0.0) + more_s


def split_text(
    text: str | Sequence[Paragraph],
    language: str,
    *,
    first_chars: int | None = None,
    target_chars: int | None = None,
    max_chars: int | None = None,
) -> list[TextChunk]:
    """Cut text, as typed or as ``read_text`` gives it, into chunks of whole sentences, none above
    max_chars or 999 ids. Both count what is spoken, so a text with a lexicon is cut as if it were
    written as it is read.

    The first chunk is short, so that sound starts early: at most first_chars, and two thirds of
    that where a sentence, a clause or a phrase ends so early. The second aims at twice its length,
    and so on until target_chars, so that each can be spoken while the one before it is heard;
    first_chars of target_chars or more leaves that out. A sentence between target_chars and
    max_chars stays whole. Words keep their order and spelling; runs of white space become one
    space. A piece with nothing to say, such as a row of asterisks, joins a neighbour, or goes if it
    fits neither; so does a pause before anything is said. Raises EmptyText when nothing can be
    spoken, UnknownLanguage, and ValueError for a limit below 1.
    """
    check_language(language)
    sizes = _Sizes(language, first_chars, target_chars, max_chars)
    rest = sizes.rest
    chunks: list[TextChunk] = []
    opening: TextChunk | None = None  # has nothing to say and waits for the first chunk
    for piece in _pieces(read_text(text) if isinstance(text, str) else text, sizes):
        can_be_spoken = is_speakable(piece.spoken)
        before = chunks[-1] if chunks else opening
        if before is None or (can_be_spoken and opening is None):
            if can_be_spoken:
                chunks.append(piece)
            else:
                opening = piece
            continue
        joined = _join(before, piece)
        fits = len(joined.spoken) <= rest.longest and count_ids(joined.spoken) <= MAX_IDS
        if can_be_spoken:
            behind = replace(joined, pause_s=piece.pause_s, voice=piece.voice)
            chunks.append(behind if fits else piece)
            opening = None
        elif chunks:
            chunks[-1] = joined if fits else replace(before, pause_s=joined.pause_s)
        elif fits:
            opening = joined
    if not chunks:
        raise EmptyText(NOTHING_TO_SAY)
    chunks[-1] = replace(chunks[-1], ends_at=Break.END)
    return chunks


def _join(before: TextChunk, piece: TextChunk) -> TextChunk:
    is_replaced = before.read_as or piece.read_as
    return TextChunk(
        f"{before.text} {piece.text}".strip(),
        piece.ends_at,
        f"{before.spoken} {piece.spoken}" if is_replaced else "",
        _sum(before.pause_s, piece.pause_s),
        before.voice,
    )


class _Sizes:
    """How long each chunk should be: the first, the growing ones behind it, and the rest."""

    def __init__(
        self,
        language: str,
        first_chars: int | None,
        target_chars: int | None,
        max_chars: int | None,
    ) -> None:
        for limit in (first_chars, target_chars, max_chars):
            if limit is not None and limit < 1:
                raise ValueError(f"chunk lengths must be at least 1 character, got {limit}")
        usual_first = _FIRST_CHARS.get(language, 60)
        target = target_chars or _TARGET_CHARS.get(language, 300)
        longest = max_chars or target
        target = min(target, longest)
        first = min(first_chars or usual_first, target)
        self.shortest = usual_first // 3
        self.least = usual_first * 2 // 3
        self.rest = Size(target, longest, min(self.shortest, target // 2))
        self.first = self.rest
        if first < target:
            self.first = Size(max(1, first * 2 // 3), first, first // 5, is_opening=True)

    def after(self, piece: str, size: Size) -> Size:
        """The size of the chunk that follows a piece of this size."""
        if size == self.rest:
            return size
        if not size.is_opening:
            target = _GROWTH * size.target
        elif is_speakable(piece):
            # A very short piece is no measure: half a second of sound covers nothing.
            target = max(self.least, _GROWTH * len(piece))
        else:
            return size
        if target >= self.rest.target:
            return self.rest
        longest = min(target * 3 // 2, self.rest.longest)
        return Size(target, longest, min(self.shortest, target // 2))


def _pieces(paragraphs: Sequence[Paragraph], sizes: _Sizes) -> Iterator[TextChunk]:
    size = sizes.first
    for paragraph in paragraphs:

        def size_after(piece: str, before: Size) -> Size:
            nonlocal size
            size = sizes.after(piece, before)
            return size

        reading, end = paragraph.reading, 0
        for whole, whole_kind in cut_paragraph(reading.spoken, size, size_after):
            for spoken, kind in _within_ids(whole, whole_kind):
                start = end + reading.spoken.startswith(" ", end)
                end = start + len(spoken)
                written = reading.written_between(start, end)
                read_as = "" if written == spoken else spoken
                is_last = end == len(reading.spoken)
                yield TextChunk(
                    written,
                    paragraph.ends_at if is_last else kind,
                    read_as,
                    paragraph.pause_s if is_last else None,
                    paragraph.voice,
                )


def _within_ids(text: str, kind: Break) -> Iterator[tuple[str, Break]]:
    n_ids = count_ids(text)
    if n_ids <= MAX_IDS:
        yield text, kind
        return
    length = len(text) * MAX_IDS // n_ids
    size = Size(length, length, length // 4)
    for piece, inner_kind in cut_paragraph(text, size):
        yield from _within_ids(piece, kind if inner_kind is Break.PARAGRAPH else inner_kind)


# At speed 1. Rough: the voices differ by more than the languages do.
_SECONDS_PER_CHARACTER = {"en": 0.065, "es": 0.062, "pt": 0.062, "fr": 0.065, "ko": 0.065}
_SECONDS_PER_SYLLABLE = 0.17  # Hangul
_SECONDS_PER_DIGIT = 0.25  # "1984" is four characters but a second of speech
_SECONDS_PER_STOP = 0.25
_SECONDS_PER_COMMA = 0.12


@lru_cache(maxsize=4096)  # more chunks than a stream has; their lengths are asked for all the time
def estimate_seconds(text: str, language: str, speed: float) -> float:
    """A rough guess of the seconds of audio, without pauses between chunks; at least 0.3.

    Good for deadlines and admission, within about a factor of two. Raises UnknownLanguage.
    """
    check_language(language)
    composed = unicodedata.normalize("NFC", text)
    usual = _SECONDS_PER_CHARACTER[language]
    # By kind of character: a text has hundreds of them, but only some thirty kinds.
    kinds = Counter(composed).items()
    seconds = sum(count * _seconds(character, usual) for character, count in kinds)
    return max(0.3, seconds / speed)


def _seconds(character: str, usual: float) -> float:
    if "가" <= character <= "힣":
        return _SECONDS_PER_SYLLABLE
    if character.isdigit():
        return _SECONDS_PER_DIGIT
    if character in ".!?…":
        return _SECONDS_PER_STOP
    if character in ",;:":
        return _SECONDS_PER_COMMA
    return usual
