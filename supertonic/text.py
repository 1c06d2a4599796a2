"""From what a user typed to the ids the model reads.

``normalize`` repeats the text clean-up of the model's official clients, ``encode`` adds the
language tags and looks up ids, ``split_text`` cuts long text into chunks, spoken one at a time.
No torch, so the web can use it without the model.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from supertonic.chunking import Break, Size, cut_paragraph
from supertonic.errors import EmptyText, UnknownLanguage
from supertonic.lexicon import Lexicon, Reading
from supertonic.marks import MOST_S, PAUSE, VOICE, seconds, voice

__all__ = [
    "LANGUAGES",
    "UNKNOWN_ID",
    "MAX_IDS",
    "VOCABULARY",
    "Break",
    "Paragraph",
    "TextChunk",
    "check_language",
    "count_ids",
    "encode",
    "estimate_seconds",
    "is_speakable",
    "normalize",
    "read_text",
    "split_text",
    "unknown_characters",
]

LANGUAGES = ("en", "ko", "es", "pt", "fr")


def _span(first: int, last: int) -> str:
    return "".join(map(chr, range(first, last + 1)))


# A character's position is its id. Accents and Hangul come apart before the lookup, so they are
# listed as combining marks (grave, acute, circumflex, tilde, diaeresis, cedilla) and as jamo.
VOCABULARY = (
    " !\"$%&'()*+,-./0123456789:;<>?"
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    "~¡£«»¿œ"
    "\u0300\u0301\u0302\u0303\u0308\u0327"
    + _span(0x1100, 0x1112)  # leading consonants
    + _span(0x1161, 0x1175)  # vowels
    + _span(0x11A8, 0x11B2)  # final consonants; U+11B3, as in 곬, was left out by the publisher
    + _span(0x11B4, 0x11C2)
    + "€"
)
UNKNOWN_ID = len(VOCABULARY)  # 162: the embedding row that the published graphs reach with -1
_IDS = {character: position for position, character in enumerate(VOCABULARY)}

_EMOJI = (
    _span(0x1F1E6, 0x1F1FF)  # flags
    + _span(0x1F300, 0x1F64F)  # pictographs and faces
    + _span(0x1F680, 0x1FAFF)  # transport, alchemy, shapes, arrows, supplements
    + _span(0x2600, 0x27BF)  # weather, chess, dingbats
)
_INVISIBLE = (
    "\u200b\u200c\u200d\u2060\ufeff"  # zero-width spaces and joiners
    "\u00ad"  # soft hyphen
    "\ufe0e\ufe0f"  # emoji selectors
    + _span(0x200E, 0x200F)
    + _span(0x202A, 0x202E)
    + _span(0x2066, 0x2069)  # writing directions
)

# Decomposition runs first, so what it already rewrites is missing here: a non-breaking hyphen
# arrives as U+2010, and a spacing acute accent as a space with a combining mark.
_REPLACED = str.maketrans(
    {
        **dict.fromkeys(_EMOJI + _INVISIBLE + "♥☆♡©\\", ""),
        # Minus and primes, like those below, the official clients leave; the model knows none.
        **dict.fromkeys("\u2010\u2012\u2013\u2014\u2212", "-"),
        **dict.fromkeys("“”", '"'),
        **dict.fromkeys("‘’`\u02bc\u2032", "'"),
        **dict.fromkeys("_[]|/#→←", " "),
        **dict.fromkeys("\u2044•·", " "),
        "Œ": "œ",
        "æ": "ae",
        "Æ": "Ae",
        "。": ".",
        "@": " at ",
    }
)
_SPOKEN_OUT = {"e.g.,": "for example, ", "i.e.,": "that is, "}
_NO_SPACE_BEFORE = ",.!?;:'"
_REPEATED_QUOTES = re.compile(r"([\"'])\1+")
_ENDS_TEXT = tuple(".!?;:,'\")]}…。」』】〉》›»")
_LANGUAGE_TAGS = "<{language}>{text}</{language}>"
_SPEAKABLE = frozenset(c for c in VOCABULARY if c.isalnum()) | frozenset("$%&+£€")
_NOTHING_TO_SAY = (
    "nothing to say: the text is empty or holds only pauses, emoji, punctuation or characters the"
    " model cannot read; write at least one word in Latin letters, digits or Hangul"
)


def normalize(text: str) -> str:
    """Clean up text the way the official clients do, in their order.

    Accented letters and Hangul come back decomposed. Characters the model does not know stay in
    the text. Raises EmptyText when nothing is left, as for a text of emoji.
    """
    text = _clean(text)
    if not text:
        raise EmptyText(_NOTHING_TO_SAY)
    return text if text.endswith(_ENDS_TEXT) else text + "."


def _plain(text: str) -> str:
    """The clean-up that looks at one character at a time."""
    return unicodedata.normalize("NFKD", text).translate(_REPLACED)


def _clean(text: str) -> str:
    text = _plain(text)
    for written, spoken in _SPOKEN_OUT.items():
        text = text.replace(written, spoken)
    for mark in _NO_SPACE_BEFORE:
        text = text.replace(" " + mark, mark)
    text = _REPEATED_QUOTES.sub(r"\1", text)
    return " ".join(text.split())


def encode(text: str, language: str) -> list[int]:
    """The ids of a text between its language tags, one per character after ``normalize``.

    A character outside the vocabulary becomes UNKNOWN_ID, the embedding row the published graphs
    reach for it; ``unknown_characters`` names those, so that a caller can warn.
    Raises EmptyText and UnknownLanguage.
    """
    check_language(language)
    tagged = _LANGUAGE_TAGS.format(language=language, text=normalize(text))
    return [_IDS.get(character, UNKNOWN_ID) for character in tagged]


def check_language(language: str) -> None:
    """Raises UnknownLanguage, naming the languages there are."""
    if language not in LANGUAGES:
        raise UnknownLanguage(f"unknown language {language!r}; use one of {', '.join(LANGUAGES)}")


def unknown_characters(text: str) -> list[str]:
    """The characters of a text that the model cannot read, as typed, in order, each once.

    A letter is reported whole, with its accents ("å", not the ring), because that is what the
    user sees. Emoji and other characters that ``normalize`` removes are not reported.
    """
    composed = unicodedata.normalize("NFC", text)
    # A letter is readable exactly if each of its characters is.
    unreadable = {character for character in set(composed) if not _is_readable(character)}
    if not unreadable:
        return []
    letters = re.findall(r".[\u0300-\u036f]*", composed, re.DOTALL)
    return [letter for letter in dict.fromkeys(letters) if not unreadable.isdisjoint(letter)]


@lru_cache(maxsize=4096)
def _is_readable(character: str) -> bool:
    return all(plain in _IDS or plain.isspace() for plain in _plain(character))


# The published graphs take fewer than 1,000 ids, tags included. Decomposed Hangul needs two or
# three per syllable, so a limit in characters alone does not keep a chunk below it.
MAX_IDS = 999
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
        raise EmptyText(_NOTHING_TO_SAY)
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


def count_ids(text: str) -> int:
    """How many ids ``encode`` makes at most, the full stop it may add included."""
    return len(_clean(text)) + 1 + len(_LANGUAGE_TAGS.format(language="xx", text=""))


def is_speakable(text: str) -> bool:
    """Whether the model can make a sound of it."""
    return not _SPEAKABLE.isdisjoint(_plain(text))


# At speed 1. Rough: the voices differ by more than the languages do.
_SECONDS_PER_CHARACTER = {"en": 0.065, "es": 0.062, "pt": 0.062, "fr": 0.065, "ko": 0.065}
_SECONDS_PER_SYLLABLE = 0.17  # Hangul
_SECONDS_PER_DIGIT = 0.25  # "1984" is four characters but a second of speech
_SECONDS_PER_STOP = 0.25
_SECONDS_PER_COMMA = 0.12


@lru_cache(maxsize=4096)  # more than a job has chunks; their lengths are asked for all the time
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
