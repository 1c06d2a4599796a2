"""Marks in a text, which nobody hears or sees: at ``[pause 1.5s]`` it is cut, and so much silence
follows what is before; from ``[voice F1]`` on another voice speaks.
"""

import re

from supertonic.voices import MOST_MIXED, NUMBER, VOICES

# The longest silence that marks can ask for in one place; several in a row add up to it.
MOST_S = 10.0
# Whose the text is without a mark.
USUAL_VOICE = "default"

_SPACE = r"[:\s]\s?"
_PART = rf"(?:{'|'.join(VOICES)})(?:\({NUMBER}\))?"
# Expressions for IGNORECASE. Two groups: the number, and s or ms.
PAUSE = rf"\[pause{_SPACE}([0-9]{{1,6}}(?:[.,][0-9]{{1,6}})?|[.,][0-9]{{1,6}})\s?(m?s)\]"
# One group: the voice, a mixture, or USUAL_VOICE. Only voices whose names are known: what actors
# are told, as [voice breaks], is text.
VOICE = rf"\[voice{_SPACE}({USUAL_VOICE}|{_PART}(?:\+{_PART}){{0,{MOST_MIXED - 1}}})\]"

_PAUSE = re.compile(PAUSE, re.IGNORECASE)
_VOICE = re.compile(VOICE, re.IGNORECASE)
_ANY = re.compile(f"{PAUSE}|{VOICE}", re.IGNORECASE)
# It is told in a header, which must not have a line break or the like.
_ALIKE = re.compile(r"\[(?:pause|voice)\b[^\[\]\x00-\x1f\x7f]{0,40}\]", re.IGNORECASE)
# What a mark begins with, and how long one may be that has come so far in fragments.
_BEGINNINGS = {"[pause": 24, "[voice": 90}
_LONGEST = max(_BEGINNINGS.values())


def seconds(number: str, unit: str) -> float:
    """What the two groups of ``PAUSE`` ask for."""
    amount = float(number.replace(",", "."))
    return amount / 1000 if unit[0] in "mM" else amount


def voice(found: str) -> str:
    """The voice that the group of ``VOICE`` names; empty for the usual one."""
    return "" if found.lower() == USUAL_VOICE else found.upper()


def has_mark(text: str) -> bool:
    return _ANY.search(text) is not None


def is_mark(text: str) -> bool:
    return _ANY.fullmatch(text) is not None


def malformed(text: str) -> list[str]:
    """What looks like a mark in a text and is none, each once."""
    alike = dict.fromkeys(_ALIKE.findall(text))
    return [found for found in alike if not is_mark(found)]


def last_pause_end(text: str) -> int:
    """Where the last pause mark in a text ends, 0 if there is none."""
    return max((match.end() for match in _PAUSE.finditer(text)), default=0)


def last_voice(text: str) -> tuple[int, str]:
    """The last voice mark in a text: where it ends, and the mark; 0 and empty if there is none."""
    found = [(match.end(), match[0]) for match in _VOICE.finditer(text)]
    return found[-1] if found else (0, "")


def without_last(text: str) -> str:
    """A text whose end is still to come, without the marks and the white space it ends with, nor
    what may yet become a mark.
    """
    start, end = text.rfind("["), len(text)
    if start >= 0 and _may_become_one(text[start : start + _LONGEST + 1]):
        end = start
    while end > 0:
        if text[end - 1].isspace():
            end -= 1
            continue
        start = text.rfind("[", max(0, end - _LONGEST - 1), end)
        if start < 0 or not _ANY.fullmatch(text, start, end):
            break
        end = start
    return text[:end]


def _may_become_one(text: str) -> bool:
    return "]" not in text and any(
        len(text) <= longest and beginning.startswith(text[: len(beginning)].lower())
        for beginning, longest in _BEGINNINGS.items()
    )
