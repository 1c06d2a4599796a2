"""Where a paragraph may be cut: after a sentence, else a clause, else a phrase, else a word.

Works on offsets into the paragraph, so no character can be lost or repeated. Wrongly joining two
sentences goes unheard, wrongly parting "Dr." from "Smith" does not: in doubt, nothing ends.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property


class Break(StrEnum):
    """What a chunk ends with, and so how long a pause suits it."""

    PARAGRAPH = "paragraph"
    SENTENCE = "sentence"
    CLAUSE = "clause"
    WORD = "word"
    END = "end"


# Silence after a chunk, as a share of the wanted pause: a full one after a sentence, half of it
# after a clause, and none where a sentence had to be cut between words.
PAUSE_SHARE = {
    Break.PARAGRAPH: 1.0,
    Break.SENTENCE: 1.0,
    Break.CLAUSE: 0.5,
    Break.WORD: 0.0,
    Break.END: 0.0,
}


@dataclass(frozen=True)
class Size:
    """Lengths in characters: pack up to target, stretch to longest for a whole sentence.

    An opening is kept short: any good place up to target comes before a better one beyond it, and
    a phrase may end it.
    """

    target: int
    longest: int
    shortest: int  # pieces below it are avoided where another cut allows it
    is_opening: bool = False


# In any of the languages: a word from one of them seldom ends a sentence in another.
_ABBREVIATIONS = frozenset(
    "mr mrs ms mm dr drs prof profa sr sra sres srs srta jr dra dña mme mmes mlle mlles mgr rev hon"
    " gen gral col capt lt sgt exa excmo"
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
# Words that begin a phrase, in any of the languages, as long as they mean nothing else in another:
# French "car" and "mais" and Spanish "se" are missing for that reason.
_CONJUNCTIONS = (
    "and or but nor because although though whereas while unless until which who whose where when"
    " whether if that y e o u ni si que pero sino porque aunque cuando donde mientras como et ou"
    " donc quand lorsque puisque parce tandis où qui dont comme mas pois porém quando onde enquanto"
    " embora"
).split()
_PREPOSITIONS = (
    "to in on at by for from with without into onto after before during through between among"
    " about against under over para por con com sin sem desde hasta até entre sobre durante contra"
    " según pour par avec sans dans chez vers depuis pendant sur sous contre après avant"
).split()
# Korean puts the sign behind the phrase: endings that join clauses, then particles.
_CLAUSE_ENDINGS = "고 며 면 지만 는데 니까 서 도록 려고 거나 든지".split()
_PARTICLES = "은 는 에게 에 으로 로".split()


def _phrase_mark(beginnings: list[str], endings: list[str]) -> re.Pattern[str]:
    """Matches up to where a phrase ends."""
    return re.compile(rf"(?i)(?= (?:{'|'.join(beginnings)}) )|[가-힣](?:{'|'.join(endings)})(?= )")


# The better one first.
_PHRASE_MARKS = (
    _phrase_mark(_CONJUNCTIONS, _CLAUSE_ENDINGS),
    _phrase_mark(_PREPOSITIONS, _PARTICLES),
)
_LONGEST_BEGINNING = 12


def cut_paragraph(
    paragraph: str, size: Size, size_after: Callable[[str, Size], Size] | None = None
) -> Iterator[tuple[str, Break]]:
    """The pieces of a paragraph whose words are one space apart, each with its kind of break.

    No piece is longer than its size allows. ``size_after`` is asked after each piece for the size
    of the next one; without it all have one size.
    """
    ends = _Ends(paragraph)
    start = 0
    while start < len(paragraph):
        end, kind = ends.choose(start, size)
        yield paragraph[start:end], kind
        if size_after:
            size = size_after(paragraph[start:end], size)
        start = end + paragraph.startswith(" ", end)


def sentences_end(paragraph: str) -> int:
    """Where the last sentence ends that has another behind it, 0 if there is only one. Its words
    are one space apart.
    """
    *whole, _ = [0, *_Ends(paragraph).sentences]
    return whole[-1]


class _Ends:
    """The offsets in a paragraph where a sentence, a clause or a word ends."""

    def __init__(self, paragraph: str):
        self.paragraph = paragraph
        self.sentences: list[int] = []
        self.clauses = [match.end() for match in _CLAUSE_MARK.finditer(paragraph)]
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

    @cached_property
    def words(self) -> list[int]:
        return [match.start() for match in re.finditer(" ", self.paragraph)]

    def choose(self, start: int, size: Size) -> tuple[int, Break]:
        """Where the piece that begins at start should end."""
        if size.is_opening:
            return self._open(start, size)
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
        for ends, kind in by_kind:
            if end := _last(ends, start + 1, target):
                return end, kind
        for ends in (*self._phrases(start, target), self.words):
            if end := _last(ends, start + max(1, size.target // 2), target):
                return end, Break.WORD
        if end := _last(self.words, start + 1, target):
            return end, Break.WORD
        return self._inside_a_word(start, target), Break.WORD

    def _open(self, start: int, size: Size) -> tuple[int, Break]:
        """Where the text's first piece should end: early, but where one may take breath."""
        total = len(self.paragraph)
        if total <= start + size.longest:
            return total, Break.PARAGRAPH
        latest = min(start + size.longest, total - size.shortest)  # leaves no scrap behind
        target = min(start + size.target, latest)
        soonest = start + max(size.shortest, 1)
        by_kind = ((self.sentences, Break.SENTENCE), (self.clauses, Break.CLAUSE))
        for ends, kind in by_kind:
            if end := _last(ends, soonest, target):
                return end, kind
        # Still better than a phrase: the model speaks what ends without a mark as if it were over.
        for ends, kind in by_kind:
            if end := _first(ends, target, latest):
                return end, kind
        phrases = list(self._phrases(start, latest))
        for ends in phrases:
            if end := _last(ends, max(soonest, start + size.target // 2), target):
                return end, Break.WORD
        for ends in phrases:
            if end := _first(ends, target, latest):
                return end, Break.WORD
        if end := _last(self.words, start + 1, target) or _first(self.words, target, latest):
            return end, Break.WORD
        return self._inside_a_word(start, start + size.target), Break.WORD

    def _phrases(self, start: int, latest: int) -> Iterator[list[int]]:
        for mark in _PHRASE_MARKS:
            found = mark.finditer(self.paragraph, start, latest + _LONGEST_BEGINNING)
            yield [match.end() for match in found]

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
