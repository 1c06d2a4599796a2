"""Words and phrases that are to be read in another way than they are written: "SQL" as "sequel".

Listeners see what is written and hear what is spoken, so a ``Reading`` holds both and knows which
part of one stands for which part of the other.
"""

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from supertonic.errors import LexiconError, TextTooLong
from supertonic.marks import has_mark

MAX_WRITTEN_CHARS = 100
MAX_SPOKEN_CHARS = 200
SHOWN_CHARS = 30  # of a word in what is said about it

# A word is a run of letters and digits, its accents included, or one syllable of Hangul: whether a
# Korean word ends there is for _PARTICLES to say. A Latin word ends where Hangul begins.
_TOKEN = re.compile(r"[가-힣]|(?:[^\W_가-힣][\u0300-\u036f]*)+|\s+|.", re.DOTALL)
# What may follow a Korean noun in the same word: plural and honorifics, particles, the copula.
_PARTICLES = re.compile(
    "(?:들|씨|님|은|는|이|가|을|를|의|에|에서|에게|에게서|께|께서|한테|한테서|로|으로|로서|으로서|로써"
    "|으로써|와|과|랑|이랑|하고|도|만|까지|부터|마저|조차|마다|밖에|뿐|처럼|같이|보다|대로|나|이나|든지"
    "|이든지|라도|이라도|야|아|여|이여|라고|이라고|라는|이라는|라서|이라서|인|이다|입니다|입니까|이고"
    "|이며|이지만|예요|이에요|였다|이었다|였습니다|이었습니다){1,3}(?![가-힣])"
)
# "Don" is no word of "Don't", other than of "Don's".
_NO_NEGATION = re.compile(r"(?!'t(?![^\W_]))", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """A text whose words are one space apart, as written and as spoken.

    ``replaced``: per phrase where it begins and ends in ``spoken``, and in ``written``.
    """

    written: str
    spoken: str
    replaced: tuple[tuple[int, int, int, int], ...] = ()

    def written_between(self, start: int, end: int) -> str:
        """What is written where this part of ``spoken`` is read. A phrase cut in two belongs to the
        part in which it begins.
        """
        if not self.replaced:
            return self.spoken[start:end]
        return self.written[self._place(start) : self._place(end)].strip()

    def _place(self, offset: int) -> int:
        """The place in ``written`` of one in ``spoken``."""
        number = bisect_right(self.replaced, offset, key=lambda part: part[0]) - 1
        if number < 0:
            return offset
        start, end, written_start, written_end = self.replaced[number]
        if offset == start:
            return written_start
        return written_end + max(0, offset - end)


@dataclass(slots=True)
class _Node:
    """What may come behind some words, and how these are read: by their spelling, or in any case
    under "".
    """

    then: dict[str, "_Node"] = field(default_factory=dict)
    spoken: dict[str, str] = field(default_factory=dict)


class Entries:
    """One list of entries, as a tree of their words.

    Raises LexiconError, naming the entry that cannot be used.
    """

    def __init__(self, entries: Mapping[str, str]) -> None:
        self.root = _Node()
        for written, spoken in entries.items():
            check_entry(written, spoken)
            spelling = _straight(_plain(written))
            node = self.root
            for token in _TOKEN.findall(spelling):
                node = node.then.setdefault(token.casefold(), _Node())
            has_case = any(character.isupper() for character in written)
            node.spoken[spelling if has_case else ""] = _plain(spoken)


class Lexicon:
    """Several lists of entries; where two know the same phrase, the first one counts.

    An entry with a capital letter is for words in just this case, one without for any case. Whole
    words only: "SQL" is not in "SQLite", but it is in "SQL-based" and "SQL's". In Korean a particle
    may follow.
    The longest phrase counts, from left to right, and what was replaced is not replaced again.
    """

    def __init__(self, *layers: Entries) -> None:
        self.layers = layers

    def read(self, text: str, most: float = math.inf) -> Reading:
        """``text``: its words are one space apart, as they are in both sides of what comes back.

        Raises TextTooLong for more than ``most`` characters to be spoken.
        """
        written = unicodedata.normalize("NFC", text)
        tokens = _Tokens(_straight(written))
        parts: list[str] = []
        replaced: list[tuple[int, int, int, int]] = []
        done = length = 0  # so much is read, and has become so much
        index = 0
        while index < len(tokens.folded):
            found = self._longest(tokens, index)
            if found is None:
                index += 1
                continue
            count, spoken = found
            start, end = tokens.starts[index], tokens.starts[index + count]
            # Signs may stand at a word: "50%" is not "50percent". A space in front is no part of
            # what is replaced: a cut there leaves the phrase to what comes behind.
            is_parted = spoken[0].isalnum() and start > 0 and _is_in_word(written[start - 1])
            if spoken[-1].isalnum() and _is_in_word(written[end : end + 1]):
                spoken = f"{spoken} "
            parts += (written[done:start], " " * is_parted, spoken)
            length += start - done + is_parted
            replaced.append((length, length + len(spoken), start, end))
            length += len(spoken)
            index, done = index + count, end
            if length > most:
                break
        if length + len(written) - done > most:
            raise TextTooLong(f"more than {most} characters are to be spoken")
        if not replaced:
            return Reading(text, text)
        parts.append(written[done:])
        return Reading(written, "".join(parts), tuple(replaced))

    def _longest(self, tokens: "_Tokens", index: int) -> tuple[int, str] | None:
        """The longest phrase that begins with this token: how many it has, and how it is read."""
        best: tuple[int, str] | None = None
        if tokens.is_inside_hangul(index):
            return None
        for layer in self.layers:
            node, end = layer.root, index
            while end < len(tokens.folded) and (then := node.then.get(tokens.folded[end])):
                node, end = then, end + 1
                if node.spoken and (best is None or end - index > best[0]):
                    spoken = node.spoken.get(tokens.between(index, end)) or node.spoken.get("")
                    if spoken and tokens.is_end(end):
                        best = end - index, spoken
        return best


class _Tokens:
    """The words and signs of a text: how they compare in any case, and where each begins."""

    def __init__(self, text: str) -> None:
        self.text = text
        found = _TOKEN.findall(text)
        self.folded = [token.casefold() for token in found]
        self.starts = list(accumulate(map(len, found), initial=0))

    def between(self, first: int, end: int) -> str:
        return self.text[self.starts[first] : self.starts[end]]

    def is_inside_hangul(self, index: int) -> bool:
        """Whether a Korean word has begun before this token and goes on."""
        start = self.starts[index]
        return 0 < start < len(self.text) and (
            _is_hangul(self.text[start - 1]) and _is_hangul(self.text[start])
        )

    def is_end(self, index: int) -> bool:
        """Whether a word ends before this token, or a Korean one but for its particles."""
        pattern = _PARTICLES if self.is_inside_hangul(index) else _NO_NEGATION
        return pattern.match(self.text, self.starts[index]) is not None


def _is_hangul(character: str) -> bool:
    return "가" <= character <= "힣"


def _is_in_word(character: str) -> bool:
    """Of a word that others must not touch; Hangul puts particles at them."""
    return character.isalnum() and not _is_hangul(character)


def _straight(text: str) -> str:
    return text.replace("’", "'")


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))


def check_entry(written: str, spoken: object) -> None:
    """Raises LexiconError for an entry that cannot be used."""
    entry = f"the entry {written[:SHOWN_CHARS]!r}"
    if not isinstance(spoken, str):
        raise LexiconError(f"{entry} is to be read as something that is no string")
    for text, most, which in (
        (written, MAX_WRITTEN_CHARS, entry),
        (spoken, MAX_SPOKEN_CHARS, f"what {entry} is read as"),
    ):
        if not text.strip():
            raise LexiconError(f"{which} is empty")
        if len(text) > most:
            raise LexiconError(f"{which} has {len(text)} characters; at most {most} are allowed")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise LexiconError(f"{which} holds half of a surrogate pair; send UTF-8")
    if has_mark(spoken):
        raise LexiconError(f"what {entry} is read as holds a mark; those belong in the text")
