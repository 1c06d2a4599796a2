"""Pause marks: at ``[pause 1.5s]`` a text is cut, and so much silence follows what is before it."""

import re

# The longest silence that marks can ask for in one place; several in a row add up to it.
MOST_S = 10.0
# Two groups: the number, and s or ms. Its expressions are compiled with IGNORECASE.
MARK = r"\[pause[:\s]\s?([0-9]{1,6}(?:[.,][0-9]{1,6})?|[.,][0-9]{1,6})\s?(m?s)\]"
_MARK = re.compile(MARK, re.IGNORECASE)
# It is told in a header, which must not have a line break or the like.
_ALIKE = re.compile(r"\[pause\b[^\[\]\x00-\x1f\x7f]{0,40}\]", re.IGNORECASE)
_BEGINNING = "[pause"
_LONGEST = 24  # a mark that has come so far in fragments


def seconds(number: str, unit: str) -> float:
    """What the two groups of ``MARK`` ask for."""
    amount = float(number.replace(",", "."))
    return amount / 1000 if unit[0] in "mM" else amount


def malformed(text: str) -> list[str]:
    """What looks like a mark in a text and is none, each once."""
    alike = dict.fromkeys(_ALIKE.findall(text))
    return [found for found in alike if not _MARK.fullmatch(found)]


def last_end(text: str) -> int:
    """Where the last mark in a text ends, 0 if there is none."""
    return max((match.end() for match in _MARK.finditer(text)), default=0)


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
        if start < 0 or not _MARK.fullmatch(text, start, end):
            break
        end = start
    return text[:end]


def _may_become_one(text: str) -> bool:
    if len(text) > _LONGEST or "]" in text:
        return False
    return _BEGINNING.startswith(text[: len(_BEGINNING)].lower())
