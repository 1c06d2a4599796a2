"""Chapters of a long text: each begins with a line such as ``# The title``, as in Markdown."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from supertonic.characters import is_speakable
from supertonic.text import read_text

MAX_TITLE_CHARS = 200
# Marks that turn the order of what stands behind them.
ORDERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
# Of what comes before the first title, where the book has none either.
FIRST = "Beginning"


@dataclass(frozen=True, slots=True)
class ChapterText:
    """A chapter's title and what is spoken of it, the title included."""

    title: str
    text: str


def cut_chapters(text: str, book: str = "") -> list[ChapterText]:
    """The chapters of a text, in order. What comes before the first title is a chapter named as
    the book is, if there is anything to speak in it.
    """
    chapters: list[ChapterText] = []
    title, lines = "", list[str]()
    for line in _lines(text):
        found = title_of(line)
        if not found:
            lines.append(line)
            continue
        chapters += _chapter(title, lines, book)
        title, lines = found, []
    chapters += _chapter(title, lines, book)
    return chapters


def has_titles(text: str) -> bool:
    """Whether any line of it begins a chapter."""
    return any(title_of(line) for line in _lines(text))


def _lines(text: str) -> list[str]:
    # Editors on Windows put an invisible mark in front.
    return text.removeprefix("\ufeff").split("\n")


def _chapter(title: str, lines: list[str], book: str) -> Iterator[ChapterText]:
    text = "\n".join(lines)
    if title:
        # The empty line makes it a paragraph of its own.
        yield ChapterText(_short(title), f"{title}\n\n{text}")
    elif is_speakable(_without_marks(text)):
        yield ChapterText(_short(book) or FIRST, text)


def title_of(line: str) -> str:
    """The title in a heading's line; empty for any other line, and where nothing can be spoken."""
    rest = line.lstrip("#")
    if not 1 <= len(line) - len(rest) <= 6 or not rest[:1].isspace():
        return ""
    title = rest.strip()
    # Markdown lets a heading end with a row of signs, but "C#" keeps its own.
    bare = title.rstrip("#")
    if bare[-1:].isspace():
        title = bare
    title = " ".join(title.split())
    return title if is_speakable(_without_marks(title)) else ""


def is_shown(character: str) -> bool:
    """Whether it belongs into a name that players show: it controls nothing, nor the order in which
    the others are read.
    """
    is_control = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    return not is_control and unicodedata.bidirectional(character) not in ORDERING


def _without_marks(text: str) -> str:
    """Pause marks are heard, not shown."""
    return " ".join(paragraph.reading.written for paragraph in read_text(text))


def _short(title: str) -> str:
    title = "".join(filter(is_shown, _without_marks(title))).strip()
    return title if len(title) <= MAX_TITLE_CHARS else title[: MAX_TITLE_CHARS - 1] + "…"
