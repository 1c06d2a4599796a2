"""Where a paragraph may be cut: after a sentence, else after a clause, else between words.

Works on offsets into the paragraph, so no character can be lost or repeated. Wrongly joining two
sentences goes unheard, wrongly parting "Dr." from "Smith" does not: in doubt, nothing ends.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Break(StrEnum):
    """What a chunk ends with, and so how long a pause suits it."""

    PARAGRAPH = "paragraph"
    SENTENCE = "sentence"
    CLAUSE = "clause"
    WORD = "word"
    END = "end"


@dataclass(frozen=True)
class Size:
    """Lengths in characters: pack up to target, stretch to longest for a whole sentence."""

    target: int
    longest: int
    shortest: int  # pieces below it are avoided where another cut allows it


# In any of the languages: a word from one of them seldom ends a sentence in another.
_ABBREVIATIONS = frozenset(
    "mr mrs ms dr drs prof profa sr sra srta jr dra mme mlle mgr rev hon gen gral col capt lt sgt"
    " lic ing eng exmo exma ud uds vd vds st ave av avda blvd bd rd mt dept inc ltd ltda co corp"
    " cia ee uu ph.d etc vs cf ej ex p pp approx aprox env tel".split()
)
# "No." alone is an answer and "mar" is the sea, so these count only before a number.
_BEFORE_A_NUMBER = frozenset(
    "no nos nr num núm fig figs pág págs art cap vol ch sec eq n"
    " jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
_INITIALS = re.compile(r"[A-ZÀ-Þ]|[^\W\d_](?:\.[^\W\d_])+")  # "J", "p.m", "U.S"
_LIST_NUMBER = re.compile(r"\(?(?:\d{1,3}|[ivxIVX]{1,4}|[a-z])")
_LAST_WORD = re.compile(r"[^\W_][\w.]*$")
_LONGEST_ABBREVIATION = 8

_CLOSING = "[\"'”’»›)\\]}」』】〉》*_]"
# Possessive repeats (++, *+) keep a page of dots or quotes from being scanned over and over.
_SENTENCE_MARK = re.compile(
    rf"(?<![.!?…])(?P<mark>[.!?…]++)(?P<closing>{_CLOSING}*+(?: [»›])?)(?= |$)"
    rf"|[。！？｡]++{_CLOSING}*+"
)
_CLAUSE_MARK = re.compile(
    rf"[,;:]{_CLOSING}*+(?: [»›])?(?= )|(?<= )[-–](?= )|--(?=[^-])|[—，、；：]"
)


def cut_paragraph(paragraph: str, first: Size, rest: Size) -> Iterator[tuple[str, Break]]:
    """The pieces of a paragraph whose words are one space apart, each with its kind of break.

    No piece is longer than its size allows; the first piece follows its own size.
    """
    ends = _Ends(paragraph)
    start, size = 0, first
    while start < len(paragraph):
        end, kind = ends.choose(start, size)
        yield paragraph[start:end], kind
        start = end + paragraph.startswith(" ", end)
        size = rest


class _Ends:
    """The offsets in a paragraph where a sentence, a clause or a word ends."""

    def __init__(self, paragraph: str):
        self.paragraph = paragraph
        self.sentences: list[int] = []
        self.clauses = [match.end() for match in _CLAUSE_MARK.finditer(paragraph)]
        self.words = [match.start() for match in re.finditer(" ", paragraph)]
        start = 0
        for match in _SENTENCE_MARK.finditer(paragraph):
            if _is_abbreviation(paragraph, start, match):
                continue
            if _goes_on(paragraph, match):
                self.clauses.append(match.end())
                continue
            self.sentences.append(match.end())
            start = match.end() + 1
        self.clauses.sort()
        if self.sentences[-1:] != [len(paragraph)]:
            self.sentences.append(len(paragraph))

    def choose(self, start: int, size: Size) -> tuple[int, Break]:
        """Where the piece that begins at start should end."""
        total = len(self.paragraph)
        soonest = start + max(size.shortest, 1)
        target, latest = start + size.target, start + size.longest
        if total <= target:
            return total, Break.PARAGRAPH
        by_kind = ((self.sentences, Break.SENTENCE), (self.clauses, Break.CLAUSE))
        for ends, kind in by_kind:
            end = (
                _last(ends, soonest, min(target, total - size.shortest))
                or _first(ends, target, latest)
                or _last(ends, soonest, target)
            )
            if end:
                return end, Break.PARAGRAPH if end == total else kind
        for ends, kind in (*by_kind, (self.words, Break.WORD)):
            if end := _last(ends, start + 1, target):
                return end, kind
        return self._inside_a_word(start, target), Break.WORD

    def _inside_a_word(self, start: int, target: int) -> int:
        # An accent or a jamo belongs to the character before it. Eight steps back are plenty;
        # a longer stack of marks is decoration and may part.
        for end in range(target, max(start, target - 8), -1):
            character = self.paragraph[end]
            if not unicodedata.combining(character) and not "\u1160" <= character <= "\u11ff":
                return end
        return target


def _is_abbreviation(paragraph: str, sentence_start: int, match: re.Match[str]) -> bool:
    if match["mark"] != ".":
        return False
    if _LIST_NUMBER.fullmatch(paragraph, sentence_start, match.start()):
        return True
    tail = paragraph[max(0, match.start() - _LONGEST_ABBREVIATION) : match.start()]
    found = _LAST_WORD.search(tail)
    if not found:
        return False
    word = found[0]
    if word.casefold() in _BEFORE_A_NUMBER:
        return paragraph[match.end() + 1 : match.end() + 2].isdigit()
    return word.casefold() in _ABBREVIATIONS or bool(_INITIALS.fullmatch(word))


def _goes_on(paragraph: str, match: re.Match[str]) -> bool:
    """'"Stop!" he said' and "Well... maybe" are one sentence each."""
    trails_off = match["mark"] and (match["closing"] or match["mark"].endswith(("…", "..")))
    return bool(trails_off) and paragraph[match.end() + 1 : match.end() + 2].islower()


def _last(ends: list[int], low: int, high: int) -> int | None:
    """The last end in low … high."""
    index = bisect_right(ends, high) - 1
    return ends[index] if index >= 0 and ends[index] >= low else None


def _first(ends: list[int], above: int, high: int) -> int | None:
    """The first end after above, up to high."""
    index = bisect_right(ends, above)
    return ends[index] if index < len(ends) and ends[index] <= high else None
