"""The characters that the model knows: text cleaned up for it, and looked up.

``normalize`` repeats the clean-up of the model's official clients, ``encode`` adds the language
tags and looks up ids. Standard library only.
"""

import re
import unicodedata
from functools import lru_cache

from supertonic.errors import EmptyText, UnknownLanguage

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

# The published graphs take fewer than 1,000 ids, tags included. Decomposed Hangul needs two or
# three per syllable, so a limit in characters alone does not keep a chunk below it.
MAX_IDS = 999

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
NOTHING_TO_SAY = (
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
        raise EmptyText(NOTHING_TO_SAY)
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


def count_ids(text: str) -> int:
    """How many ids ``encode`` makes at most, the full stop it may add included."""
    return len(_clean(text)) + 1 + len(_LANGUAGE_TAGS.format(language="xx", text=""))


def is_speakable(text: str) -> bool:
    """Whether the model can make a sound of it."""
    return not _SPEAKABLE.isdisjoint(_plain(text))
